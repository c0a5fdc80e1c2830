"""Where ComfyUI and its models lie."""

from pathlib import Path

import pytest
from toy_hub import WEIGHTS, hub_file

from hyperlora_core import folders
from hyperlora_core.download import download
from hyperlora_core.errors import HyperLoRAError


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
