"""Photos of every form arrive as upright uint8 RGB; bad ones as a sentence that names them."""

import numpy as np
import pytest
import torch
from PIL import Image

from hyperlora_core import photo as photo_module
from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.photo import read_batch, read_photo


@pytest.fixture
def picture():
    """uint8 [48, 64, 3]: a gradient with a red top left corner."""
    y, x = np.mgrid[:48, :64]
    values = np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)
    values[:16, :16] = (255, 0, 0)
    return values


def check(values, expected, tolerance=0):
    assert values.dtype == np.uint8 and values.shape == expected.shape
    assert np.abs(values.astype(int) - expected).max() <= tolerance


def test_sources_agree(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    tensor = torch.from_numpy(picture).float() / 255
    path = tmp_path / "a.png"
    for source in (path, str(path), Image.fromarray(picture), picture, tensor, tensor[None]):
        check(read_photo(source), picture)
    check(read_photo(picture.astype(np.uint16) * 257), picture)
    check(read_photo(picture.astype(np.float64) / 255), picture)
    check(read_photo(tensor.to(torch.bfloat16)), picture, tolerance=1)


def test_result_is_writable(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    read_photo(tmp_path / "a.png")[0, 0] = 0


def test_overshoot_is_clipped(picture):
    values = picture.astype(np.float32) / 255
    values[0, 0] = (1.2, -0.1, 0.5)
    assert read_photo(values)[0, 0].tolist() == [255, 0, 128]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(picture, tmp_path, orientation):
    upright = Image.fromarray(picture)
    # what a camera stores for an upright scene, per orientation tag
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright if stored is None else upright.transpose(stored)).save(tmp_path / "a.png", exif=exif)
    check(read_photo(tmp_path / "a.png"), picture)


def test_alpha_lies_on_mid_grey(picture, tmp_path):
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:, 32:] = 0
    alpha[:, 16:32] = 128
    values = np.concatenate([picture, alpha], axis=2)
    Image.fromarray(values).save(tmp_path / "a.png")
    for source in (values, Image.fromarray(values), tmp_path / "a.png", values.astype(np.float32) / 255):
        result = read_photo(source)
        assert (result[:, :16] == picture[:, :16]).all()
        assert (result[:, 32:] == 127).all()
        halfway = (picture[:, 16:32].astype(int) + 127) / 2
        assert np.abs(result[:, 16:32] - halfway).max() <= 1.5


def test_grey_forms(picture, tmp_path):
    grey = picture[..., 0]
    expected = grey[..., None].repeat(3, axis=2)
    wide = grey.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert Image.open(tmp_path / "wide.png").mode.startswith("I")
    for source in (grey, grey[..., None], Image.fromarray(grey), wide, tmp_path / "wide.png", grey / np.float32(255)):
        check(read_photo(source), expected)
    check(read_photo(Image.fromarray(grey / np.float32(255))), expected)  # mode F
    two = np.stack([grey, np.zeros_like(grey)], axis=-1)
    assert (read_photo(two) == 127).all()
    assert (read_photo(Image.fromarray(two, "LA")) == 127).all()


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    values = read_photo(tmp_path / "a.png")
    assert values[0, 0].tolist() == [127, 127, 127]
    assert values[5, 5].tolist() == [10, 200, 30]


def test_cmyk(tmp_path):
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(read_photo(tmp_path / "a.jpg")[20, 20].astype(int) - (255, 0, 0)).max() <= 3


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_photo(tmp_path / "a.webp")[20, 20].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["png", "jpg", "array"])
def test_huge_is_scaled_down(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(photo_module, "MAX_PIXELS", 200_000)
    monkeypatch.setattr(photo_module, "MAX_SIDE", 256)
    image = Image.new("RGB", (1024, 512), (200, 100, 50))
    if kind == "array":
        values = read_photo(np.array(image))
    else:
        image.save(tmp_path / f"a.{kind}")
        values = read_photo(tmp_path / f"a.{kind}")
    assert values.shape == (128, 256, 3)
    assert np.abs(values[64, 128].astype(int) - (200, 100, 50)).max() <= 3


def test_decompression_bomb_is_refused(monkeypatch, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(HyperLoRAError, match=r"bomb\.png has more than .* million pixels: scale it down"):
        read_photo(tmp_path / "bomb.png")


def test_between_warning_and_bomb_there_is_no_warning(monkeypatch, picture, tmp_path, recwarn):
    Image.fromarray(picture).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    check(read_photo(tmp_path / "large.png"), picture)
    assert not [warning for warning in recwarn if warning.category is Image.DecompressionBombWarning]


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_truncated_file(picture, tmp_path, kind):
    path = tmp_path / f"half.{kind}"
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(HyperLoRAError, match=rf"half\.{kind} (is damaged|isn't a picture)"):
        read_photo(path)


def test_files_that_are_no_pictures(tmp_path):
    page = tmp_path / "page.jpg"
    page.write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "empty.png").touch()
    with pytest.raises(HyperLoRAError, match=r"page\.jpg isn't a picture"):
        read_photo(page)
    with pytest.raises(HyperLoRAError, match=r"empty\.png isn't a picture"):
        read_photo(tmp_path / "empty.png")
    with pytest.raises(HyperLoRAError, match=r"nowhere\.png doesn't exist"):
        read_photo(tmp_path / "nowhere.png")
    with pytest.raises(HyperLoRAError, match="is a folder"):
        read_photo(tmp_path)
    with pytest.raises(HyperLoRAError, match=r"Photo 3 \(.*page\.jpg\)"):
        read_photo(page, "Photo 3")


def with_nan():
    values = torch.zeros(64, 64, 3)
    values[3, 4, 1] = torch.nan
    return values


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (with_nan(), "aren't numbers"),
        (torch.full((64, 64, 3), torch.inf), "aren't numbers"),
        (torch.zeros(0, 64, 3), "empty"),
        (torch.zeros(0, 64, 64, 3), "empty"),
        (torch.zeros(3, 64, 64, 3), "one by one"),
        (torch.zeros(3, 64, 64), "channels last"),
        (torch.zeros(64, 64, 7), "1 to 4 channels"),
        (torch.zeros(64, 1, 3), "1 x 64 pixels, too small"),
        (np.zeros((1, 64, 3), np.uint8), "64 x 1 pixels, too small"),
        (Image.new("RGB", (1, 500)), "1 x 500 pixels, too small"),
        (np.full((64, 64, 3), 200.0), "from 200 to 200: floats must lie in 0..1"),
        (np.full((64, 64, 3), -1.0), "floats must lie in 0..1"),
        (np.zeros((64, 64, 3), np.int64), "int64"),
        (17, "is a int: pass a path"),
    ],
)
def test_bad_input_is_named(source, message):
    with pytest.raises(HyperLoRAError, match=message) as caught:
        read_photo(source, "Photo 2")
    assert str(caught.value).startswith("Photo 2 ")


def test_a_batch(picture):
    batch = torch.from_numpy(np.stack([picture, 255 - picture])).float() / 255
    first, second = read_batch(batch, "Photo")
    check(first, picture)
    check(second, 255 - picture)
    with pytest.raises(HyperLoRAError, match=r"no Photo 1: the batch is empty\. Connect a picture\."):
        read_batch(batch[:0], "Photo")
    batch[1, 0, 0, 0] = float("nan")
    with pytest.raises(HyperLoRAError, match="B, picture 2 has values"):
        read_batch(batch, "B, picture")
