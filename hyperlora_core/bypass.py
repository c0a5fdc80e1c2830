"""A LoRA beside a model's linear layers instead of in their weights: another person or weight changes nothing in them.

    y = layer(x) + up (down x)

So it works on weights of any format (fp8, GGUF), and there is nothing to undo.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .lora import LoRA, pairs

Products = dict[str, tuple[Tensor, Tensor]]  # layer's path -> down [r, in], up [out, r]


class BypassLoRA:
    """The low-rank products of a LoRA, at weight 1, in one piece of memory: one copy brings all onto a device.

    `paths`: LoRA key -> the layer's path in the model (`diffusion_model.middle_block.1...to_q`). ID and base at their
    weights come as one LoRA from merge_branches. Raises HyperLoRAError for a LoRA that isn't one.
    """

    def __init__(self, lora: LoRA, paths: Mapping[str, str]):
        matrices: list[Tensor] = []
        self.paths: list[str] = []
        for key, down, up, scale in pairs(lora):
            self.paths.append(paths[key])
            matrices += [down, up * scale]
        self._shapes = [matrix.shape for matrix in matrices]
        self._flat = torch.cat([matrix.flatten() for matrix in matrices])

    def to(self, device: torch.device, dtype: torch.dtype) -> Products:
        """The products there, as views of one new tensor, or of this LoRA's own where it is that already."""
        flat = self._flat.to(device, dtype)
        pieces = flat.split([shape.numel() for shape in self._shapes])
        matrices = [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        return dict(zip(self.paths, zip(matrices[::2], matrices[1::2], strict=True), strict=True))


class Attachment:
    """LoRAs that stand beside the layers of one model from now until `remove`; those on one layer add up.

    A model carries one attachment: another one takes its place. `wanted` is asked at each layer and turns all of them
    off while it answers False. Raises AttributeError, before any layer is changed, if the model lacks one.
    """

    def __init__(self, model: nn.Module, loras: Sequence[BypassLoRA], wanted: Callable[[], bool] = lambda: True):
        self._loras, self._wanted = list(loras), wanted
        self._resting: frozenset[int] = frozenset()
        self._shared: frozenset[int] = frozenset()
        self._parts: tuple[bool, ...] = (True,)
        self._masks: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}  # of these parts, see `_mask`
        # on the device and in the precision of what the layers are given: filled by the first of them, see `release`
        self._copies: dict[tuple[torch.device, torch.dtype], list[Products]] = {}
        paths = dict.fromkeys(path for lora in loras for path in lora.paths)
        self._wraps = [_Wrap(self, path, model.get_submodule(path)) for path in paths]
        for wrap in self._wraps:
            wrap.put_on()

    def rest(self, numbers: Iterable[int]) -> None:
        """From now on leave out the LoRAs with these places in the list, and only these."""
        self._resting = frozenset(numbers)

    def share(self, numbers: Iterable[int], parts: Iterable[bool]) -> None:
        """From now on the LoRAs with these places, and only these, count in some of the equal parts that layers are given
        as one batch: in those that say True. Raises ValueError, in a layer, for a batch that can't be so divided."""
        self._shared, before, self._parts = frozenset(numbers), self._parts, tuple(parts)
        if self._parts != before:
            self._masks.clear()

    def release(self) -> None:
        """Free the copies on the device. The next call of a layer makes them again, so call this between runs."""
        self._copies.clear()
        self._masks.clear()

    def remove(self) -> None:
        """Take all off the layers, and free the copies."""
        for wrap in self._wraps:
            wrap.take_off()
        self._loras, self._resting = [], frozenset()
        self.release()

    def add(self, path: str, x: Tensor, output: Tensor) -> Tensor:
        """x [..., in] and the layer's own output [..., out] -> the output with the LoRAs."""
        if len(self._resting) == len(self._loras) or not self._wanted():
            return output
        place = x.device, x.dtype
        if place not in self._copies:
            self._copies[place] = [lora.to(*place) for lora in self._loras]
        for number, products in enumerate(self._copies[place]):
            if path in products and number not in self._resting:
                down, up = products[path]
                # (..., in) x (in, r) x (r, out) -> (..., out)
                added = linear(linear(x, down), up).to(output.dtype)
                if number in self._shared and not all(self._parts):
                    added = added * self._mask(len(added), added).view(-1, *[1] * (added.ndim - 1))
                output = output + added
        return output

    def _mask(self, size: int, like: Tensor) -> Tensor:
        """[size]: 1 where a batch of this size lies in a part that counts, else 0. Made once, since each layer asks, and each
        time would be a copy to the device."""
        place = size, like.device, like.dtype
        if place not in self._masks:
            each, rest = divmod(size, len(self._parts))
            if rest:
                raise ValueError(f"A batch of {size} can't be divided into {len(self._parts)} parts.")
            mask = torch.tensor(self._parts, dtype=like.dtype).repeat_interleave(each)
            self._masks[place] = mask.to(like.device)
        return self._masks[place]


class _Wrap:
    """What stands in the place of a layer's `forward`.

    Not a forward hook, which torch.compile doesn't see come and go (torch._dynamo.config.skip_nnmodule_hook_guards): it
    would leave the person out, or paint the one before.
    """

    def __init__(self, attachment: Attachment, path: str, layer: nn.Module):
        self.attachment, self.path, self.layer = attachment, path, layer

    def put_on(self) -> None:
        while isinstance(top := self.layer.__dict__.get("forward"), _Wrap):
            top.take_off()
        self.below = self.layer.forward
        self.was_own = "forward" in self.layer.__dict__
        self.layer.forward = self

    def take_off(self) -> None:
        # where somebody wrapped this one or put back what was there before it, the layer's forward is theirs to restore
        if self.layer.__dict__.get("forward") is not self:
            return
        if self.was_own:
            self.layer.forward = self.below
        else:
            del self.layer.forward  # the class's own shows again

    def __call__(self, x: Tensor, *args, **kwargs) -> Tensor:
        return self.attachment.add(self.path, x, self.below(x, *args, **kwargs))
