"""Arguments that several commands share."""

from argparse import ArgumentParser, Namespace

import torch
from tqdm import tqdm

from ..encode import Encoded, EncodeOptions, parse_weights
from ..locate import DEFAULT, open_encoder
from ..weighting import WEIGHTINGS


def add_photo_arguments(parser: ArgumentParser) -> None:
    """Photos, and how to read them."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of one person")
    parser.add_argument(
        "--face", default="largest", help="largest, centre, left, right, or a number from the left (default: largest)"
    )
    parser.add_argument(
        "--photo-weights", default="", metavar="W,W,...", help="share of each photo (default: all alike)"
    )
    parser.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        default=WEIGHTINGS[0],
        help="which photos count more: the better ones, or those that agree on the person (default: %(default)s)",
    )
    parser.add_argument("--keep-background", action="store_true", help="show the network more than the face")
    parser.add_argument("--grayscale", action="store_true", help="show the network the face without colour")
    add_model_arguments(parser)


def add_model_arguments(parser: ArgumentParser) -> None:
    """Which checkpoint and encoders, and where they compute."""
    parser.add_argument("--checkpoint", default=DEFAULT, help=f"fidelity, edit, demo, or a path (default: {DEFAULT})")
    parser.add_argument("--models-folder", metavar="DIR", help="ComfyUI's models folder (default: found)")
    parser.add_argument(
        "--face-pack", metavar="DIR", help="folder of the face pack (default: antelopev2 in the models folder)"
    )
    parser.add_argument("--clip", metavar="FILE", help="CLIP image tower (default: CLIP ViT-L/14 in the models folder)")
    parser.add_argument(
        "--provider", default="auto", help="onnxruntime provider for faces: auto, cpu, cuda, ... (default: auto)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def encode(arguments: Namespace) -> tuple[Encoded, "object"]:
    """Open the models and encode the photos, with a progress bar; the report is printed."""
    encoder = open_encoder(
        arguments.checkpoint,
        arguments.face_pack,
        arguments.clip,
        arguments.models_folder,
        arguments.provider,
        arguments.device,
    )
    options = EncodeOptions(arguments.face, not arguments.keep_background, arguments.grayscale)
    with tqdm(total=len(arguments.photos), desc="photos", unit="photo", disable=None) as bar:
        encoded = encoder.encode(
            arguments.photos,
            options,
            parse_weights(arguments.photo_weights),
            lambda done, total: bar.update(done - bar.n),
            arguments.weighting,
        )
    print(encoded.report)
    return encoded, encoder.hyper
