"""hyperlora prepare: photos of people, searched, judged, cut and captioned for training."""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from tqdm import tqdm

from ..locate import DEFAULT, find_face_pack
from ..train.photo_rules import PhotoRules
from ..train.photo_shards import REPORT
from ..train.prepare import BLIP2, CAPTIONS, FILES, PrepareConfig, prepare_photos
from .progress import following

RULES = {
    "size": (int, "PX", "side of a training picture"),
    "margin": (float, "SHARE", "how much larger the stored picture is, for random crops"),
    "surroundings": (float, "FACES", "the picture holds at most so many faces along its side"),
    "min-face": (int, "PX", "smallest face"),
    "min-share": (float, "SHARE", "smallest face, as a share of the photo's shorter side"),
    "max-yaw": (float, "DEGREES", "furthest turn of the head"),
    "max-roll": (float, "DEGREES", "furthest tilt of the head"),
    "min-sharpness": (float, "LEVELS", "least sharpness of the face; report.csv tells that of every photo kept"),
    "max-enlargement": (float, "FACTOR", "how much a photo's part may be enlarged"),
}

STOPPED = "Stopped; nothing is lost. The same command goes on."


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTOS", help="folders of photos, photos, or WebDataset shards (.tar)"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the prepared photos go")
    parser.add_argument(
        "--people-folders", action="store_true", help="each folder in PHOTOS is a person (default: each photo is)"
    )
    captions = parser.add_argument_group("captions")
    captions.add_argument(
        "--captions",
        type=_captions,
        default=(FILES,),
        metavar="FROM",
        help="files: photo.txt beside photo.jpg, or the shard's own; blip2: described; files,blip2: described where there "
        "is no file (default: files)",
    )
    captions.add_argument("--blip2", metavar="FOLDER", help="BLIP-2 as transformers saves it")
    captions.add_argument("--caption", default="", metavar="TEXT", help="for photos that have no other caption")
    rules = parser.add_argument_group("which photos, and what is cut from them")
    for name, (kind, unit, text) in RULES.items():
        default = getattr(PhotoRules, name.replace("-", "_"))
        rules.add_argument(f"--{name}", type=kind, default=default, metavar=unit, help=f"{text} (default: {default})")
    rules.add_argument("--quality", type=_quality, default=95, metavar="1-100", help="of JPEG (default: %(default)s)")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--models-folder", metavar="DIR", help="ComfyUI's models folder (default: found)")
    machine.add_argument(
        "--face-pack", metavar="DIR", help="folder of the face pack (default: antelopev2 in the models folder)"
    )
    machine.add_argument(
        "--provider",
        default="auto",
        help="onnxruntime provider: cpu, cuda, ..., or auto, which is cpu for several workers (default: auto)",
    )
    machine.add_argument("--device", default="auto", help="for BLIP-2: auto, cpu, cuda (default: auto)")
    machine.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: %(default)s)"
    )
    machine.add_argument(
        "--shard-size", type=float, default=1000, metavar="MB", help="a shard's size (default: %(default)s)"
    )


def run(arguments: Namespace) -> int:
    """Run the command."""
    given = vars(arguments)
    names = [name.replace("-", "_") for name in RULES]
    config = PrepareConfig(
        PhotoRules(**{name: given[name] for name in names}),
        arguments.people_folders,
        arguments.captions,
        arguments.caption,
        arguments.quality,
    )
    face_pack = arguments.face_pack or find_face_pack(DEFAULT, arguments.models_folder)
    captioner = _captioner(arguments)
    with tqdm(desc="photos", unit="B", unit_scale=True, mininterval=1 if sys.stderr.isatty() else 60) as bar:
        follow = following(bar)
        summary = prepare_photos(
            arguments.photos,
            arguments.out,
            face_pack,
            config,
            captioner,
            arguments.provider,
            arguments.workers,
            round(arguments.shard_size * 1e6),
            lambda done, total, kept, rejected: follow(done, total, kept=kept, rejected=rejected),
        )
    total = summary.kept + sum(summary.rejected.values())
    print(f"{summary.kept} of {total} photos prepared in {arguments.out}")
    for reason, count in summary.rejected.items():
        print(f"{count:>8}  {reason}")
    if summary.rejected:
        print(f"Each photo: {Path(arguments.out, REPORT)}")
    return 0


def _captioner(arguments: Namespace) -> object:
    if BLIP2 not in arguments.captions or not arguments.blip2:
        return None  # without a folder the library says what is missing
    from ..train.blip import Blip2

    return Blip2(arguments.blip2, arguments.device)


def _captions(text: str) -> tuple[str, ...]:
    asked = text.split(",")
    if not set(asked) <= set(CAPTIONS):
        raise ArgumentTypeError(f"{text} is none of files, blip2, files,blip2")
    return tuple(name for name in CAPTIONS if name in asked)


def _quality(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise ArgumentTypeError(f"{text} is not in 1 to 100")
    return int(text)
