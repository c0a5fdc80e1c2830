"""Importing costs next to nothing and never fails because an optional package is missing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from find import find_hosts
from places import ROOT

OPTIONAL = ("insightface", "onnxruntime", "open_clip", "diffusers", "peft", "cv2", "onnx")

BLOCK = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # an import of it now raises ImportError
"""

LIBRARY = (
    BLOCK
    + """
sys.path.append(sys.argv[1])
import hyperlora_core
heavy = [name for name in ("torch", "PIL", "numpy") if name in sys.modules]
assert not heavy, heavy
for name in hyperlora_core.__all__:
    assert getattr(hyperlora_core, name) is not None
try:
    hyperlora_core.FaceAnalyzer.load(hyperlora_core.locate.demo_folder() / "face")
except hyperlora_core.MissingPackageError as error:
    print(error)
"""
)

HOST = (
    BLOCK
    + """
import asyncio, importlib.util
pack = sys.argv[1]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location(pack, pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules[pack] = module
spec.loader.exec_module(module)
async def register():
    extension = await module.comfy_entrypoint()
    await extension.on_load()
    return await extension.get_node_list()
nodes = asyncio.run(register())
assert pack not in sys.path
for node in nodes:
    node.GET_SCHEMA()
print("NODES", len(nodes))
"""
)


def run(code: str, **options) -> str:
    result = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_library_without_optional_packages():
    text = run(LIBRARY)
    assert "Finding faces needs insightface" in text and "pip install insightface" in text


@pytest.mark.host
@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_registration_without_optional_packages(host):
    assert "NODES 28" in run(HOST, cwd=host, env=os.environ | {"PYTHONPATH": str(host)})


def test_the_root_can_be_imported_without_a_host():
    """pytest and packaging tools do so."""
    assert (
        run(f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); __import__({ROOT.name!r}); print('ok')") == "ok\n"
    )


HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution", "node_helpers"}


@pytest.mark.parametrize("file", sorted((ROOT / "hyperlora_core").rglob("*.py")), ids=lambda file: file.stem)
def test_the_library_knows_nothing_of_the_host(file: Path):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            assert name.partition(".")[0] not in HOST_MODULES, f"{file}: {name}"


# what comfy-test's lint refuses: layers that the host's memory management can't see, devices chosen by hand
LAYERS = ("Linear", "LayerNorm", "Conv2d", "Embedding")
LITERALS = (*(f"nn.{layer}(" for layer in LAYERS), ".cu" + "da(", '.to("cu' + "da")


@pytest.mark.parametrize("file", sorted(p for p in ROOT.rglob("*.py") if ".venv" not in str(p)), ids=str)
def test_lint_rules_of_the_host(file: Path):
    text = file.read_text(encoding="utf-8")
    text.encode("cp1252")
    for literal in LITERALS:
        assert literal not in text, literal
