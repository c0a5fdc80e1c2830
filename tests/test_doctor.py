import importlib.metadata
import json
import struct
import subprocess
import sys
from argparse import Namespace
from types import ModuleType

import pytest
from test_catalog import WHOLE

from hyperlora_core import doctor
from hyperlora_core.catalog import load_catalog
from hyperlora_core.cli import doctor as command
from hyperlora_core.errors import HyperLoRAError

INSTALLED = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "numpy": "2.0.0",
    "safetensors": "0.5.0",
    "einops": "0.8.0",
    "pillow": "11.0.0",
    "tqdm": "4.0.0",
    "insightface": "1.0",
    "onnxruntime": "1.20.0",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up machine: its packages, a ComfyUI 0.33 with the pack in it, probes that succeed."""
    host = tmp_path / "ComfyUI"
    (host / "custom_nodes" / "hyperlora-zero-shot" / "hyperlora_core").mkdir(parents=True)
    (host / "models" / "checkpoints").mkdir(parents=True)
    (host / "comfyui_version.py").write_text('# generated\n__version__ = "0.33.0"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    packages = dict(INSTALLED)

    def version(name):
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    providers = ModuleType("hyperlora_core.face.providers")
    providers.runtime_conflict = lambda: None
    monkeypatch.setitem(sys.modules, "hyperlora_core.face.providers", providers)
    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["numpy", "torch==2.11.0"])
    monkeypatch.setattr(doctor, "_probe", lambda code: ("CUDA", ""))
    machine = ModuleType("machine")
    machine.host, machine.models, machine.packages, machine.providers = host, host / "models", packages, providers
    return machine


def sparse(path, size, start=b"\x08"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def whole_start(size):
    """The start of a safetensors file of that size: a header of 128 bytes, one tensor that fills the rest."""
    count = size - 8 - 128
    raw = json.dumps({"a": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return struct.pack("<Q", 128) + raw.ljust(128)


def fill(models):
    """Whole-looking files for a first picture, and one checkpoint; sparse where they are big."""
    for name in ("fidelity", "clip-vision", "antelopev2"):
        for file in load_catalog()[name].files:
            for member, size in file.members:
                sparse(models / file.path / member, size)
            if file.path.endswith(".json"):
                sparse(models / file.path, 2, b"{}")
            elif file.path.endswith(".safetensors"):
                sparse(models / file.path, file.size or len(WHOLE), whole_start(file.size) if file.size else WHOLE)
    (models / "checkpoints" / "base.safetensors").write_bytes(WHOLE)


def one(findings, words):
    [finding] = [finding for finding in findings if words in finding.what]
    return finding


def test_a_machine_with_everything_has_nothing_to_mend(machine, capsys):
    fill(machine.models)
    findings = doctor.examine()
    assert [finding for finding in findings if finding.level == "fail"] == []
    assert command.run(Namespace(models_folder=None)) == 0
    assert "Nothing to mend." in capsys.readouterr().out


def test_every_failing_line_has_the_command_that_mends_it(machine, capsys):
    machine.packages.clear()
    (machine.host / "comfyui_version.py").write_text("__version__ = '0.24.9'")
    findings = doctor.examine()
    failing = [finding for finding in findings if finding.level == "fail"]
    assert len(failing) >= 10 and all(finding.remedy for finding in failing)
    assert "pip install einops" in one(findings, "einops isn't installed").remedy
    assert "0.25.0 or newer" in one(findings, "ComfyUI 0.24.9").what
    assert command.run(Namespace(models_folder=None)) == 1
    printed = capsys.readouterr().out
    assert "FAIL  torch isn't installed\n      -> " in printed and f"{len(failing)} to mend." in printed


def test_it_works_when_torch_cannot_be_imported(machine, monkeypatch):
    machine.packages.pop("torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "hyperlora_core.face.providers")
    findings = doctor.examine()
    assert [finding.level for finding in findings if finding.what == "torch isn't installed"] == ["fail"]
    assert one(findings, "insightface 1.0").level == "ok"


def test_a_package_that_is_installed_but_broken_fails_with_its_last_line(machine, monkeypatch):
    monkeypatch.setattr(doctor, "_probe", lambda code: ("", "ImportError: DLL load failed"))
    findings = doctor.examine()
    assert one(findings, "torch 2.11.0 can't be imported: ImportError: DLL load failed").level == "fail"
    assert one(findings, "insightface 1.0 can't be imported").level == "fail"


def test_a_probe_survives_a_crash_of_what_it_imports(monkeypatch):
    assert doctor._probe("print('noise'); print('CUDA')") == ("CUDA", "")
    assert doctor._probe("raise ValueError('binary incompatibility')") == ("", "ValueError: binary incompatibility")
    assert doctor._probe("import os; os._exit(7)") == ("", "it ends with code 7")

    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired(arguments, options["timeout"])

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert doctor._probe("")[1].startswith("it takes longer")


def test_torchvision_for_another_torch_fails(machine):
    machine.packages["torch"] = "2.10.0+cu128"
    finding = one(doctor.examine(), "torchvision 0.26.0")
    assert finding.level == "fail" and "belongs to torch 2.11.0" in finding.what
    assert finding.remedy.endswith('"torchvision==0.25.*" --index-url https://download.pytorch.org/whl/cu128')


def test_two_onnxruntimes_and_an_old_insightface_fail(machine):
    machine.packages.update({"onnxruntime-gpu": "1.20.0", "insightface": "0.6.2"})
    machine.providers.runtime_conflict = lambda: "both are installed. Run: python -m pip uninstall -y both"
    findings = doctor.examine()
    assert one(findings, "both are installed.").remedy == "python -m pip uninstall -y both"
    assert one(findings, "insightface 0.6.2: 0.7.3").remedy.endswith("--upgrade insightface")


def test_missing_broken_and_partly_missing_weights_fail(machine):
    findings = doctor.examine()
    finding = one(findings, "HyperLoRA v1 fidelity isn't in")
    assert finding.level == "fail" and "download fidelity --models-folder" in finding.remedy
    assert one(findings, "HyperLoRA v1 edit: not there").level == "ok"
    assert one(findings, "no checkpoint").level == "warn"
    fill(machine.models)
    (machine.models / "hyper_lora" / "sdxl_hyper_id_lora_v1_fidelity" / "resampler.safetensors").unlink()
    (machine.models / "clip_vision" / "clip-vit-large-patch14.safetensors").write_bytes(b"<html>")
    findings = doctor.examine()
    assert "resampler.safetensors missing" in one(findings, "HyperLoRA v1 fidelity isn't whole").what
    assert "web page" in one(findings, "CLIP ViT-L/14 (OpenAI)").what
    assert one(findings, "InsightFace AntelopeV2: ").level == "ok"


def test_a_full_disk_fails(machine, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Namespace(free=2e9))
    finding = one(doctor.examine(), "2 GB free")
    assert finding.level == "fail" and "6.21 GB are needed" in finding.what


def test_comfyui_missing_misnamed_or_without_the_pack(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "typo"))
    assert one(doctor.examine(machine.models), "which isn't a ComfyUI folder").remedy == "unset COMFYUI_PATH"
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setattr(doctor.folders, "find_comfyui", lambda: None)
    findings = doctor.examine()
    assert one(findings, "weights weren't looked for").remedy.endswith("--models-folder DIR")
    monkeypatch.setattr(doctor.folders, "find_comfyui", lambda: machine.host)
    (machine.host / "custom_nodes" / "hyperlora-zero-shot").rename(tmp_path / "away")
    finding = one(doctor.examine(), "the nodes aren't in")
    assert finding.level == "warn" and finding.remedy
    for name in ("one", "two"):
        (machine.host / "custom_nodes" / name / "hyperlora_core").mkdir(parents=True)
    assert one(doctor.examine(), "2 times").level == "fail"
    (machine.host / "comfyui_version.py").unlink()
    assert one(doctor.examine(), "its version can't be read").level == "warn"


def test_a_folder_that_isnt_there_is_a_finding_not_an_exception(machine, tmp_path):
    assert "There is no folder" in one(doctor.examine(tmp_path / "typo"), "weights weren't looked for").what


def test_unreadable_extra_paths_are_a_finding(machine):
    (machine.host / "extra_model_paths.yaml").write_text("a: [")
    finding = one(doctor.examine(), "extra_model_paths.yaml can't be read")
    assert finding.level == "warn"
    with pytest.raises(HyperLoRAError):
        doctor.folders.search_folders(machine.models)
