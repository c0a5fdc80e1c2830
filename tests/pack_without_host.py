"""Our nodes without ComfyUI: their schemas, and their execute() on parts that a test gives them."""

import asyncio
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

from places import ROOT

PACK = "pack_without_host"
ROOTS = ("comfy", "comfy_api", "comfy_execution", "folder_paths")
TYPES = {"Image": "IMAGE", "Model": "MODEL", "LoraModel": "LORA_MODEL", "Mask": "MASK", "Clip": "CLIP", "Vae": "VAE"}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


class Slot(SimpleNamespace):
    """An input or output, with everything that it was declared with."""

    def __init__(self, type: str, id: str, **options):
        super().__init__(type=type, id=id, options=options)


class Io:
    ComfyNode = object
    Schema = SimpleNamespace
    Hidden = SimpleNamespace(prompt="PROMPT", unique_id="UNIQUE_ID")

    def NodeOutput(self, *values, **_):
        return values

    def Custom(self, name: str) -> SimpleNamespace:
        def slot(id=None, **options):
            return Slot(name, id, **options)

        return SimpleNamespace(Input=slot, Output=slot, io_type=name)

    @property
    def MultiType(self) -> SimpleNamespace:
        def slot(id, types, **options):
            return Slot(",".join(type.io_type for type in types), id, **options)

        return SimpleNamespace(Input=slot)

    def __getattr__(self, name: str) -> SimpleNamespace:
        return self.Custom(TYPES.get(name, name.upper()))


class _Module(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class _Patcher:
    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self, is_package=True) if name.partition(".")[0] in ROOTS else None

    def create_module(self, spec):
        module = _Module(spec.name)
        if spec.name == "comfy_api.latest":
            module.io, module.ComfyExtension = Io(), object
        if spec.name == "comfy.weight_adapter":
            module.LoRAAdapter = object
        if spec.name == "comfy.model_patcher":
            module.ModelPatcher = _Patcher
        if spec.name == "comfy.quant_ops":
            module.QuantizedTensor = type("QuantizedTensor", (), {})
        if spec.name == "folder_paths":
            module.get_filename_list = module.get_folder_paths = lambda name: []
        return module

    def exec_module(self, module):
        pass


@contextmanager
def our_pack() -> Iterator[ModuleType]:
    """The pack, loaded as the host loads it; its modules lie in sys.modules under PACK meanwhile."""
    finder, before = _Finder(), set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        spec = importlib.util.spec_from_file_location(
            PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        pack = sys.modules[PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)
        yield pack
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in (PACK, *ROOTS):
                del sys.modules[name]


@contextmanager
def our_nodes() -> Iterator[dict[str, type]]:
    """Our node classes by id."""
    with our_pack() as pack:
        extension = asyncio.run(pack.comfy_entrypoint())
        nodes = asyncio.run(extension.get_node_list())
        yield {node.define_schema().node_id: node for node in nodes}
