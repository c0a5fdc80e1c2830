"""What the machine can do at most, and how long a step takes at least: the floor."""

from dataclasses import dataclass, field

import torch

from .timing import samples, waiter

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BUFFER = {"cpu": 1 << 28, "cuda": 1 << 30, "mps": 1 << 29}  # bytes; no cache holds them
SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of the matrices; the best rate counts
LONGEST = 0.05  # s of one product, after which no larger one is tried
BEST_OF = 5


@dataclass(frozen=True)
class Work:
    """What a step can't do without; alone it could overlap, so the slower of memory and multiplying counts."""

    moved: float = 0  # bytes read and written
    flops: float = 0  # a multiplication and an addition are two
    precision: str = "fp32"
    uploaded: float = 0  # bytes from main memory to the device

    @property
    def nothing(self) -> bool:
        return not (self.moved or self.flops or self.uploaded)


@dataclass
class Ceilings:
    """Measured rates of one device. `memory`, bytes a second: the faster of copying and reading, which is the stricter."""

    copying: float  # bytes read and written, a second
    reading: float  # bytes read, a second
    multiplying: dict[str, float] = field(default_factory=dict)  # precision -> FLOP/s
    uploading: float | None = None  # bytes a second from main memory; None on the CPU

    @property
    def memory(self) -> float:
        return max(self.copying, self.reading)

    def floor(self, *works: Work) -> float:
        """Seconds that these steps, one after the other, take at least."""
        return sum(
            max(work.moved / self.memory, work.flops / self.multiplying[work.precision] if work.flops else 0)
            + (work.uploaded / self.uploading if work.uploaded and self.uploading else 0)
            for work in works
        )


def measure_ceilings(device: torch.device) -> Ceilings:
    """A second or two on an idle machine."""
    wait = waiter(device)
    source = torch.ones(BUFFER.get(device.type, 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    ceilings = Ceilings(
        copying=2 * source.nbytes / min(samples(lambda: target.copy_(source), BEST_OF, wait)),
        reading=source.nbytes / min(samples(source.sum, BEST_OF, wait)),
    )
    if device.type != "cpu":
        main = torch.ones(source.numel() // 4, pin_memory=device.type == "cuda")
        there = target[: main.numel()]
        ceilings.uploading = main.nbytes / min(samples(lambda: there.copy_(main, non_blocking=True), BEST_OF, wait))
    for name, dtype in PRECISIONS.items():
        ceilings.multiplying[name] = _matrix_rate(device, dtype)
    return ceilings


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square products, at the best size."""
    best, wait = 0.0, waiter(device)
    for side in SIDES:
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = min(samples(lambda a=a: a @ a, BEST_OF, wait))
        best = max(best, 2 * side**3 / seconds)
        if seconds > LONGEST:
            break
    return best
