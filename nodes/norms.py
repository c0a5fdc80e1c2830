"""Gentle merging: a LoRA that leaves the weights' column norms as they are."""

import comfy.lora
from comfy.weight_adapter import LoRAAdapter

from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.norms import column_norms, with_norms


class NormKeepingLoRA(LoRAAdapter):
    """The host's LoRA patch; afterwards each column has the length that it had before this patch.

    The host's own dora_scale in a LoRA file would need those lengths beforehand, without the LoRAs of other nodes, and
    goes part of the way at a strength below 1, so that the lengths aren't kept.
    """

    def calculate_weight(self, weight, *arguments, **options):
        norms = column_norms(weight)
        weight = super().calculate_weight(weight, *arguments, **options)
        return weight.copy_(with_norms(weight, norms))


def merge_keeping_norms(model, lora: LoRA, strength: float):
    """As comfy.sd.load_lora_for_models does it, with the norms kept; the LoRA fits the model."""
    loaded = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {}))
    patched = model.clone()
    patched.add_patches(
        {key: NormKeepingLoRA(adapter.loaded_keys, adapter.weights) for key, adapter in loaded.items()}, strength
    )
    return patched
