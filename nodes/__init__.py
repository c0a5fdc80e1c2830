"""All nodes of the pack, in the order of the flow: photos -> faces -> identity -> LoRA -> model -> picture."""

from comfy_api.latest import ComfyExtension, io

from . import beside_authors, folders
from .apply import HyperLoRAApply
from .compare import HyperLoRACompare
from .demo import HyperLoRALoadDemo, offer_photo
from .faces import HyperLoRADetectFaces, HyperLoRALoadFaceAnalysis
from .generate import HyperLoRAGenerateLoRA, HyperLoRALoadModel
from .identity import (
    HyperLoRABlendIdentities,
    HyperLoRAEncodeIdentity,
    HyperLoRALoadIdentity,
    HyperLoRASaveIdentity,
)
from .portrait import HyperLoRAPortrait
from .prompt import HyperLoRATriggerPrompt
from .region import HyperLoRARegion
from .save import HyperLoRASaveLoRA
from .similarity import HyperLoRASimilarity
from .slider import HyperLoRASlider
from .transfer import HyperLoRATransfer


class HyperLoRAExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()
        offer_photo()
        beside_authors.settle_at_start()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            HyperLoRAPortrait,
            HyperLoRALoadModel,
            HyperLoRALoadFaceAnalysis,
            HyperLoRADetectFaces,
            HyperLoRAEncodeIdentity,
            HyperLoRASaveIdentity,
            HyperLoRALoadIdentity,
            HyperLoRABlendIdentities,
            HyperLoRAGenerateLoRA,
            HyperLoRASlider,
            HyperLoRATransfer,
            HyperLoRAApply,
            HyperLoRARegion,
            HyperLoRASaveLoRA,
            HyperLoRATriggerPrompt,
            HyperLoRASimilarity,
            HyperLoRACompare,
            HyperLoRALoadDemo,
            *beside_authors.free_nodes(),
        ]


async def comfy_entrypoint() -> ComfyExtension:
    return HyperLoRAExtension()
