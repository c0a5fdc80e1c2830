"""The basis of a HyperLoRA: K low-rank matrices per linear, mixed into a LoRA's (paper, equation 2).

Down and up matrices are mixed apart, each by a row of the coefficients of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")  # of one attention module, in the coefficients' order
SIDES = ("down", "up")
VECTORS_PER_MODULE = len(SIDES) * len(PROJECTIONS)
SCALE = 0.5  # alpha / rank, in both branches
LARGEST_STACK = 32  # tensors, of SDXL at most 134 MB in fp16: room that mixing needs beside the basis

LoRA = dict[str, Tensor]


def lora_key(module: str, projection: str) -> str:
    """The LoRA key of one linear, without its ending: `to_out` is a list in every UNet, so its first entry."""
    return f"{module}_{'to_out_0' if projection == 'to_out' else projection}"


def scale_name(basis_name: str) -> str:
    """What the scale of a basis tensor in 8 bits is called."""
    return f"{basis_name.removesuffix('_basis')}_scale"


class Basis(nn.Module):
    """K low-rank matrices per linear: `{i}.{projection}.{branch}_down_basis` [K, in, r] and `_up_basis` [K, r, out].

    In main memory the tensors stay as they are in the file (memory-mapped, in its precision), and one at a time is brought
    to fp32 while it is mixed, or to the coefficients' precision for a GPU that has no room for all. There they are mixed in
    that precision, many of one shape in one product.
    In 8 bits a tensor has a scale [in, r] or [r, out], see eight_bit.py.
    """

    def __init__(self, tensors: Mapping[str, Tensor], module_names: Sequence[str]):
        super().__init__()
        self.module_names = tuple(module_names)
        self._at_home: dict[str, Tensor] = {}  # where the tensors were in main memory, while they are on a device
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor, requires_grad=False))

    @property
    def keys(self) -> list[str]:
        """The LoRA keys of the linears: rows 2i and 2i + 1 of the coefficients mix down and up of the i-th."""
        return [lora_key(module, projection) for module in self.module_names for projection in PROJECTIONS]

    def tensor(self, module: int, projection: str, branch: str, side: str) -> Tensor:
        return self.get_parameter(_basis_name(module, projection, branch, side))

    @property
    def eight_bit(self) -> bool:
        return scale_name("0/to_q/id_down_basis") in self._parameters

    def has(self, branch: str) -> bool:
        return f"0/to_q/{branch}_down_basis" in self._parameters

    def rank(self, branch: str) -> int:
        return self.tensor(0, "to_q", branch, "down").shape[2]

    @property
    def size(self) -> int:
        """K, the number of matrices that are mixed."""
        return self.tensor(0, "to_q", "id", "down").shape[0]

    def mixed(self, coefficients: Tensor, branch: str) -> dict[str, tuple[Tensor, Tensor]]:
        """coefficients [..., 8 * modules, K] -> LoRA key -> down [..., in, r], up [..., r, out]; gradients go through."""
        products = self.products(coefficients, branch)
        return self._by_key({row: side for rows, mixed in products for row, side in zip(rows, mixed, strict=True)})

    def mix(self, coefficients: Tensor, branch: str) -> LoRA:
        """coefficients [8 * modules, K] -> LoRA of the branch, on the coefficients' device and in their precision."""
        products = ((rows, mixed.unsqueeze(1)) for rows, mixed in self.products(coefficients, branch))
        return self._loras(products, 1)[0]

    def mix_many(self, coefficients: Tensor, branch: str) -> list[LoRA]:
        """coefficients [n, 8 * modules, K] -> n LoRAs, in one pass over the basis."""
        return self._loras(self.products(coefficients, branch), len(coefficients))

    def products(self, coefficients: Tensor, branch: str) -> Iterator[tuple[Sequence[int], Tensor]]:
        """coefficients [..., 8 * modules, K] -> some rows of them, and what each mixes: [rows, ..., in, r] or [rows, ..., r, out].

        Every row comes once, on the coefficients' device.
        """
        names = self._names(branch)
        device, learns = self.get_parameter(names[0]).device, torch.is_grad_enabled()
        # a gradient would keep the stacks, which are copies of the basis
        if is_gpu(device) and device == coefficients.device and not learns:
            yield from self._stacked(names, coefficients)
            return
        # a processor is slow in mixing half precisions, and slower still in converting one to the other
        in_fp32 = coefficients.device.type == "cpu" and not learns
        mixable = coefficients.float() if in_fp32 else coefficients
        convert = _Converter(self, mixable)
        for row, (name, vectors) in enumerate(zip(names, mixable.unbind(-2), strict=True)):
            basis = convert(self.get_parameter(name))  # (K, a, b)
            mixed = (vectors @ basis.flatten(1)).unflatten(-1, basis.shape[1:])  # (..., K) x (K, a * b) -> (..., a, b)
            scale = self._parameters.get(scale_name(name))
            if scale is not None:
                mixed = mixed * scale.to(mixed.device)
            yield [row], (mixed if learns else mixed.to(coefficients.dtype))[None]

    def _stacked(self, names: Sequence[str], coefficients: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Tensors of one shape in one product: the products alone are short beside the calls that start them."""
        for rows in self._rows_alike(names):
            basis = torch.stack([self.get_parameter(names[row]) for row in rows])  # (rows, K, a, b)
            vectors = coefficients[..., rows, :].movedim(-2, 0)  # (rows, ..., K)
            flat = vectors.reshape(len(rows), -1, self.size)  # (rows, n, K)
            mixed = torch.bmm(flat, basis.flatten(2).to(coefficients.dtype))  # (rows, n, a * b)
            if self.eight_bit:
                scales = torch.stack([self.get_parameter(scale_name(names[row])) for row in rows])  # (rows, a, b)
                mixed = (mixed * scales.flatten(1)[:, None]).to(mixed.dtype)
            yield rows, mixed.view(*vectors.shape[:-1], *basis.shape[2:])

    def _rows_alike(self, names: Sequence[str]) -> Iterator[list[int]]:
        """Of one shape and precision, at most LARGEST_STACK at a time."""
        alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for row, name in enumerate(names):
            tensor = self.get_parameter(name)
            alike.setdefault((tensor.shape, tensor.dtype), []).append(row)
        for rows in alike.values():
            for start in range(0, len(rows), LARGEST_STACK):
                yield rows[start : start + LARGEST_STACK]

    def _loras(self, products: Iterator[tuple[Sequence[int], Tensor]], people: int) -> list[LoRA]:
        sides: dict[int, Sequence[Tensor]] = {}  # row -> each person's
        for rows, mixed in products:
            turned = mixed.mT.contiguous().flatten(0, 1)  # (rows, n, a, b) -> (rows * n, b, a)
            # turned together, then copied apart, so that no tensor keeps the others' memory
            apart = torch.unbind_copy(turned) if len(turned) > 1 else (turned[0],)
            for i, row in enumerate(rows):
                sides[row] = apart[i * people : (i + 1) * people]
        loras: list[LoRA] = [{} for _ in range(people)]
        for key, (downs, ups) in self._by_key(sides).items():
            for lora, down, up in zip(loras, downs, ups, strict=True):
                lora[f"{key}.lora_down.weight"], lora[f"{key}.lora_up.weight"] = down, up  # [r, in], [out, r]
                lora[f"{key}.alpha"] = torch.tensor(down.shape[0] * SCALE)
        return loras

    def _by_key(self, sides: Mapping[int, Any]) -> dict[str, tuple[Any, Any]]:
        """LoRA key -> what its down and its up row have."""
        return {key: (sides[2 * i], sides[2 * i + 1]) for i, key in enumerate(self.keys)}

    def _names(self, branch: str) -> list[str]:
        """The branch's tensors, in the order of the coefficients' rows."""
        modules = range(len(self.module_names))
        return [
            _basis_name(i, projection, branch, side) for i in modules for projection in PROJECTIONS for side in SIDES
        ]

    def _apply(self, fn, recurse=True):
        """Moved to a device and back, the tensors come back to where they were: mapped from their file, and nothing is copied."""
        tensors = list(self.parameters())
        here = torch.device("cpu") if tensors[0].is_meta else tensors[0].device  # nothing can be copied from "meta"
        probes = [torch.empty(0, dtype=dtype, device=here) for dtype in {tensor.dtype for tensor in tensors}]
        moved = [fn(probe) for probe in probes]
        if any(after.dtype != probe.dtype for after, probe in zip(moved, probes, strict=True)):
            self._at_home = {}
        elif moved[0].device.type == "cpu":
            if self._at_home and not any(tensor.requires_grad for tensor in tensors):
                for name, tensor in self._at_home.items():
                    self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
                self._at_home = {}
                return self
        elif all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in tensors):
            self._at_home = {name: tensor.data for name, tensor in self.named_parameters()}
        return super()._apply(fn, recurse)


def is_gpu(device: torch.device) -> bool:
    """A function, so that a test can let a CPU pass for one."""
    return device.type != "cpu"


def _basis_name(module: int, projection: str, branch: str, side: str) -> str:
    return f"{module}/{projection}/{branch}_{side}_basis"


class _Converter:
    """Brings one tensor of a basis after another to the coefficients' device and precision.

    All into the same memory, which stays in the processor's cache: fresh memory for each costs more than the mixing.
    """

    def __init__(self, basis: Basis, like: Tensor):
        self.basis, self.like = basis, like
        self.scratch: Tensor | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        as_they_are = (tensor.dtype, tensor.device) == (self.like.dtype, self.like.device)
        if as_they_are or torch.is_grad_enabled():  # gradients need each tensor after the next one is there
            return tensor.to(self.like)
        if self.scratch is None:
            largest = max(each.numel() for each in self.basis.parameters())
            self.scratch = torch.empty(largest, dtype=self.like.dtype, device=self.like.device)
        return (
            self.scratch[: tensor.numel()]
            .view_as(tensor)
            .copy_(
                tensor.to(
                    self.like.device
                )  # first: a copy between devices converts on the sender's, and sends the wider form
            )
        )
