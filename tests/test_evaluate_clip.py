"""CLIP as a measure: the same vectors as transformers gives, from a file of either naming."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_clip import toy_clip

from hyperlora_core import HyperLoRAError
from hyperlora_core.evaluate.clip import ClipView, open_clip_names
from hyperlora_core.locate import demo_folder
from hyperlora_core.vision import clip_pixels

for package in ("transformers", "open_clip"):
    pytest.importorskip(package)

PICTURES = [np.random.default_rng(n).integers(0, 256, (80, 64 + 8 * n, 3), np.uint8) for n in range(2)]
TEXTS = ["portrait photo of a person in a yellow raincoat", "a hat!"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, toy_clip(folder)


def vectors_of(output):
    """Newer versions of transformers answer with more than the vector."""
    vectors = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


def test_views_are_clips_own(made):
    import open_clip

    folder, model = made
    view = ClipView.load(folder)
    with torch.no_grad():
        pixels = torch.stack([clip_pixels(picture, 64) for picture in PICTURES])
        pictures = vectors_of(model.get_image_features(pixel_values=pixels))
        texts = vectors_of(model.get_text_features(input_ids=open_clip.tokenize(TEXTS)))
    assert view.pictures(PICTURES) == pytest.approx(pictures, abs=1e-5)
    assert view.texts(TEXTS) == pytest.approx(texts, abs=1e-5)
    assert np.abs(texts[0] - texts[1]).max() > 0.01 < np.abs(pictures[0] - pictures[1]).max()
    assert view.name == folder.name


def test_files_in_open_clips_names(made, tmp_path):
    folder, _ = made
    save_file(open_clip_names(load_file(folder / "model.safetensors")), tmp_path / "renamed.safetensors")
    view = ClipView.load(tmp_path / "renamed.safetensors")
    assert view.texts(TEXTS) == pytest.approx(ClipView.load(folder).texts(TEXTS)) and view.name == "renamed"


def test_a_tower_alone_is_not_enough():
    with pytest.raises(HyperLoRAError, match=r"isn't a whole CLIP.*download clip-vision"):
        ClipView.load(demo_folder() / "clip_vision")
