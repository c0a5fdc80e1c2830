"""Arguments that several commands share."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

import torch
from tqdm import tqdm

from ..batch.models import Models
from ..encode import Encoded, EncodeOptions, parse_weights
from ..face.choice import CHOICES
from ..locate import DEFAULT
from ..lora import NAMINGS
from ..weighting import WEIGHTINGS


def add_photo_arguments(parser: ArgumentParser) -> None:
    """Photos, and how to read them."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of one person")
    parser.add_argument(
        "--photo-weights", default="", metavar="W,W,...", help="share of each photo (default: all alike)"
    )
    parser.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        default=WEIGHTINGS[0],
        help="which photos count more: the better ones, or those that agree on the person (default: %(default)s)",
    )
    add_reading_arguments(parser)
    add_model_arguments(parser)


def add_reading_arguments(parser: ArgumentParser) -> None:
    """What of a photo counts."""
    parser.add_argument(
        "--face",
        "--which",
        type=_face,
        default=CHOICES[0],
        metavar="FACE",
        help=f"of several: {', '.join(CHOICES)}, or a number from the left, from 0 (default: %(default)s)",
    )
    parser.add_argument("--keep-background", action="store_true", help="show the network more than the face")
    parser.add_argument("--grayscale", action="store_true", help="show the network the face without colour")


def add_model_arguments(parser: ArgumentParser) -> None:
    """Which checkpoint and encoders, and where they compute."""
    parser.add_argument("--checkpoint", default=DEFAULT, help=f"fidelity, edit, demo, or a path (default: {DEFAULT})")
    add_encoder_arguments(parser)
    add_device_argument(parser)


def add_encoder_arguments(parser: ArgumentParser) -> None:
    """What reads the photos for a checkpoint."""
    parser.add_argument("--models-folder", metavar="DIR", help="ComfyUI's models folder (default: found)")
    parser.add_argument(
        "--face-pack", metavar="DIR", help="folder of the face pack (default: antelopev2 in the models folder)"
    )
    parser.add_argument("--clip", metavar="FILE", help="CLIP image tower (default: CLIP ViT-L/14 in the models folder)")
    parser.add_argument(
        "--provider", default="auto", help="onnxruntime provider for faces: auto, cpu, cuda, ... (default: auto)"
    )


def add_device_argument(parser: ArgumentParser) -> None:
    """Where PyTorch computes."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def add_naming_argument(parser: ArgumentParser) -> None:
    """How a LoRA file names its tensors."""
    parser.add_argument(
        "--naming", choices=NAMINGS, default=NAMINGS[0], help="kohya: ComfyUI and most tools; diffusers: PEFT"
    )


def add_lora_arguments(parser: ArgumentParser) -> None:
    """How a LoRA is written."""
    add_naming_argument(parser)
    parser.add_argument(
        "--base-weight",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="join the base branch in at this weight (default: 0, the face only)",
    )


def chosen_models(arguments: Namespace) -> Models:
    """What `add_model_arguments` asked for."""
    return Models(
        arguments.checkpoint,
        arguments.face_pack,
        arguments.clip,
        arguments.models_folder,
        arguments.provider,
        arguments.device,
    )


def encode_options(arguments: Namespace) -> EncodeOptions:
    """What `add_reading_arguments` asked for."""
    return EncodeOptions(arguments.face, not arguments.keep_background, arguments.grayscale)


def encode(arguments: Namespace) -> tuple[Encoded, "object"]:
    """Open the models and encode the photos, with a progress bar; the report is printed."""
    encoder = chosen_models(arguments).open()
    with tqdm(total=len(arguments.photos), desc="photos", unit="photo", disable=None) as bar:
        encoded = encoder.encode(
            arguments.photos,
            encode_options(arguments),
            parse_weights(arguments.photo_weights),
            lambda done, total: bar.update(done - bar.n),
            arguments.weighting,
        )
    print(encoded.report)
    return encoded, encoder.hyper


def _face(text: str) -> str:
    if text not in CHOICES and not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is none of {', '.join(CHOICES)}, and no number from 0")
    return text
