import json
import re
import struct
from pathlib import Path

import pytest

from hyperlora_core import catalog, locate
from hyperlora_core.catalog import load_catalog, pick, readable, shipped_models
from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.weights_check import check_file, check_safetensors

GROUPS = {"first-picture", "more", "base", "comparison"}


def safetensors_bytes(tensors, data, metadata=None):
    header = {**({"__metadata__": metadata} if metadata else {}), **tensors}
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


WHOLE = safetensors_bytes({"a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}, bytes(12), {"kind": "x"})


def test_every_item_is_complete_and_stays_inside_the_models_folder():
    items = load_catalog()
    assert {item.group for item in items.values()} == GROUPS
    places = [file.path for item in items.values() for file in item.files]
    assert len(places) == len(set(places))
    for item in items.values():
        assert item.title and item.purpose and item.licence and item.page.startswith("https://")
        for file in item.files:
            for path in (file.path, *file.also):
                assert ".." not in path and not Path(path).is_absolute() and "\\" not in path
            assert file.url is None or file.url.startswith("https://")
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert file.url is None or file.approximate_size > 0


def test_the_default_is_what_a_first_picture_needs():
    assert [item.name for item in pick([])] == ["fidelity", "clip-vision", "antelopev2"]
    assert readable(pick([])[0].approximate_size) == "3.14 GB"
    with pytest.raises(HyperLoRAError, match=r"'fidelty' isn't in the catalogue.*fidelity, clip-vision"):
        pick(["fidelty"])


def test_a_page_of_the_readme_names_every_item():
    text = (shipped_models() / "README.md").read_text(encoding="utf-8")
    for name in load_catalog():
        assert f"`{name}`" in text


def test_the_catalogue_is_found_in_an_installed_wheel(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "hyperlora_core"
    (package / "models").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    with pytest.raises(HyperLoRAError, match="Install again"):
        shipped_models()
    (package / "models" / "catalog.json").write_text("{}")
    assert shipped_models() == package / "models"


def test_the_authors_tree_and_a_nested_face_pack_are_found(tmp_path, monkeypatch):
    vision = load_catalog()["clip-vision"].files[0]
    monkeypatch.setattr(type(vision), "check", lambda self, place: None)
    assert vision.find([tmp_path]) is None
    theirs = tmp_path / "hyper_lora" / "clip_vit" / "clip_vit_large_14" / "model.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert vision.find([tmp_path]) == theirs
    ours = tmp_path / vision.path
    ours.parent.mkdir()
    ours.touch()
    assert vision.find([tmp_path]) == ours


def test_a_whole_place_is_preferred_to_a_broken_one(tmp_path):
    pack = load_catalog()["antelopev2"].files[0]
    outer = tmp_path / pack.path
    nested = outer / "antelopev2"
    nested.mkdir(parents=True)
    with pytest.raises(HyperLoRAError, match=r"scrfd_10g_bnkps\.onnx"):
        pack.find([tmp_path])
    for name, size in pack.members:
        with (nested / name).open("wb") as file:
            file.truncate(size)  # sparse: costs no disk
    assert pack.find([tmp_path]) == nested


def test_parts_of_one_folder_are_taken_from_one_copy(tmp_path, monkeypatch):
    """The authors' tree with a broken file, and only that one where it belongs: that is no checkpoint."""
    item = load_catalog()["fidelity"]

    def check(self, place):
        if place.read_text() != "whole":
            raise HyperLoRAError(f"{place} is incomplete")

    def put(folder, names, content="whole"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_text(content)

    monkeypatch.setattr(catalog.CatalogFile, "check", check)
    names = [Path(file.path).name for file in item.files]
    ours = tmp_path / Path(item.files[0].path).parent
    theirs = tmp_path / "hyper_lora" / ours.relative_to(tmp_path)
    put(theirs, names)
    put(theirs, names[1:2], "half")
    assert item.find([tmp_path]) == [None] * 4
    put(ours, names[1:2])
    assert item.find([tmp_path]) == [None, ours / names[1], None, None]
    assert locate.find_checkpoint("fidelity", tmp_path) == theirs, "which loading it complains about"
    put(ours, names)
    assert item.find([tmp_path]) == [ours / name for name in names]
    assert locate.find_checkpoint("fidelity", tmp_path) == ours
    put(theirs, names)
    (ours / names[0]).unlink()
    assert item.find([tmp_path]) == [theirs / name for name in names]
    elsewhere = tmp_path / "extra"
    put(elsewhere / ours.relative_to(tmp_path), names)
    (theirs / names[2]).unlink()
    assert item.find([tmp_path, elsewhere])[0].is_relative_to(elsewhere)
    assert item.find([]) == [None] * 4


def test_a_header_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(WHOLE)
    header = check_safetensors(path)
    assert header.tensors == {"a": ("F16", (2, 3))} and header.metadata == {"kind": "x"}


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    raw = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    raw += b" " * (0x0280 - len(raw))
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0")
    assert path.read_bytes().startswith(b"\x80\x02")
    assert check_safetensors(path).tensors == {"a": ("U8", (1,))}


def bad_header(entry, data):
    return safetensors_bytes({"a": entry}, data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(60), "pickled"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "pickled"),
        (b"\x80\x04\x95" + bytes(60), "pickled"),
        (b"GGUF" + bytes(60), "isn't a safetensors file"),
        (WHOLE[:-1], f"incomplete: it holds {len(WHOLE) - 1} of {len(WHOLE)} bytes"),
        (WHOLE[:40], "incomplete.*not even its header"),
        (WHOLE + b"\0", "damaged"),
        (bad_header({"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 10]}, bytes(10)), "tensor a"),
        (bad_header({"dtype": "F16", "shape": [2, 3], "data_offsets": [4, 16]}, bytes(16)), "tensor a"),
        (bad_header({"dtype": "F16", "shape": [2, 3]}, bytes(12)), "header can't be read"),
        (struct.pack("<Q", 9) + b"{not json", "header can't be read"),
    ],
)
def test_what_isnt_safetensors_is_refused_in_a_sentence(tmp_path, content, says):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(HyperLoRAError, match=says) as refused:
        check_safetensors(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_other_files_are_checked_by_size_and_start(tmp_path):
    page, listing = tmp_path / "x.onnx", tmp_path / "x.json"
    page.write_bytes(b"<html>")
    listing.write_bytes(b'{"a": ')
    with pytest.raises(HyperLoRAError, match="web page"):
        check_file(page)
    with pytest.raises(HyperLoRAError, match="isn't JSON"):
        check_file(listing)
    page.write_bytes(b"\x08\x01")
    check_file(page, 2)
    with pytest.raises(HyperLoRAError, match="2 of 3 bytes"):
        check_file(page, 3)
    with pytest.raises(HyperLoRAError, match="There is no file"):
        check_safetensors(tmp_path / "absent.safetensors")
