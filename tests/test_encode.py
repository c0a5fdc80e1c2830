"""Photos to identities, on the demo models: every kind of photo that people have."""

import numpy as np
import pytest
import torch
from bad_inputs import GOOD
from people import photo_of, side_by_side
from PIL import Image

from hyperlora_core import (
    EncodeOptions,
    HyperLoRAError,
    NoFaceError,
    PhotoEncoder,
    VisionEncoder,
    load_hyperlora,
    open_encoder,
)
from hyperlora_core.encode import RECOGNITION, parse_weights
from hyperlora_core.locate import demo_folder


@pytest.fixture(scope="module")
def encoder():
    return open_encoder("demo")


@pytest.fixture(scope="module")
def anna(encoder):
    return encoder.encode([photo_of(0)])


def unlike(one, other):
    """Mean difference of what the networks saw of two people's first photos, whatever they make of it."""
    first, second = (
        np.asarray(Image.fromarray(encoded.crops[0]).resize((32, 32), Image.Resampling.BOX), np.float32)
        for encoded in (one, other)
    )
    return np.abs(first - second).mean()


def similarity(one, two) -> float:
    """Mean cosine of the coefficients' rows."""
    return float(torch.cosine_similarity(one.identity.coefficients, two.identity.coefficients, dim=-1).mean())


def test_identity(encoder, anna):
    identity = anna.identity
    assert identity.coefficients.shape == (8 * len(encoder.hyper.module_names), encoder.hyper.basis.size)
    assert identity.base_coefficients.shape == identity.coefficients.shape
    assert (identity.photo_count, identity.fingerprint) == (1, encoder.hyper.fingerprint)
    height, width, _ = anna.crops[0].shape
    assert anna.crops[0].dtype == np.uint8 and abs(height - width) <= 1  # a square up to the rounding of its corners
    assert anna.report.startswith("Photo 1: face of ")


def test_several_photos_count_and_report(encoder, anna):
    steps = []
    both = encoder.encode([photo_of(0), photo_of(0, scene=3)], progress=lambda done, total: steps.append((done, total)))
    assert both.identity.photo_count == 2 and len(both.crops) == 2 and len(both.report.splitlines()) == 2
    assert steps == [(1, 2), (2, 2)]
    assert similarity(both, anna) > similarity(encoder.encode([photo_of(1)]), anna)


