"""Shared fixtures: small checkpoints and their expected results."""

import sys
from pathlib import Path

import pytest
from places import FIXTURES, ROOT

# the checkout itself is tested, installed or not; appended, so that the `nodes` of a ComfyUI would win
sys.path.append(str(ROOT))

GOLDEN = ("clip_arcface", "clip_arcface_three_photos", "with_base")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Photos of drawn people, and useless files, see training_photos.py."""
    from training_photos import draw_photos

    folder = tmp_path_factory.mktemp("photos") / "people"
    draw_photos(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(photos, tmp_path_factory) -> Path:
    """They, prepared for training; to be read only."""
    from training_photos import run

    out = tmp_path_factory.mktemp("prepared")
    run(photos, out)
    return out


@pytest.fixture(params=GOLDEN)
def golden(request) -> Path:
    return FIXTURES / request.param
