"""Which onnxruntime provider is chosen, and what is said when the installed packages stand in the way."""

import logging
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.face import providers
from hyperlora_core.face.providers import CPU, check_session, choose_providers, runtime_conflict, shared_provider

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def machine(monkeypatch):
    """A machine with these providers and distributions, and PyTorch with or without a GPU."""

    def make(available=(CPU,), distributions=("onnxruntime",), gpu=False, hip=None):
        runtime = SimpleNamespace(get_available_providers=lambda: list(available))
        monkeypatch.setattr(providers, "require", lambda module, purpose: runtime)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.version, "hip", hip)

        def distribution(name):
            if name not in distributions:
                raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "distribution", distribution)

    return make


@pytest.mark.parametrize(
    ("available", "asked", "chosen"),
    [
        ([CPU], "auto", [CPU]),
        (["TensorrtExecutionProvider", CUDA, CPU], "auto", [CUDA, CPU]),
        (["AzureExecutionProvider", CPU], "auto", [CPU]),
        (["ROCMExecutionProvider", CPU], "auto", ["ROCMExecutionProvider", CPU]),
        (["MIGraphXExecutionProvider", "ROCMExecutionProvider", CPU], "ROCM", ["MIGraphXExecutionProvider", CPU]),
        (["DmlExecutionProvider", CPU], "auto", ["DmlExecutionProvider", CPU]),
        (["CoreMLExecutionProvider", CPU], "auto", [CPU]),
        (["CoreMLExecutionProvider", CPU], "CoreML", ["CoreMLExecutionProvider", CPU]),
        ([CUDA, CPU], "CPU", [CPU]),
    ],
)
def test_choice(machine, available, asked, chosen):
    machine(available)
    assert choose_providers(asked) == chosen


def test_the_real_onnxruntime_has_a_cpu():
    pytest.importorskip("onnxruntime")
    assert choose_providers("cpu") == [CPU]


def test_missing_provider_says_what_there_is_and_how_to_get_it(machine):
    machine()
    with pytest.raises(HyperLoRAError) as caught:
        choose_providers("cuda")
    text = str(caught.value)
    assert "offers CPUExecutionProvider" in text
    assert "pip uninstall -y onnxruntime " in text and "pip install onnxruntime-gpu" in text


def test_unknown_provider():
    with pytest.raises(HyperLoRAError, match='"tpu" isn\'t a provider: choose auto, cuda'):
        choose_providers("tpu")


def test_an_unused_gpu_is_reported(machine, caplog):
    machine(gpu=True)
    with caplog.at_level(logging.WARNING):
        assert choose_providers() == [CPU]
    assert "run on the CPU" in caplog.text and "pip install onnxruntime-gpu" in caplog.text


def test_an_unused_amd_gpu_is_told_of_its_own_package(machine, caplog):
    machine(gpu=True, hip="6.4")
    choose_providers()
    assert "pip install onnxruntime-migraphx" in caplog.text and "onnxruntime-gpu" not in caplog.text


def test_without_a_gpu_nothing_is_said(machine, caplog):
    machine()
    choose_providers()
    assert not caplog.records


def test_two_distributions_are_in_conflict(machine, caplog):
    machine(distributions=("onnxruntime", "onnxruntime-gpu"), gpu=True)
    text = runtime_conflict()
    assert "onnxruntime-gpu and onnxruntime are installed together" in text
    assert "pip uninstall -y onnxruntime-gpu onnxruntime " in text
    assert text.count("pip install onnxruntime-gpu ") == 1
    choose_providers()
    assert "installed together" in caplog.text
    machine(distributions=("onnxruntime-gpu",))
    assert runtime_conflict() is None


def test_a_provider_that_did_not_start(caplog):
    def session(*running):
        return SimpleNamespace(get_providers=lambda: list(running))

    check_session(session(CUDA, CPU), [CUDA, CPU], required=True)
    check_session(session(CPU), [CPU], required=True)
    assert not caplog.records
    with pytest.raises(HyperLoRAError, match="can't run on CUDAExecutionProvider, only on CPUExecutionProvider"):
        check_session(session(CPU), [CUDA, CPU], required=True)
    check_session(session(CPU), [CUDA, CPU], required=False)
    assert "installed but didn't start" in caplog.text


def test_several_processes_leave_the_gpu_alone_unless_asked():
    assert [shared_provider(name, 4) for name in ("auto", "cuda", "cpu")] == ["cpu", "cuda", "cpu"]
    assert shared_provider("auto", 1) == "auto"