def test_progress_may_stop_it(encoder):
    def stop(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode([photo_of(0), photo_of(0)], progress=stop)


FORMS = {
    "alpha": ("PNG", lambda p: p.convert("RGBA")),
    "jpeg": ("JPEG", lambda p: p),
    "cmyk": ("TIFF", lambda p: p.convert("CMYK")),
}


@pytest.mark.parametrize("form", FORMS)
def test_file_forms_give_the_same_person(encoder, anna, form, tmp_path):
    kind, convert = FORMS[form]
    path = tmp_path / f"anna.{kind.lower()}"
    convert(photo_of(0)).save(path, kind, **({"quality": 98} if kind == "JPEG" else {}))
    # JPEG changes pixels a little, and with them the person
    assert similarity(encoder.encode([path]), anna) > 0.9


def test_grey_and_sixteen_bits(encoder, tmp_path):
    grey = photo_of(0).convert("L")
    grey.save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    one, two = (encoder.encode([tmp_path / name]) for name in ("grey.png", "deep.png"))
    assert similarity(one, two) > 0.999


def test_rotated_by_exif(encoder, anna, tmp_path):
    turned = photo_of(0).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
    turned.save(tmp_path / "anna.png", exif=exif)
    assert similarity(encoder.encode([tmp_path / "anna.png"]), anna) > 0.999


def test_animation_gives_its_first_frame(encoder, anna, tmp_path):
    photo_of(0).save(tmp_path / "anna.webp", save_all=True, append_images=[photo_of(1)], lossless=True)
    assert similarity(encoder.encode([tmp_path / "anna.webp"]), anna) > 0.999


def test_huge_photo(encoder, anna):
    ben = encoder.encode([photo_of(1)])
    assert unlike(encoder.encode([photo_of(0).resize((3000, 3000))]), anna) < 0.5 * unlike(ben, anna)


@pytest.mark.parametrize("box", [(64, 0, 256, 256), (0, 64, 256, 256), (0, 0, 176, 256)], ids=["left", "top", "right"])
def test_face_at_the_edge(encoder, box):
    """The face's square reaches beyond the photo: black there, and no crash."""
    encoded = encoder.encode([photo_of(0).crop(box)])
    assert torch.isfinite(encoded.identity.coefficients).all()


def test_close_up(encoder):
    """A face that fills the frame is found with a border around it."""
    assert encoder.encode([photo_of(0, size=512).crop((140, 100, 400, 400))]).identity.photo_count == 1


def test_which_of_several_faces(encoder):
    pair = side_by_side(photo_of(0, size=192), photo_of(1))
    left, right, largest = (
        encoder.encode([pair], EncodeOptions(which=which)) for which in ("left", "right", "largest")
    )
    assert unlike(left, encoder.encode([photo_of(0, size=192)])) < 0.5 * unlike(left, right)
    assert similarity(largest, right) > 0.9999
    assert "largest of 2 faces" in largest.report
    with pytest.raises(HyperLoRAError, match="Face 2 doesn't exist: Photo 1 shows 2 faces"):
        encoder.encode([pair], EncodeOptions(which=2))


def test_small_faces_are_reported(encoder):
    canvas = Image.new("RGB", (640, 640), (130, 140, 150))
    canvas.paste(photo_of(0, size=110), (200, 200))
    assert "small: a closer photo" in encoder.encode([canvas]).report


def test_options_change_what_the_network_sees(encoder, anna):
    for options in (EncodeOptions(remove_background=False), EncodeOptions(grayscale=True)):
        other = encoder.encode([photo_of(0)], options)
        assert not np.array_equal(other.crops[0], anna.crops[0])
        assert similarity(other, anna) < 0.99999
    wide = encoder.encode([photo_of(0)], EncodeOptions(crop_scale=(2, 2, 2, 2)))
    assert torch.equal(wide.identity.coefficients, anna.identity.coefficients)
    assert not torch.equal(wide.identity.base_coefficients, anna.identity.base_coefficients)


def test_refused_photos(encoder):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    with pytest.raises(NoFaceError, match=r"No face was found in Photo 2 \(256 x 256\)"):
        encoder.encode([photo_of(0), noise])
    with pytest.raises(HyperLoRAError, match="No photo was given"):
        encoder.encode([])
    with pytest.raises(HyperLoRAError, match="Photo 1"):
        encoder.encode([torch.full((64, 64, 3), float("nan"))])
    with pytest.raises(HyperLoRAError, match="Photo 1 is empty"):
        encoder.encode([torch.zeros(0, 64, 3)])
    with pytest.raises(HyperLoRAError, match="too small"):
        encoder.encode([np.zeros((300, 1, 3), np.uint8)])


def test_encoders_that_dont_belong(encoder):
    small = load_hyperlora(GOOD)
    with pytest.raises(HyperLoRAError, match="reads CLIP tokens of 32 channels, but clip_vision makes 128"):
        PhotoEncoder(small, encoder.faces, VisionEncoder.load(demo_folder() / "clip_vision"))
    with pytest.raises(HyperLoRAError, match="there is no CLIP image tower"):
        PhotoEncoder(small, encoder.faces)
    real = load_hyperlora(demo_folder() / "hyper_lora")
    real.metadata[RECOGNITION] = "glintr100"
    with pytest.raises(HyperLoRAError, match="trained with the face recognition glintr100"):
        PhotoEncoder(real, encoder.faces, encoder.vision)


def test_known_wrong_face_pack(encoder, monkeypatch):
    monkeypatch.setattr(type(encoder.faces), "recognition_name", property(lambda _: "w600k_r50"))
    encoder.hyper.metadata.pop(RECOGNITION, None)
    with pytest.raises(HyperLoRAError, match=r"antelopev2 .* but the face pack given is buffalo_l"):
        PhotoEncoder(encoder.hyper, encoder.faces, encoder.vision)


def test_weights_in_words():
    assert parse_weights("") is None and parse_weights(" 1, 0.5 2 ") == [1, 0.5, 2]
    with pytest.raises(HyperLoRAError, match="'a lot' aren't numbers"):
        parse_weights("a lot")
