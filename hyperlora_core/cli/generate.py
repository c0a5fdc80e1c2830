"""hyperlora generate: photos in, an ordinary LoRA file out."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from ..compress import compress, describe_errors
from ..lora import merge_branches, save_lora
from ..metadata import describe, save_preview
from ..photo import read_photo
from .options import add_lora_arguments, add_photo_arguments, encode


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_photo_arguments(parser)
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE", help="the LoRA file to write (.safetensors)"
    )
    parser.add_argument("--identity", type=Path, metavar="FILE", help="also write the identity, to blend or use later")
    add_lora_arguments(parser)
    parser.add_argument(
        "--rank", type=int, metavar="R", help="compress each layer to this rank; what that loses is told (default: not)"
    )
    parser.add_argument(
        "--preview", type=Path, metavar="PICTURE", help="what LoRA managers show: into the file and, as PNG, beside it"
    )


def run(arguments: Namespace) -> int:
    """Run the command."""
    preview = None if arguments.preview is None else read_photo(arguments.preview)
    encoded, hyper = encode(arguments)
    identity = encoded.identity
    lora = hyper.lora(identity.coefficients)
    base_weight = arguments.base_weight or None
    if base_weight is not None:
        lora = merge_branches(lora, hyper.lora(identity.base_coefficients, "base"), 1.0, base_weight)
    if arguments.rank is not None:
        lora, errors = compress(lora, arguments.rank)
        print(describe_errors(errors, arguments.rank))
    metadata = describe(arguments.output.stem, identity, base_weight, preview)
    # LoRA files are shared in half precision
    save_lora(lora, arguments.output, arguments.naming, metadata, torch.float16)
    print(f"LoRA: {arguments.output}")
    if preview is not None:
        print(f"Preview: {save_preview(preview, arguments.output)}")
    if arguments.identity is not None:
        identity.save(arguments.identity)
        print(f"Identity: {arguments.identity}")
    return 0
