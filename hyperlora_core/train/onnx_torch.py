"""A face recognition network from its ONNX file as a torch module, for gradients through it.

Only what such networks are made of is known here: convolutions, norms, activations and a linear layer at the end, as in
insightface's packs and in the demo's. Other operations are refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import packages
from ..errors import HyperLoRAError


class _Node(NamedTuple):
    compute: Callable[..., Tensor]  # of the inputs and the attributes
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


class OnnxNetwork(nn.Module):
    """An ONNX graph of one input and one output, in fp32 and frozen; its weights are buffers.

    Raises HyperLoRAError for a graph of other operations or of several inputs or outputs.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        onnx = packages.require("onnx", "Computing face recognition with gradients")
        graph = onnx.load(str(path)).graph
        self._weights = {tensor.name: f"weight_{i}" for i, tensor in enumerate(graph.initializer)}
        for tensor in graph.initializer:
            value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            self.register_buffer(self._weights[tensor.name], value.float() if value.is_floating_point() else value)
        inputs = [value.name for value in graph.input if value.name not in self._weights]  # old files list weights too
        outputs = [value.name for value in graph.output]
        unknown = {node.op_type for node in graph.node} - set(_OPERATIONS)
        if unknown or len(inputs) != 1 or len(outputs) != 1:
            what = f"the operation {min(unknown)}" if unknown else f"{len(inputs)} inputs and {len(outputs)} outputs"
            raise HyperLoRAError(
                f"{path} has {what}, so that no gradients can be computed through it: set pulid.identity to 0, or "
                "choose another face pack (--faces)."
            )
        self._input, self._output = inputs[0], outputs[0]
        self._nodes = [
            _Node(
                _OPERATIONS[node.op_type],
                list(node.input),
                node.output[0],
                {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute},
            )
            for node in graph.node
        ]

    def forward(self, x: Tensor) -> Tensor:
        """The graph's input, e.g. faces [n, 3, 112, 112] -> its output, e.g. embeddings [n, 512]."""
        values = {self._input: x} | {name: getattr(self, buffer) for name, buffer in self._weights.items()}
        for node in self._nodes:
            values[node.output] = node.compute(*(values[name] for name in node.inputs if name), **node.attributes)
        return values[self._output]


def _conv(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    strides: list[int] = (1, 1),
    pads: list[int] = (0, 0, 0, 0),
    dilations: list[int] = (1, 1),
    group: int = 1,
    kernel_shape: list[int] | None = None,  # said twice by the file
    auto_pad: bytes = b"NOTSET",
) -> Tensor:
    if auto_pad != b"NOTSET":
        raise HyperLoRAError(f"The face recognition pads by {auto_pad.decode()}: choose another face pack (--faces).")
    top, left, bottom, right = pads
    x = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(x, kernel, bias, tuple(strides), 0, tuple(dilations), group)


def _batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5, **_training: Any
) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, shift, eps=epsilon)


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "PRelu": lambda x, slope: torch.where(x > 0, x, slope * x),
    "Relu": functional.relu,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Flatten": lambda x, axis=1: x.reshape(x.shape[:axis].numel(), -1),
    "Gemm": _gemm,
    "Dropout": lambda x, *_ratio, **_seed: x,
    "Identity": lambda x: x,
}
