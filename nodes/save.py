"""A person's LoRA in a file."""

from itertools import count
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..hyperlora_core import HyperLoRAError, Identity, save_lora
from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.compress import compress, describe_errors
from ..hyperlora_core.files import free_name
from ..hyperlora_core.lora import NAMINGS
from ..hyperlora_core.metadata import describe, save_preview
from ..hyperlora_core.photo import read_batch
from .apply import one_lora
from .types import CATEGORY, IdentityType, LegacyLoRA


class HyperLoRASaveLoRA(io.ComfyNode):
    """Also the authors' node of this id: their workflows connect `lora` and know `filename_prefix` only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRASaveLoRA",
            display_name="Save Person's LoRA",
            category=CATEGORY,
            description="Writes an ordinary LoRA file, with metadata, into the output folder; core's Load LoRA finds it in loras/.",
            search_aliases=["export lora", "save lora", "kohya", "diffusers lora"],
            inputs=[
                io.LoraModel.Input("id_lora", optional=True, tooltip="From Generate LoRA."),
                io.String.Input(
                    "filename_prefix", default="loras/person", tooltip="Path and start of the name, below output."
                ),
                io.Combo.Input(
                    "naming",
                    options=list(NAMINGS),
                    default=NAMINGS[0],
                    optional=True,
                    tooltip="kohya: for ComfyUI and most tools. diffusers: for diffusers and PEFT.",
                ),
                io.LoraModel.Input("base_lora", optional=True, tooltip="Joined into the same file at base_weight."),
                io.Float.Input(
                    "base_weight",
                    default=0.5,
                    min=-2,
                    max=2,
                    step=0.05,
                    optional=True,
                    tooltip="Strength of the base LoRA inside the file, which counts beside the weight at which the file is used: "
                    "0.5, used at 0.8, is 0.4.",
                ),
                IdentityType.Input("identity", optional=True, tooltip="Its origin is written into the metadata."),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="What LoRA managers show for the file: its first picture, small in the file and whole beside it.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=128,
                    optional=True,
                    advanced=True,
                    tooltip="Compress the file to this rank; what that loses is shown. 0: as it is "
                    "(8, with a base LoRA 12).",
                ),
                LegacyLoRA.Input(
                    "lora", optional=True, tooltip="Instead of id_lora, in workflows of the authors' pack."
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file lies.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        filename_prefix: str,
        id_lora: LoRA | None = None,
        naming: str = NAMINGS[0],
        base_lora: LoRA | None = None,
        base_weight: float = 0.5,
        identity: Identity | None = None,
        preview=None,
        rank: int = 0,
        lora: LoRA | None = None,
    ) -> io.NodeOutput:
        given = [one for one in (id_lora, lora) if one is not None]
        if len(given) != 1:
            raise HyperLoRAError(
                "Save Person's LoRA writes one LoRA: connect id_lora (from Generate LoRA), or lora in a workflow of the "
                "authors' pack, not both."
            )
        picture = None if preview is None else read_batch(preview[:1], "Preview")[0]
        saved, _ = one_lora(given[0], 1.0, base_lora, base_weight)
        text = []
        if rank > 0:
            saved, errors = compress(saved, rank)
            text.append(describe_errors(errors, rank))
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        joined = base_weight if base_lora is not None and base_weight != 0 else None
        metadata = describe(name, identity, joined, picture)
        names = (Path(folder) / f"{name}_{number:05}_.safetensors" for number in count(counter))
        with free_name(names) as path:
            save_lora(saved, path, naming, metadata)
        if picture is not None:
            save_preview(picture, path)
        return io.NodeOutput(str(path), ui={"text": [f"Saved {path}", *text]})
