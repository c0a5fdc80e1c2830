"""LoRAs of many people in one pass over the basis, against one after the other."""

import torch

from hyperlora_core import load_hyperlora
from hyperlora_core.basis import VECTORS_PER_MODULE

from .bench import Bench, Budget
from .generate import mixing_work

GROUP = "many people"
MOST_BASIS_WORK = 2.0  # x that of one person, for 16
GROUP_SIZE = 64  # people whose LoRAs are in memory at once


def measure(bench: Bench) -> None:
    hyper = load_hyperlora(bench.checkpoint, bench.device, bench.dtype)
    generator = torch.Generator().manual_seed(bench.seed)

    def crowd(count: int) -> torch.Tensor:
        shape = count, VECTORS_PER_MODULE * len(hyper.module_names), hyper.basis.size
        return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1).to(bench.device)

    @torch.no_grad()
    def mix(coefficients: torch.Tensor) -> None:
        for _ in hyper.basis.products(coefficients.to(bench.dtype), "id"):
            pass

    one = crowd(1)[0]
    for count in bench.people:
        group = crowd(min(count, GROUP_SIZE))
        passes = -(-count // GROUP_SIZE)

        def at_once(group=group, passes=passes) -> None:
            for _ in range(passes):
                hyper.loras(group)

        single, mixing, whole, together = bench.alternate(
            f"{GROUP}: {count} at once",
            [lambda: mix(one), lambda group=group: mix(group), lambda: hyper.lora(one), at_once],
        )
        bench.add(
            GROUP,
            f"basis work of {len(group)} at once, against 1",
            [many / alone for many, alone in zip(mixing, single, strict=True)],
            "x",
            budget=Budget(MOST_BASIS_WORK, of_floor=False) if count == 16 else None,
        )
        works = [mixing_work(hyper, bench.precision, len(group))] * passes
        name = f"{count} LoRAs at once" if passes == 1 else f"{count} LoRAs, {GROUP_SIZE} at once"
        bench.add(GROUP, name, together, works=works)
        bench.add(
            GROUP,
            f"{count} LoRAs, one after the other",
            [count * seconds for seconds in whole],
            works=[mixing_work(hyper, bench.precision)] * count,
            note=f"{count} times the seconds of one",
        )
