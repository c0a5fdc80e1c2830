import hashlib
import io
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_catalog import safetensors_bytes

from hyperlora_core import download as module
from hyperlora_core import folders
from hyperlora_core.archive import unpack
from hyperlora_core.catalog import CatalogFile, CatalogItem
from hyperlora_core.download import download
from hyperlora_core.errors import HyperLoRAError

SIZE = 4 << 20
WEIGHTS = safetensors_bytes({"a": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}, os.urandom(SIZE))
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The hub's two steps: /resolve/ redirects to storage and tells size and SHA-256; storage serves ranges."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if "/resolve/" in self.path:
            name = self.path.rpartition("/")[2]
            self.send_response(302)
            self.send_header("Location", f"/storage/{name}")
            self.send_header("X-Linked-Size", str(len(server.files[name])))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(server.files[name]).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = server.files.get(self.path.rpartition("/")[2])
        if body is None:
            self.send_error(404)
            return
        body = server.served or body
        start = int(self.headers["Range"][6:-1]) if server.knows_ranges and "Range" in self.headers else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if server.breaks_at and server.breaks_at > start:
            self.wfile.write(body[start : server.breaks_at])
            server.breaks_at = server.breaks_next
            self.close_connection = True
            return
        for at in range(start, len(body), 1 << 18):
            time.sleep(server.pause)
            try:
                self.wfile.write(body[at : at + (1 << 18)])
            except ConnectionError:
                return

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {"model.safetensors": WEIGHTS}
    server.served, server.content_type, server.knows_ranges = None, "application/octet-stream", True
    server.ranges, server.breaks_at, server.breaks_next, server.pause = [], 0, 0, 0
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def hub_file(**changes):
    values = {"path": "clip_vision/ours.safetensors", "size": None, "about": "4 MB", "sha256": None}
    values["url"] = "https://huggingface.co/org/repo/resolve/main/model.safetensors"
    return CatalogFile(**{**values, **changes})


@pytest.fixture
def offer(monkeypatch):
    def put(*files):
        item = CatalogItem("it", "It", "more", "testing", "none", "https://example.org/it", files)
        monkeypatch.setattr(module, "pick", lambda names: [item])

    return put


class Stop(BaseException):
    pass


def stop_after(share):
    def progress(what, done, total):
        if done >= share * total:
            raise Stop

    return progress


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_hub_file_lands_in_its_folder_verified_and_is_skipped_next_time(hub, offer, tmp_path):
    offer(hub_file())
    seen = []
    [one] = download([], tmp_path, lambda *step: seen.append(step))
    assert one.fresh and one.path == tmp_path / "clip_vision" / "ours.safetensors"
    assert one.path.read_bytes() == WEIGHTS and names(tmp_path) == ["ours.safetensors"]
    assert (".ours.safetensors".removeprefix("."), len(WEIGHTS), len(WEIGHTS)) in seen
    assert any(what.startswith("checking") for what, *_ in seen)
    hub.ranges.clear()
    [again] = download([], tmp_path)
    assert not again.fresh and hub.ranges == []


def test_a_stopped_download_goes_on_where_it_stopped(hub, offer, tmp_path):
    offer(hub_file())
    with pytest.raises(Stop):
        download([], tmp_path, stop_after(0.5))
    [part] = tmp_path.rglob("*.part")
    arrived = part.stat().st_size
    assert 0 < arrived < len(WEIGHTS)
    hub.ranges.clear()
    [one] = download([], tmp_path)
    assert hub.ranges == [f"bytes={arrived}-"] * 2
    assert one.path.read_bytes() == WEIGHTS and names(tmp_path) == ["ours.safetensors"]


def test_a_killed_process_leaves_a_part_that_is_resumed(hub, offer, tmp_path):
    hub.pause = 0.1
    code = f"""
from hyperlora_core import download as module
from hyperlora_core.catalog import CatalogFile, CatalogItem
file = CatalogFile("clip_vision/ours.safetensors", {hub_file().url!r}, None, "4 MB", None)
module.pick = lambda names: [CatalogItem("it", "It", "more", "testing", "none", "https://example.org", (file,))]
module.download([], {str(tmp_path)!r})
"""
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    part = tmp_path / "clip_vision" / ".ours.safetensors.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
    arrived = part.stat().st_size
    assert 0 < arrived < len(WEIGHTS) and not (tmp_path / "clip_vision" / "ours.safetensors").exists()
    hub.pause, hub.ranges = 0, []
    offer(hub_file())
    [one] = download([], tmp_path)
    assert hub.ranges[0] == f"bytes={arrived}-" and one.path.read_bytes() == WEIGHTS


def test_a_dropped_connection_is_taken_up_again_by_itself(hub, offer, tmp_path):
    offer(hub_file())
    hub.breaks_at, hub.breaks_next = len(WEIGHTS) // 3, len(WEIGHTS) // 2
    [one] = download([], tmp_path)
    assert one.path.read_bytes() == WEIGHTS and len(hub.ranges) >= 4


def test_a_server_without_ranges_sends_the_whole_again(hub, offer, tmp_path):
    offer(hub_file())
    with pytest.raises(Stop):
        download([], tmp_path, stop_after(0.5))
    hub.knows_ranges = False
    [one] = download([], tmp_path)
    assert one.path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("extra", [b"", b"longer than the published file"])
def test_a_part_that_is_complete_or_too_long_is_settled(hub, offer, tmp_path, extra):
    offer(hub_file())
    part = tmp_path / "clip_vision" / ".ours.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(WEIGHTS + extra)
    [one] = download([], tmp_path)
    assert one.path.read_bytes() == WEIGHTS


