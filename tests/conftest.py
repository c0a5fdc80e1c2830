"""Shared fixtures: small checkpoints and their expected results."""

import sys
from pathlib import Path

import pytest
from places import FIXTURES, ROOT

# the checkout itself is tested, installed or not; appended, so that the `nodes` of a ComfyUI would win
sys.path.append(str(ROOT))

GOLDEN = ("clip_arcface", "clip_arcface_three_photos", "with_base")


@pytest.fixture(params=GOLDEN)
def golden(request) -> Path:
    return FIXTURES / request.param
