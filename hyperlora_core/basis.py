"""The basis of a HyperLoRA: K low-rank matrices per linear, mixed into a LoRA's (paper, equation 2).

Down and up matrices are mixed apart, each by a row of the coefficients of its own.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")  # of one attention module, in the coefficients' order
SIDES = ("down", "up")
VECTORS_PER_MODULE = len(SIDES) * len(PROJECTIONS)
SCALE = 0.5  # alpha / rank, in both branches
LARGEST_STACK = 64  # tensors; of SDXL's larger ones 170 MB in fp16

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
    to fp32 while it is mixed, on a GPU to the coefficients' precision. There, where calling a product takes longer than the product
    itself, tensors of one shape are laid behind each other and mixed together.
    In 8 bits a tensor has a scale [in, r] or [r, out], see eight_bit.py.
    """

    def __init__(self, tensors: Mapping[str, Tensor], module_names: Sequence[str]):
        super().__init__()
        self.module_names = tuple(module_names)
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

    def products(self, coefficients: Tensor, branch: str) -> Iterator[tuple[Sequence[int], Tensor]]:
        """coefficients [..., 8 * modules, K] -> some rows of them, and what each mixes: [rows, ..., in, r] or [rows, ..., r, out].

        Every row comes once, on the coefficients' device and in their precision; gradients go through.
        """
        names = self._names(branch)
        if self._in_stacks(names[0], coefficients):
            yield from self._stacked(names, coefficients)
            return
        # a processor is slow in mixing half precisions, and slower still in converting one to the other
        learns = torch.is_grad_enabled()
        mixable = coefficients if learns or coefficients.device.type != "cpu" else coefficients.float()
        convert = _Converter(self, mixable)
        for row, (name, vectors) in enumerate(zip(names, mixable.unbind(-2), strict=True)):
            basis = convert(self.get_parameter(name))  # (K, a, b)
            mixed = (vectors @ basis.flatten(1)).unflatten(-1, basis.shape[1:])  # (..., K) x (K, a * b) -> (..., a, b)
            scale = self._parameters.get(scale_name(name))
            yield [row], (mixed if scale is None else mixed * scale.to(mixed.device)).to(coefficients.dtype)[None]

    def mix(self, coefficients: Tensor, branch: str) -> LoRA:
        """coefficients [8 * modules, K] -> LoRA of the branch, on the coefficients' device and in their precision."""
        products = ((rows, mixed.unsqueeze(1)) for rows, mixed in self.products(coefficients, branch))
        return self._loras(products, 1)[0]

    def mix_many(self, coefficients: Tensor, branch: str) -> list[LoRA]:
        """coefficients [n, 8 * modules, K] -> n LoRAs, in one pass over the basis."""
        return self._loras(self.products(coefficients, branch), len(coefficients))

    def _loras(self, products: Iterator[tuple[Sequence[int], Tensor]], people: int) -> list[LoRA]:
        sides: dict[int, Sequence[Tensor]] = {}  # row -> each person's
        for rows, mixed in products:
            turned = mixed.mT.contiguous().flatten(0, 1)  # (rows, n, a, b) -> (rows * n, b, a)
            # turned together, then copied apart, so that no tensor keeps the others' memory
            apart = torch.unbind_copy(turned) if len(turned) > 1 else (turned[0],)
            for i, row in enumerate(rows):
                sides[row] = apart[i * people : (i + 1) * people]
        loras: list[LoRA] = [{} for _ in range(people)]
        for i, key in enumerate(self.keys):
            for lora, down, up in zip(loras, sides[2 * i], sides[2 * i + 1], strict=True):
                lora[f"{key}.lora_down.weight"], lora[f"{key}.lora_up.weight"] = down, up  # [r, in], [out, r]
                lora[f"{key}.alpha"] = torch.tensor(down.shape[0] * SCALE)
        return loras

    def _names(self, branch: str) -> list[str]:
        """The branch's tensors, in the order of the coefficients' rows."""
        modules = range(len(self.module_names))
        return [
            _basis_name(i, projection, branch, side) for i in modules for projection in PROJECTIONS for side in SIDES
        ]

    def _in_stacks(self, name: str, coefficients: Tensor) -> bool:
        """Not where gradients go through: an optimizer holds the tensors as they are."""
        tensor = self.get_parameter(name)
        return is_gpu(tensor.device) and tensor.device == coefficients.device and not tensor.requires_grad

    def _stacked(self, names: Sequence[str], coefficients: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
        for rows in self._rows_alike(names):
            basis = laid_together([self.get_parameter(names[row]) for row in rows])  # (rows, K, a, b)
            vectors = coefficients[..., rows, :].movedim(-2, 0)  # (rows, ..., K)
            flat = vectors.reshape(len(rows), -1, self.size)  # (rows, n, K)
            mixed = torch.bmm(flat, basis.flatten(2).to(coefficients.dtype))  # (rows, n, a * b)
            if self.eight_bit:
                scales = laid_together([self.get_parameter(scale_name(names[row])) for row in rows])  # (rows, a, b)
                mixed = (mixed * scales.flatten(1)[:, None]).to(mixed.dtype)
            yield rows, mixed.view(*vectors.shape[:-1], *basis.shape[2:])

    def _rows_alike(self, names: Sequence[str]) -> Iterator[list[int]]:
        """Of one shape and precision. At most LARGEST_STACK: what is laid together needs its room twice for a moment."""
        alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for row, name in enumerate(names):
            tensor = self.get_parameter(name)
            alike.setdefault((tensor.shape, tensor.dtype), []).append(row)
        for rows in alike.values():
            for start in range(0, len(rows), LARGEST_STACK):
                yield rows[start : start + LARGEST_STACK]


def is_gpu(device: torch.device) -> bool:
    """Of NVIDIA or AMD, where memory is addressed as `laid_together` needs it."""
    return device.type == "cuda"


def laid_together(tensors: Sequence[nn.Parameter]) -> Tensor:
    """Tensors of one shape and precision -> [n, *shape] of the same memory; they are moved there unless they lie so."""
    first, size = tensors[0], tensors[0].nbytes
    begins, start = first.data_ptr(), first.storage_offset() * first.itemsize
    inside = start + len(tensors) * size <= first.untyped_storage().nbytes()
    if not (inside and all(tensor.data_ptr() == begins + i * size for i, tensor in enumerate(tensors))):
        stack = torch.stack([tensor.detach() for tensor in tensors])
        for i, tensor in enumerate(tensors):
            tensor.data = stack[i]
    return first.data.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))


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
        return self.scratch[: tensor.numel()].view_as(tensor).copy_(tensor)
