"""The lengths of a weight's columns, kept while a LoRA is merged: DoRA's magnitude (arXiv 2402.09353, equation 5).

    W' = m (W + dW) / ||W + dW||_c,  m = ||W||_c

A LoRA then turns what each input adds to the output, and makes none of it louder.
"""

import torch
from torch import Tensor


def column_norms(weight: Tensor) -> Tensor:
    """weight [out, in] -> fp32 [in]: the length of what each input adds to the output."""
    return torch.linalg.vector_norm(weight, dim=0, dtype=torch.float32)


def column_gains(changed: Tensor, norms: Tensor) -> Tensor:
    """What to multiply the columns of `changed` [out, in] with to give them the lengths `norms`: fp32 [in].

    1 for a column that was changed to nothing, which has no direction to stretch.
    """
    now = column_norms(changed)
    return torch.where(now > 0, norms / now, 1.0)


def with_norms(changed: Tensor, norms: Tensor) -> Tensor:
    """`changed` [out, in] with columns of the lengths `norms` [in], in its precision."""
    # by way of fp32: what lengthens a column that the LoRA nearly cancels can be more than fp16 holds
    return (changed.float() * column_gains(changed, norms)).to(changed.dtype)
