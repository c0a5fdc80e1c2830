"""From a photo to a LoRA: CLIP tower, resampler, mixing, each and all; and from a saved identity."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from hyperlora_core import Identity, VisionEncoder, load_hyperlora
from hyperlora_core.eight_bit import checkpoint_errors
from hyperlora_core.hyperlora import HyperLoRA, where_it_is
from hyperlora_core.vision import clip_pixels

from .bench import Bench, Budget
from .ceilings import PRECISIONS, Work
from .counting import bytes_of, flops_of
from .timing import once, waiter

GROUP = "generate one LoRA"
MOST_GENERATE, MOST_GENERATE_GPU, MOST_SAVED = 1.2, 1.5, 1.3  # x floor
FACE_WIDTH = 512


def measure(bench: Bench) -> None:
    for precision in bench.precisions:
        _in_precision(bench, precision)


def _in_precision(bench: Bench, precision: str) -> None:
    dtype, device = PRECISIONS[precision], bench.device
    hyper = load_hyperlora(bench.checkpoint, device, dtype)
    vision = VisionEncoder.load(bench.clip, device, dtype)
    generator = torch.Generator().manual_seed(bench.seed)
    picture = np.random.default_rng(bench.seed).integers(0, 256, (256, 256, 3), np.uint8)
    pixels = clip_pixels(picture, vision.image_size)[None]  # (1, 3, h, w)
    embeds = torch.nn.functional.normalize(torch.randn(1, FACE_WIDTH, generator=generator), dim=-1)
    tokens = vision.encode(pixels)
    conditions = {
        "clip_tokens": tokens if hyper.uses_clip_tokens else None,
        "id_embeds": embeds if hyper.uses_id_embeds else None,
    }
    coefficients = hyper.coefficients(**conditions)
    mixing = mixing_work(hyper, precision)
    # before anything else reads the basis
    first = once(lambda: hyper.lora(coefficients), waiter(device))

    tower = Work(bytes_of(vision.tower), flops_of(lambda: vision.encode(pixels)), precision)
    networks = [hyper.encoder[name] for name in ("resampler", "id_projector") if name in hyper.encoder]
    weights = sum(bytes_of(network) for network in networks)
    resampler = Work(weights, flops_of(lambda: hyper.coefficients(**conditions)), precision)

    def everything() -> None:
        read = {**conditions, "clip_tokens": vision.encode_pictures([picture])}
        hyper.lora(hyper.coefficients(**(read if hyper.uses_clip_tokens else conditions)))

    bench.time(GROUP, f"CLIP tower, {precision}", lambda: vision.encode(pixels), tower)
    bench.time(GROUP, f"resampler, {precision}", lambda: hyper.coefficients(**conditions), resampler)
    note = "after loading; a mapped file's pages become the process's"
    bench.add(GROUP, f"mixing the basis for the first time, {precision}", first, works=[mixing], note=note)
    bench.time(GROUP, f"mixing the basis, {precision}", lambda: hyper.lora(coefficients), mixing)
    bench.time(
        GROUP,
        f"picture to LoRA, {precision}",
        everything,
        tower,
        resampler,
        mixing,
        budget=Budget(MOST_GENERATE if device.type == "cpu" else MOST_GENERATE_GPU),
        note="the three together; the face is found before, see faces",
    )
    _one_pass(bench, hyper, precision)
    _eight_bit(bench, hyper, coefficients, precision)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "identity.safetensors"
        Identity(coefficients.cpu(), fingerprint=hyper.fingerprint, checkpoint=hyper.name).save(file)

        def from_file() -> None:
            person = Identity.load(file)
            person.require_checkpoint(hyper)
            hyper.lora(person.coefficients)

        bench.time(GROUP, f"LoRA from a saved identity, {precision}", from_file, mixing, budget=Budget(MOST_SAVED))
    if device.type == "cuda":
        _peak_on_gpu(bench, hyper, coefficients, precision)


def mixed_in(hyper: HyperLoRA, precision: str) -> str:
    """The precision in which the basis is multiplied for a LoRA in `precision`."""
    return "fp32" if where_it_is(hyper.basis).type == "cpu" else precision


def mixing_work(hyper: HyperLoRA, precision: str, people: int = 1) -> Work:
    """One pass over the ID branch's basis, and the LoRAs of so many people."""
    basis = {name: tensor for name, tensor in hyper.basis.named_parameters() if "/id_" in name}
    # in 8 bits there are scales too, which are read but not mixed
    values = sum(tensor.numel() for name, tensor in basis.items() if name.endswith("_basis"))
    written = people * values / hyper.basis.size * PRECISIONS[precision].itemsize
    return Work(bytes_of(basis.values()) + written, 2 * people * values, mixed_in(hyper, precision))


def _eight_bit(bench: Bench, hyper: HyperLoRA, coefficients: torch.Tensor, precision: str) -> None:
    """Speed and error of a basis in 8 bits."""
    small = load_hyperlora(bench.checkpoint, bench.device, PRECISIONS[precision], eight_bit=True)
    work = mixing_work(small, precision)
    bench.time(GROUP, f"mixing the basis in 8 bits, {precision}", lambda: small.lora(coefficients), work)
    errors = [100 * error for error in checkpoint_errors(small, hyper).values()]
    bench.add(GROUP, f"a layer's change, off in 8 bits, {precision}", errors, "%", note="median of the layers")


def _one_pass(bench: Bench, hyper: HyperLoRA, precision: str) -> None:
    """What the machine itself needs for bringing the basis through memory once, tensor by tensor, as it lies there; and for
    nothing but bringing it to the precision in which it is mixed.
    """
    basis = [tensor.data for name, tensor in hyper.basis.named_parameters() if "/id_" in name]
    largest = max(tensor.numel() for tensor in basis)
    note = "to compare: each tensor copied to one place, which the cache may hold"
    for name, dtype in (
        ("one pass over the basis", basis[0].dtype),
        ("the same, converting it", PRECISIONS[mixed_in(hyper, precision)]),
    ):
        scratch = torch.empty(largest, dtype=dtype, device=bench.device)

        def copy_all(scratch: torch.Tensor = scratch) -> None:
            for tensor in basis:
                scratch[: tensor.numel()].copy_(tensor.flatten())

        bench.time(GROUP, f"{name}, {precision}", copy_all, Work(moved=bytes_of(basis)), note=note)


def _peak_on_gpu(bench: Bench, hyper: HyperLoRA, coefficients: torch.Tensor, precision: str) -> None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    hyper.lora(coefficients)
    used = torch.cuda.max_memory_allocated() / 1e9
    floor = (bytes_of(hyper.basis) + bytes_of(hyper.encoder)) / 1e9
    bench.add(
        GROUP, f"GPU memory at its peak, {precision}", used, "GB", floor=floor, note="floor: the checkpoint itself"
    )
