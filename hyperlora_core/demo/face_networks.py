"""The four small networks of the demo's face packs, in the forms that InsightFace's classes expect.

Pixels come in as InsightFace makes them: RGB, (value - 127.5) / 128, or / 127.5 for recognition.
"""

import torch
from torch import nn

STRIDES = (8, 16, 32)
# two anchors per place and stride: a face belongs to those whose size is within SIZE_RANGE of its own
ANCHOR_SIZES = ((16.0, 32.0), (64.0, 128.0), (256.0, 512.0))


def convolution(operations, width: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1):
    """Convolution and batch norm, "same" padding for odd kernels."""
    padding = dilation * (kernel - 1) // 2
    layer = operations.Conv2d(width, out, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(layer, operations.BatchNorm2d(out))


class Separable(nn.Module):
    """An inverted residual (arXiv 1801.04381): widen, filter each channel, narrow; a shortcut where shapes allow."""

    def __init__(self, width: int, out: int, stride: int = 1, widen: int = 2, dilation: int = 1, operations=nn):
        super().__init__()
        inner = width * widen
        self.body = nn.Sequential(
            convolution(operations, width, inner, 1),
            nn.ReLU(),
            convolution(operations, inner, inner, 3, stride, inner, dilation),
            nn.ReLU(),
            convolution(operations, inner, out, 1),
        )
        self.shortcut = stride == 1 and width == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class Recognition(nn.Module):
    """[n, 3, 112, 112] -> embedding [n, 512]; separable convolutions and a global depthwise one (arXiv 1804.07573)."""

    def __init__(self, width: int = 512, operations=nn):
        super().__init__()
        self.trunk = nn.Sequential(
            convolution(operations, 3, 32, 5, 4),  # [n, 32, 28, 28]
            nn.ReLU(),
            convolution(operations, 32, 80, 3, 2),  # 14 x 14
            nn.ReLU(),
            *(Separable(80, 80, operations=operations) for _ in range(3)),
            Separable(80, 144, 2, operations=operations),  # 7 x 7
            *(Separable(144, 144, operations=operations) for _ in range(3)),
            convolution(operations, 144, 288, 1),
            nn.ReLU(),
        )
        self.pool = operations.Conv2d(288, 288, 7, groups=288, bias=False)
        self.head = nn.Sequential(operations.BatchNorm2d(288), nn.Flatten(), operations.Linear(288, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.trunk(x)))


class Residual(nn.Module):
    """Two full 3 x 3 convolutions with a shortcut (arXiv 1512.03385)."""

    def __init__(self, width: int, operations=nn):
        super().__init__()
        self.body = nn.Sequential(
            convolution(operations, width, width), nn.SiLU(), convolution(operations, width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(x + self.body(x))


class MeasuringRecognition(nn.Module):
    """[n, 3, 112, 112] -> embedding [n, 256]: a plain residual network on patches, unlike `Recognition` in all it can."""

    def __init__(self, width: int = 256, operations=nn):
        super().__init__()
        self.trunk = nn.Sequential(
            convolution(operations, 3, 32, 4, 4),  # patches: [n, 32, 28, 28]
            nn.SiLU(),
            Residual(32, operations),
            convolution(operations, 32, 64, 3, 2),  # 14 x 14
            nn.SiLU(),
            Residual(64, operations),
            convolution(operations, 64, 112, 3, 2),  # 7 x 7
            nn.SiLU(),
            Residual(112, operations),
        )
        self.head = nn.Sequential(
            convolution(operations, 112, 24, 1), nn.SiLU(), nn.Flatten(), operations.Linear(24 * 49, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))


class Landmarks(nn.Module):
    """[n, 3, 96, 96] -> [n, 212]: 106 points as x, y in -1..1 of the crop."""

    def __init__(self, operations=nn):
        super().__init__()
        self.body = nn.Sequential(
            convolution(operations, 3, 24, 5, 4),  # [n, 24, 24, 24]
            nn.ReLU(),
            Separable(24, 24, operations=operations),
            convolution(operations, 24, 64, 3, 2),  # 12 x 12
            nn.ReLU(),
            *(Separable(64, 64, operations=operations) for _ in range(2)),
            Separable(64, 112, 2, operations=operations),  # 6 x 6
            *(Separable(112, 112, operations=operations) for _ in range(2)),
            convolution(operations, 112, 24, 1),
            nn.ReLU(),
            nn.Flatten(),
            operations.Linear(24 * 36, 212),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class HalfSize(nn.Module):
    """A network behind a halving of its picture: what lets `Landmarks` take InsightFace's 192 x 192 crop."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(nn.functional.avg_pool2d(x, 2))


class Detector(nn.Module):
    """SCRFD's form (arXiv 2105.04714): per stride of 8, 16, 32 and of two anchors a score, a box and five points.

    Distances are in units of the anchor's size inside, in units of the stride outside, as InsightFace decodes them.
    """

    def __init__(self, operations=nn):
        super().__init__()
        self.stem = nn.Sequential(convolution(operations, 3, 24, 5, 4), nn.ReLU())
        self.at8 = nn.Sequential(
            convolution(operations, 24, 48, 3, 2), nn.ReLU(), Separable(48, 48, operations=operations)
        )
        self.at16 = nn.Sequential(Separable(48, 64, 2, operations=operations), Separable(64, 64, operations=operations))
        # the dilations let a place see the largest faces, 16 strides wide
        self.at32 = nn.Sequential(
            Separable(64, 96, 2, operations=operations),
            *(Separable(96, 96, dilation=d, operations=operations) for d in (1, 2, 4, 2)),
        )
        self.sides = nn.ModuleList(convolution(operations, width, 48, 1) for width in (48, 64, 96))
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(Separable(48, 48, operations=operations) for _ in range(2)),
                nn.ReLU(),
                operations.Conv2d(48, 2 * 15, 1),
            )
            for _ in STRIDES
        )
        for head in self.heads:
            nn.init.constant_(head[-1].bias, 0.0)
            with torch.no_grad():
                head[-1].bias.view(2, 15)[:, 0] = -4.0  # faces are rare: start from a low score

    def raw(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[n, 3, h, w] -> per stride [n, h / stride, w / stride, 2, 15]: score logit, box (4), points (10)."""
        eight = self.at8(self.stem(x))
        sixteen = self.at16(eight)
        levels = [side(y) for side, y in zip(self.sides, (eight, sixteen, self.at32(sixteen)), strict=True)]
        for i in (1, 0):  # coarse to fine
            levels[i] = levels[i] + nn.functional.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
        out = [head(y) for head, y in zip(self.heads, levels, strict=True)]
        return [y.permute(0, 2, 3, 1).unflatten(3, (2, 15)) for y in out]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One picture [1, 3, h, w] -> 9 outputs: scores [m, 1] of the three strides, boxes [m, 4], points [m, 10]."""
        scores, boxes, points = [], [], []
        for y, stride, sizes in zip(self.raw(x), STRIDES, ANCHOR_SIZES, strict=True):
            unit = y.new_tensor(sizes)[:, None] / stride
            scores.append(y[..., :1].sigmoid().reshape(-1, 1))
            boxes.append((y[..., 1:5] * unit).reshape(-1, 4))
            points.append((y[..., 5:] * unit).reshape(-1, 10))
        return (*scores, *boxes, *points)
