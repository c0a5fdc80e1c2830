"""Multiplications and bytes of a network."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops_of(call: Callable[[], object]) -> float:
    """FLOPs of the products and convolutions in a call, which is made once for it.

    In the plain form of attention: the counter doesn't see into the fused ones.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops())


def bytes_of(what: nn.Module | Iterable[Tensor]) -> int:
    """Bytes of a module's parameters, or of tensors."""
    tensors = what.parameters() if isinstance(what, nn.Module) else what
    return sum(tensor.nbytes for tensor in tensors)
