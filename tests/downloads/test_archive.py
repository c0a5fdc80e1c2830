"""Face packs in archives, some of them hostile."""

import io
import os
import re
import stat
import zipfile

import pytest
from toy_hub import Stop, hub_file, names, stop_after

from hyperlora_core.archive import unpack
from hyperlora_core.download import download
from hyperlora_core.errors import HyperLoRAError


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


PACK = {"scrfd.onnx": b"\x08detector", "glintr.onnx": b"\x08recognition"}


@pytest.mark.parametrize("prefix", ["", "antelopev2/", "antelopev2/antelopev2/"])
def test_an_archive_is_unpacked_flat_however_deep_it_was_packed(hub, offer, tmp_path, prefix):
    hub.files["pack.zip"] = zipped({prefix + name: content for name, content in PACK.items()})
    members = tuple((name, len(content)) for name, content in PACK.items())
    offer(hub_file(path="insightface/models/antelopev2", url=f"{hub.address}/release/pack.zip", members=members))
    with pytest.raises(Stop):
        download([], tmp_path, stop_after(0.01))
    [one] = download([], tmp_path)
    folder = tmp_path / "insightface" / "models" / "antelopev2"
    assert one.path == folder and {path.name: path.read_bytes() for path in folder.iterdir()} == PACK
    assert names(tmp_path) == sorted(PACK)
    assert not download([], tmp_path)[0].fresh


def test_an_archive_without_the_needed_files_is_refused(hub, offer, tmp_path):
    hub.files["pack.zip"] = zipped({"other.onnx": b"\x08"})
    offer(hub_file(path="pack", url=f"{hub.address}/pack.zip", members=(("scrfd.onnx", None),)))
    with pytest.raises(HyperLoRAError, match=r"scrfd\.onnx"):
        download([], tmp_path)


def link_member():
    info = zipfile.ZipInfo("pack/link.onnx")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {info: b"/etc/passwd"}


@pytest.mark.parametrize(
    "members",
    [
        {"pack/good.onnx": b"x", "../climbs.onnx": b"x"},
        {"pack/../../climbs.onnx": b"x"},
        {"pack\\..\\..\\climbs.onnx": b"x"},
        {"/absolute.onnx": b"x"},
        {"C:/drive.onnx": b"x"},
        {"C:drive.onnx": b"x"},
        link_member(),
        {"bomb.onnx": bytes(1 << 22)},
        {f"{number}.onnx": b"x" for number in range(1001)},
        {},
        {"folder/": b""},
    ],
)
def test_a_hostile_archive_writes_nothing(tmp_path, members):
    archive = tmp_path / "pack.zip"
    archive.write_bytes(zipped(members))
    with pytest.raises(HyperLoRAError, match=re.escape(str(archive))):
        unpack(archive, tmp_path / "deep" / "folder")
    assert names(tmp_path) == ["pack.zip"]


def test_a_damaged_archive_leaves_the_folder_as_it_was(tmp_path):
    content = bytearray(zipped({"a.onnx": os.urandom(1000)}))
    content[200] ^= 1
    archive, folder = tmp_path / "pack.zip", tmp_path / "pack"
    archive.write_bytes(content)
    folder.mkdir()
    (folder / "a.onnx").write_bytes(b"old")
    with pytest.raises(HyperLoRAError, match="is damaged"):
        unpack(archive, folder)
    assert (folder / "a.onnx").read_bytes() == b"old" and names(tmp_path) == ["a.onnx", "pack.zip"]
    archive.write_bytes(b"no zip")
    with pytest.raises(HyperLoRAError, match="is damaged"):
        unpack(archive, folder)
