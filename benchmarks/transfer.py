"""What a person's LoRA is worth on another base, moved and unmoved, on held-out people of the demo.

    python -m benchmarks.transfer --tuned outputs/train/style --people 8 --pictures 2

Targets: the demo's model itself, as a check; a fine-tuned one (--tuned, the folder of `hyperlora train demo-style`;
left out without it); and a pruned one, made here by taking out three of the eleven stacks of transformer blocks,
numbering the rest anew, and training it for --distil steps to answer as the demo's does. Each way paints the same
prompts from the same noise. Unmoved: by the layers' names, what has none left out, as most tools do. Similarity: cosine
to another photo of the person, by a recognition network that steers nothing. The exit status is 1 if the LoRA moved as
the node does it by default is less like the person on a target than the unmoved one.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm, trange

from hyperlora_core import merge_branches, open_encoder
from hyperlora_core.base_layers import TensorLayers
from hyperlora_core.evaluate.grid import Cell, draw_grid
from hyperlora_core.evaluate.instruments import MeasuringNetwork
from hyperlora_core.evaluate.people import drawn_people
from hyperlora_core.evaluate.protocol import SCENES, load_protocol
from hyperlora_core.files import written_aside
from hyperlora_core.locate import demo_folder
from hyperlora_core.lora import LoRA, attention_path, pairs
from hyperlora_core.pipeline import load_pipeline, render
from hyperlora_core.prompt import with_trigger
from hyperlora_core.train import demo_unet
from hyperlora_core.transfer import DIRECTIONS, Bridge, transfer

from .gentle import merged

ID_WEIGHT, BASE_WEIGHT = 0.8, 0.4
SAME, TUNED, PRUNED = "the same", "fine-tuned", "pruned"
NONE, UNMOVED = "without LoRA", "unmoved"
SHARES = (0.25, 0.5, 0.75, 1.0)
# stacks of attentions that stay, by level; they move up in this order
KEPT = {"down_blocks.2": (1,), "mid_block": (), "up_blocks.0": (1, 2)}
SHEET_PEOPLE = 6
TEACHING_SEED = 77  # of the people on whom the pruned model is taught; the measured ones have the protocol's


def prune(unet: torch.nn.Module) -> torch.nn.Module:
    """A copy whose stacks of KEPT stand at the lowest numbers; the others' transformer blocks are gone."""
    pruned = copy.deepcopy(unet)
    for level, kept in KEPT.items():
        stacks = pruned.get_submodule(level).attentions
        order = [*kept, *(number for number in range(len(stacks)) if number not in kept)]
        for number, stack in enumerate([stacks[old] for old in order]):
            stacks[number] = stack
            if number >= len(kept):
                stack.transformer_blocks = torch.nn.ModuleList()
                for tensor in stack.proj_out.parameters():  # what remains of it adds nothing
                    torch.nn.init.zeros_(tensor)
    return pruned


