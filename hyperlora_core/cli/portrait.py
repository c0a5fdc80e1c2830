"""hyperlora portrait: a person painted from photos, through diffusers."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from tqdm import tqdm

from ..basis import LoRA
from ..errors import HyperLoRAError
from ..files import written_aside
from ..hyperlora import HyperLoRA
from ..identity import Identity
from ..locate import DEMO, demo_folder, find_file
from ..lora import merge_branches
from ..pipeline import ADAPTER, apply_lora, load_pipeline, render
from ..prompt import with_trigger
from .options import add_photo_arguments, encode


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_photo_arguments(parser)
    parser.add_argument("--prompt", required=True, help="what the picture shows; the trigger words are added")
    parser.add_argument("--negative", default="", help="what it must not show")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="the picture to write")
    parser.add_argument(
        "--base", help="SDXL checkpoint or diffusers folder (default: realvisxl of the models folder, or the demo's)"
    )
    parser.add_argument("--weight", type=float, default=0.8, help="strength of the face (default: 0.8)")
    parser.add_argument(
        "--base-weight", type=float, default=0.4, help="strength of the base branch, where there is one (default: 0.4)"
    )
    parser.add_argument(
        "--guide",
        action="store_true",
        help="leave the person out of the negative prompt: guidance leads to the person, too, for more likeness",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, help="pixels (default: what the model was made for)")
    parser.add_argument("--height", type=int)


def run(arguments: Namespace) -> int:
    """Run the command."""
    if arguments.output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise HyperLoRAError(f"{arguments.output} has no picture's ending: write .png, .jpg or .webp.")
    demo = arguments.checkpoint == DEMO
    base = arguments.base or (demo_folder() if demo else find_file("realvisxl", arguments.models_folder))
    encoded, hyper = encode(arguments)
    lora = person_lora(hyper, encoded.identity, arguments.weight, arguments.base_weight)
    del hyper  # a GPU need not hold both
    pipeline = load_pipeline(base, device=arguments.device)
    apply_lora(pipeline, lora)
    with tqdm(total=arguments.steps, desc="painting", unit="step", disable=None) as bar:
        picture = render(
            pipeline,
            with_trigger(arguments.prompt),
            arguments.negative,
            steps=arguments.steps,
            cfg=arguments.cfg,
            guide=(ADAPTER,) if arguments.guide else (),
            seed=arguments.seed,
            width=arguments.width,
            height=arguments.height,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    with written_aside(arguments.output) as aside:
        picture.save(aside, format=arguments.output.suffix[1:].lower().replace("jpg", "jpeg"))
    print(f"Portrait: {arguments.output}")
    return 0


def person_lora(hyper: HyperLoRA, identity: Identity, weight: float = 0.8, base_weight: float = 0.4) -> LoRA:
    """One LoRA that at weight 1 is the person at these weights."""
    base = hyper.lora(identity.base_coefficients, "base") if identity.base_coefficients is not None else None
    return merge_branches(hyper.lora(identity.coefficients), base, weight, base_weight)
