"""Files from a hub: verified, resumed, replaced, refused."""

import errno
import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_hub import WEIGHTS, Stop, hub_file, names, stop_after

from hyperlora_core import download as module
from hyperlora_core.download import by_disk, download
from hyperlora_core.errors import HyperLoRAError


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


def test_a_network_that_goes_away_is_no_full_disk(hub, offer, tmp_path, monkeypatch):
    offer(hub_file())
    read, calls = http.client.HTTPResponse.read, []

    def breaking(self, *size):
        calls.append(size)
        if size and len([call for call in calls if call]) == 2:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        return read(self, *size)

    monkeypatch.setattr(http.client.HTTPResponse, "read", breaking)
    [one] = download([], tmp_path)
    assert one.path.read_bytes() == WEIGHTS


def test_space_is_counted_on_the_disk_where_a_file_goes(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    (tmp_path / "checkpoints").symlink_to(other)
    files = [(tmp_path / name, 3) for name in ("checkpoints/a", "clip_vision/new/b", "c")]
    assert by_disk(files) == {tmp_path / "checkpoints": 3, tmp_path: 6}


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