def test_a_damaged_transfer_is_refused_and_deleted(hub, offer, tmp_path):
    offer(hub_file())
    hub.served = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    with pytest.raises(HyperLoRAError, match="arrived damaged: its SHA-256 isn't the published one"):
        download([], tmp_path)
    assert names(tmp_path) == []


def test_a_file_that_is_shorter_than_published_never_appears(hub, offer, tmp_path):
    offer(hub_file())
    hub.served = WEIGHTS[:1000]
    with pytest.raises(HyperLoRAError, match=f"1000 bytes arrived instead of {len(WEIGHTS)}"):
        download([], tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("known", [{"size": 5}, {"sha256": "0" * 64}])
def test_a_file_that_changed_since_the_catalogue_is_refused_before_it_is_fetched(hub, offer, tmp_path, known):
    offer(hub_file(**known))
    with pytest.raises(HyperLoRAError, match="isn't the published file any more"):
        download([], tmp_path)
    assert names(tmp_path) == []


def test_a_web_page_is_refused(hub, offer, tmp_path):
    offer(hub_file())
    hub.content_type = "text/html; charset=utf-8"
    with pytest.raises(HyperLoRAError, match="answers with a web page"):
        download([], tmp_path)
    hub.content_type, hub.files["model.safetensors"] = "application/octet-stream", b"<html>sign in</html>"
    with pytest.raises(HyperLoRAError, match=r"arrived damaged.*web page"):
        download([], tmp_path)
    assert names(tmp_path) == []


def test_pickled_weights_under_a_safetensors_name_are_refused(hub, offer, tmp_path):
    offer(hub_file())
    hub.files["model.safetensors"] = b"PK\x03\x04" + bytes(100)
    with pytest.raises(HyperLoRAError, match="pickled"):
        download([], tmp_path)
    assert names(tmp_path) == []


def test_a_broken_file_is_replaced(hub, offer, tmp_path):
    offer(hub_file())
    place = tmp_path / "clip_vision" / "ours.safetensors"
    place.parent.mkdir()
    place.write_bytes(WEIGHTS[:100])
    [one] = download([], tmp_path)
    assert one.fresh and place.read_bytes() == WEIGHTS


def test_offline_the_sentence_says_how_to_fetch_it_by_hand(offer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    offer(hub_file())
    with pytest.raises(HyperLoRAError) as refused:
        download([], tmp_path)
    assert hub_file().url in str(refused.value)
    assert str(tmp_path / "clip_vision" / "ours.safetensors") in str(refused.value)


def test_what_is_fetched_by_hand_is_told_before_anything_is_downloaded(hub, offer, tmp_path):
    offer(hub_file(), hub_file(path="checkpoints/hello.safetensors", url=None))
    with pytest.raises(HyperLoRAError, match=r"in a browser.*example.org/it.*hello\.safetensors"):
        download([], tmp_path)
    assert hub.ranges == []


def test_a_full_disk_and_a_missing_folder_are_told_before_anything_is_downloaded(hub, offer, tmp_path):
    offer(hub_file(about="900000000 GB"))
    with pytest.raises(HyperLoRAError, match="are needed"):
        download([], tmp_path)
    with pytest.raises(HyperLoRAError, match="There is no folder"):
        download([], tmp_path / "nowhere")
    assert hub.ranges == []


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


def comfyui(folder):
    (folder / "models").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


def test_comfyui_is_found_where_it_usually_lies(home, tmp_path, monkeypatch):
    with pytest.raises(HyperLoRAError, match=r"--models-folder.*comfy install"):
        folders.models_folder()
    desktop = comfyui(home / "Documents" / "ComfyUI")
    assert folders.find_comfyui() == desktop
    by_cli = comfyui(home / "comfy" / "ComfyUI")
    assert folders.models_folder() == by_cli / "models"
    around = comfyui(tmp_path / "around")
    package = around / "custom_nodes" / "hyperlora" / "hyperlora_core"
    monkeypatch.setattr(folders, "__file__", str(package / "folders.py"))
    assert folders.find_comfyui() == around
    named = comfyui(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert folders.find_comfyui() == named
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "typo"))
    with pytest.raises(HyperLoRAError, match=r"COMFYUI_PATH is .*typo"):
        folders.find_comfyui()


def test_comfyuis_own_folder_is_taken_for_its_models_folder(tmp_path):
    host = comfyui(tmp_path / "ComfyUI")
    assert folders.models_folder(host) == host / "models" == folders.models_folder(host / "models")
    with pytest.raises(HyperLoRAError, match="There is no folder"):
        folders.models_folder(tmp_path / "typo")


def test_extra_model_paths_are_searched_too(hub, offer, tmp_path):
    host, disk = comfyui(tmp_path / "ComfyUI"), tmp_path / "disk"
    (disk / "models" / "clip_vision").mkdir(parents=True)
    (disk / "models" / "clip_vision" / "ours.safetensors").write_bytes(WEIGHTS)
    settings = host / "extra_model_paths.yaml"
    settings.write_text("comfyui:\n  base_path: ../disk\n  clip_vision: models/clip_vision/\n")
    offer(hub_file())
    [one] = download([], host / "models")
    assert not one.fresh and one.path.samefile(disk / "models" / "clip_vision" / "ours.safetensors")
    settings.write_text("a: [")
    with pytest.raises(HyperLoRAError, match=r"extra_model_paths\.yaml can't be read"):
        folders.search_folders(host / "models")
