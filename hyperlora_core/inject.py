"""LoRAs beside a UNet's layers instead of in them: another one for every picture of a batch, and gradients through them.

    y = W x  +  up (down x)

The model's weights never change, so the frozen model is the same model with nothing injected.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import HyperLoRAError
from .lora import diffusers_path


class LowRank(NamedTuple):
    """One layer's LoRA for each of n pictures, its scale (weight * alpha / rank) already in `up`."""

    down: Tensor  # [n, in, r]
    up: Tensor  # [n, r, out]

    def joined(self, other: "LowRank") -> "LowRank":
        """The sum of both products, as one product of both ranks."""
        return LowRank(torch.cat([self.down, other.down], 2), torch.cat([self.up, other.up], 1))


class Injection:
    """Hooks on the linear layers of a diffusers UNet that LoRA keys name.

    `set` decides what the UNet's next calls compute, and stays until it is called again.
    """

    def __init__(self, unet: nn.Module, keys: Iterable[str]):
        layers_per_block = unet.config.layers_per_block
        layers = dict(unet.named_modules())
        self._lora: dict[str, LowRank] = {}
        self._hooks = []
        for key in keys:
            path = diffusers_path(key, layers_per_block)
            if path not in layers:
                raise HyperLoRAError(f"This UNet has no layer {path}, which {key} names: it is another base model.")
            self._hooks.append(layers[path].register_forward_hook(self._hook(key)))

    def set(self, lora: Mapping[str, LowRank] | None = None) -> None:
        """Inject `lora` (key -> LowRank) from now on; None or empty: nothing, the frozen model."""
        self._lora = dict(lora or {})

    def repeat(self, block: nn.Module, *inputs: Any) -> Any:
        """For `unet.enable_gradient_checkpointing`: a block that is computed again during the backward pass has the LoRA
        that it had the first time, whatever was set since."""
        lora = self._lora

        def compute(*inputs: Any) -> Any:
            now, self._lora = self._lora, lora
            try:
                return block(*inputs)
            finally:
                self._lora = now

        return checkpoint(compute, *inputs, use_reentrant=False)

    def remove(self) -> None:
        """Take the hooks off the UNet."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, key: str):
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            lora = self._lora.get(key)
            if lora is None:
                return None
            # (n, t, in) x (n, in, r) x (n, r, out) -> (n, t, out)
            return output + torch.bmm(torch.bmm(inputs[0], lora.down.to(inputs[0])), lora.up.to(inputs[0]))

        return add