def distil(pipeline, student: torch.nn.Module, people: list, steps: int, batch: int = 8) -> None:
    """Train `student` to answer as the pipeline's UNet does, on noised pictures of `people` with their prompts."""
    pictures = np.stack([picture for person in people for picture in person.renders])
    prompts = [prompt for person in people for prompt in person.prompts[SCENES]]
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = pipeline.vae.encode(pixels).latents * pipeline.vae.config.scaling_factor
        tokens, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    side = pixels.shape[-1]
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32).expand(batch, -1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    student.train()
    for _ in trange(steps, desc="distilling"):
        chosen = torch.randint(len(latents), (batch,), generator=noise)
        times = torch.randint(1000, (batch,), generator=noise)
        kept = pipeline.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents[chosen] + (1 - kept).sqrt() * torch.randn(latents[chosen].shape, generator=noise)
        given = (noisy, times, tokens[chosen])
        conditions = {"text_embeds": pooled[chosen], "time_ids": sizes}
        with torch.no_grad():
            wanted = pipeline.unet(*given, added_cond_kwargs=conditions).sample
        loss = torch.nn.functional.mse_loss(student(*given, added_cond_kwargs=conditions).sample, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()


def by_names(lora: LoRA, layers: TensorLayers) -> LoRA:
    """What of the LoRA finds a layer of its name and size."""
    fitting: LoRA = {}
    for key, down, up, _ in pairs(lora):
        if layers.shapes.get(attention_path(key)) == (up.shape[0], down.shape[1]):
            fitting |= {name: tensor for name, tensor in lora.items() if name.startswith(f"{key}.")}
    return fitting


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=8, help="held-out people (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=2, help="of each person, at most 4 (default: %(default)s)")
    parser.add_argument("--tuned", type=Path, metavar="FOLDER", help="of `hyperlora train demo-style` (default: none)")
    parser.add_argument(
        "--distil", type=int, default=1000, metavar="N", help="steps of teaching (default: %(default)s)"
    )
    parser.add_argument("--teaching-people", type=int, default=32, help="people to teach on (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/transfer"), metavar="FOLDER", help="sheets (default: %(default)s)"
    )
    arguments = parser.parse_args()

    protocol = load_protocol()
    prompts = {SCENES: protocol.prompts[SCENES]}
    people = drawn_people(arguments.people, 1, prompts, protocol.chances)
    encoder = open_encoder("demo")
    measuring = MeasuringNetwork(demo_folder() / "face_measure", encoder.faces)
    pipeline = load_pipeline(demo_folder())
    source = pipeline.unet
    unets = {SAME: source}
    if arguments.tuned is not None:
        unets[TUNED] = demo_unet.trained(arguments.tuned).unet
    unets[PRUNED] = prune(source)
    taught = drawn_people(arguments.teaching_people, 1, prompts, protocol.chances, TEACHING_SEED)
    distil(pipeline, unets[PRUNED], taught, arguments.distil)
    layers = {name: TensorLayers(unet.state_dict()) for name, unet in unets.items()}
    before = TensorLayers(source.state_dict())
    bridges = {(name, share): Bridge(share) for name in unets for share in SHARES}
    ways = (NONE, UNMOVED, *SHARES)
    similarity: dict = {(name, way): [] for name in unets for way in ways}
    rows: dict[str, list] = {name: [] for name in unets}
    moved_to: dict = {}

    for person in tqdm(people, desc="people"):
        identity = encoder.encode(person.photos).identity
        lora = merge_branches(
            encoder.hyper.lora(identity.coefficients),
            encoder.hyper.lora(identity.base_coefficients, "base"),
            ID_WEIGHT,
            BASE_WEIGHT,
        )
        gallery = measuring.embed(person.gallery)
        if gallery is None:
            continue
        for name, unet in unets.items():
            pipeline.unet = unet
            cells = [Cell(person.photos[0], ["photo"])]
            for way in ways:
                if way == NONE:
                    used: LoRA = {}
                elif way == UNMOVED:
                    used = by_names(lora, layers[name])
                else:
                    moved = transfer(lora, before, layers[name], arguments.threshold, bridges[name, way])
                    moved_to[name, way], used = moved, moved.lora
                with merged(unet, used, keep_norms=False) if used else torch.no_grad():
                    for number in range(arguments.pictures):
                        prompt = with_trigger(person.prompts[SCENES][number])
                        options = {"steps": arguments.steps, "cfg": arguments.cfg, "seed": person.noise[number]}
                        picture = np.asarray(render(pipeline, prompt, **options))
                        found = measuring.embed(picture)
                        similarity[name, way].append(0.0 if found is None else float(found @ gallery))
                        if number == 0:
                            cells.append(Cell(picture, [f"{similarity[name, way][-1]:.2f}"]))
            rows[name].append(("", cells))

    print("| target | way | similarity (cosine) | layers moved | of a layer's change kept |\n|---|---|---|---|---|")
    fine = True
    for name in unets:
        means = {way: float(np.mean(similarity[name, way])) for way in ways}
        for way in ways:
            spread = np.std(similarity[name, way]) / len(similarity[name, way]) ** 0.5
            words, counts = way, "- | -"
            if way in SHARES:
                done = [layer.kept for layer in moved_to[name, way].layers if layer.kept is not None]
                words = f"moved, directions {way}"
                counts = f"{len(done)} of {len(moved_to[name, way].layers)} | {np.mean(done):.0%}"
            print(f"| {name} | {words} | {means[way]:.3f} +- {spread:.3f} | {counts} |")
        fine &= name == SAME or means[DIRECTIONS] >= means[UNMOVED]
    for name in unets:
        print(f"\n{name}: {moved_to[name, DIRECTIONS].summary}")
    heads = ["photo", *(way if isinstance(way, str) else f"moved, {way}" for way in ways)]
    for name in unets:
        with written_aside(arguments.out / f"{name.replace(' ', '_')}.png") as aside:
            draw_grid(heads, rows[name][:SHEET_PEOPLE]).save(aside, format="PNG")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
