"""Core's CLIP_VISION in the place of our own tower: the same tokens, and a sentence for other kinds of models."""

import os
import subprocess
import sys

import pytest
import torch
from find import find_hosts
from places import ROOT
from safetensors.torch import save_file
from test_vision import LARGE, random_tower, vision_part

COMPARE = """
import importlib.util, sys
path, pack = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import numpy as np, torch
import comfy.clip_vision
spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
from pack.hyperlora_core import VisionEncoder
from pack.nodes.clip_vision import HostClipVision
pictures = [np.random.default_rng(i).integers(0, 256, (300, 260, 3), np.uint8) for i in range(2)]
with torch.inference_mode():
    theirs = HostClipVision(comfy.clip_vision.load(path))
    ours = VisionEncoder.load(path)
    a, b = theirs.encode_pictures(pictures), ours.encode_pictures(pictures)
assert theirs.width == ours.width == 1024
assert a.shape == b.shape == (2, 257, 1024)
print("DIFFERENCE", float((a.float() - b).abs().max()), "SCALE", float(b.abs().max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_tokens_equal_ours(host, tmp_path):
    path = tmp_path / "clip-vit-large-patch14.safetensors"
    tensors = vision_part(random_tower(LARGE)) | {"visual_projection.weight": torch.zeros(768, 1024)}
    save_file(tensors, path)
    run = subprocess.run(
        [sys.executable, "-c", COMPARE, str(path), str(ROOT)],
        cwd=host, env=os.environ | {"PYTHONPATH": str(host)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    difference, scale = (float(run.stdout.split(word)[1].split()[0]) for word in ("DIFFERENCE", "SCALE"))
    # core keeps the tower's weights in fp16; measured: 8e-4 of the largest value
    assert difference < 2e-3 * scale, run.stdout
