"""A person in the model's weights: ID and base joined against two LoRAs, and changing the person.

Without ComfyUI on a stand-in that does what its ModelPatcher does with these layers; with it see benchmarks/host.
"""

import torch

from hyperlora_core import load_hyperlora, merge_branches
from hyperlora_core.basis import LoRA
from hyperlora_core.lora import pairs

from .bench import Bench, Budget
from .ceilings import Work
from .loras import id_and_base

GROUP = "apply"
ID_WEIGHT, BASE_WEIGHT = 0.8, 0.4
MOST = 0.6  # of two LoRAs
WEIGHTS = torch.float16  # as SDXL checkpoints are


class StandIn:
    """Weights with patches: each patched weight is computed in fp32 from the original, which is kept."""

    def __init__(self, lora: LoRA, device: torch.device):
        """With every layer that `lora` names, all weights random."""
        self.device = device
        self.weights: dict[str, torch.Tensor] = {}
        for key, down, up, _ in pairs(lora):
            weight = torch.empty(len(up), down.shape[1], dtype=WEIGHTS, device=device)
            self.weights[key] = weight.uniform_(-0.05, 0.05)
        self.patches: dict[str, list[tuple[float, torch.Tensor, torch.Tensor]]] = {}
        self.originals: dict[str, torch.Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights.values())

    @property
    def patch_count(self) -> int:
        return sum(len(patches) for patches in self.patches.values())

    def add_patches(self, lora: LoRA, strength: float) -> None:
        for key, down, up, scale in pairs(lora):
            self.patches.setdefault(key, []).append((strength * scale, down, up))

    def load(self) -> None:
        """Put the patches into the weights."""
        for key, patches in self.patches.items():
            weight = self.originals[key] = self.weights[key]
            patched = weight.to(torch.float32)
            for strength, down, up in patches:
                patched += strength * (up.to(self.device) @ down.to(self.device))  # (out, r) x (r, in)
            self.weights[key] = patched.to(weight.dtype)

    def unload(self) -> None:
        """Take them out, and forget them."""
        self.weights |= self.originals
        self.originals, self.patches = {}, {}


def measure(bench: Bench) -> None:
    hyper = load_hyperlora(bench.checkpoint)
    anna, ben = id_and_base(hyper, bench.seed), id_and_base(hyper, bench.seed + 2)
    model = StandIn(anna[0], bench.device)
    counts = {}

    def joined(person: tuple[LoRA, LoRA] = anna) -> None:
        model.unload()
        model.add_patches(merge_branches(*person, ID_WEIGHT, BASE_WEIGHT), 1.0)
        model.load()
        counts["joined"] = model.patch_count

    def as_two() -> None:
        model.unload()
        for lora, weight in zip(anna, (ID_WEIGHT, BASE_WEIGHT), strict=True):
            model.add_patches(lora, weight)
        model.load()
        counts["two"] = model.patch_count

    def change() -> None:
        change.last = ben if change.last is anna else anna
        joined(change.last)

    change.last = anna
    joined_seconds, two_seconds, changing = bench.alternate(GROUP, [joined, as_two, change])
    rank = sum(len(lora[next(name for name in lora if "lora_down" in name)]) for lora in anna)
    values = sum(weight.numel() for weight in model.weights.values())
    work = Work(2 * model.bytes, 2 * rank * values)
    note = "every weight read and written once"
    layers = float(len(model.weights))
    bench.add(GROUP, "patches, joined", counts["joined"], "patches", floor=layers, note="floor: one per layer")
    bench.add(GROUP, "patches, as two LoRAs", counts["two"], "patches", floor=layers)
    bench.add(GROUP, "into the weights, joined", joined_seconds, works=[work], note=note)
    bench.add(GROUP, "into the weights, as two LoRAs", two_seconds, works=[work])
    bench.add(
        GROUP,
        "patches, joined against two",
        counts["joined"] / counts["two"],
        "x",
        floor=layers / counts["two"],
        budget=Budget(MOST, of_floor=False),
    )
    against = [one / two for one, two in zip(joined_seconds, two_seconds, strict=True)]
    bench.add(GROUP, "seconds, joined against two", against, "x", budget=Budget(MOST, of_floor=False))
    bench.add("change the person", "merge: weights patched again", changing, works=[work])
