"""CLIP as a measure: the vectors that its recipe gives, from a file of either naming."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_clip import picture_vectors, text_vectors, toy_clip

from hyperlora_core import HyperLoRAError
from hyperlora_core.evaluate.clip import ClipView, open_clip_names
from hyperlora_core.locate import demo_folder
from hyperlora_core.vision import clip_pixels

pytest.importorskip("open_clip")

PICTURES = [np.random.default_rng(n).integers(0, 256, (80, 64 + 8 * n, 3), np.uint8) for n in range(2)]
TEXTS = ["portrait photo of a person in a yellow raincoat", "a hat!"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, toy_clip(folder)


def test_views_are_clips_own(made):
    import open_clip

    folder, tensors = made
    view = ClipView.load(folder)
    pictures = picture_vectors(tensors, torch.stack([clip_pixels(picture, 64) for picture in PICTURES]))
    texts = text_vectors(tensors, open_clip.tokenize(TEXTS))
    assert view.pictures(PICTURES) == pytest.approx(pictures.numpy(), abs=1e-5)
    assert view.texts(TEXTS) == pytest.approx(texts.numpy(), abs=1e-5)
    assert (texts[0] - texts[1]).abs().max() > 0.01 < (pictures[0] - pictures[1]).abs().max()
    assert view.name == folder.name


def test_files_in_open_clips_names(made, tmp_path):
    folder, _ = made
    save_file(open_clip_names(load_file(folder / "model.safetensors")), tmp_path / "renamed.safetensors")
    view = ClipView.load(tmp_path / "renamed.safetensors")
    assert view.texts(TEXTS) == pytest.approx(ClipView.load(folder).texts(TEXTS)) and view.name == "renamed"


def test_a_tower_alone_is_not_enough():
    with pytest.raises(HyperLoRAError, match=r"isn't a whole CLIP.*download clip-vision"):
        ClipView.load(demo_folder() / "clip_vision")
