"""hyperlora evaluate: how well a method works, measured on drawn people whom no network has seen, or on photos."""

import dataclasses
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm import tqdm

from ..errors import HyperLoRAError
from ..evaluate.protocol import (
    ALONE,
    FULL,
    ID_ONLY,
    NONE,
    PROMPTS,
    SCENES,
    SHIPPED,
    Method,
    Protocol,
    chosen_methods,
    load_protocol,
)
from ..precision import fast_half
from . import queue
from .options import add_device_argument, add_encoder_arguments
from .workflow_method import read_workflow_method

if TYPE_CHECKING:
    from ..encode import PhotoEncoder
    from ..evaluate.instruments import Instruments
    from ..evaluate.paint import Painter, PersonPainter
    from ..evaluate.people import Person
    from ..evaluate.run import Progress

PRECISIONS = AUTO, BF16, _ = ("auto", "bf16", "fp32")
SEEDS = "1-4"  # four pictures of a prompt, as in the paper


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/evaluate"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--people", type=int, default=100, metavar="N", help="held-out people (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, prompts and noise (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help='default: all of the protocol; "none" always')
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another HyperLoRA, as a row of its own; may be repeated. With --photos: fidelity, edit, or a path",
    )
    parser.add_argument(
        "--as",
        nargs="+",
        dest="ways",
        metavar="NAME",
        help=f"the methods by which --checkpoint's are measured (default: {FULL}; with --photos {ID_ONLY})",
    )
    parser.add_argument("--protocol", type=Path, default=SHIPPED, metavar="FILE", help="prompts and methods, as JSON")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--id-weight", type=float, help="instead of the methods' own, where that isn't 0")
    parser.add_argument("--base-weight", type=float, help="likewise")
    parser.add_argument("--batch", type=int, metavar="N", help="pictures at once (default: 16; with --photos 1)")
    add_device_argument(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=AUTO,
        help="of painting on the CPU; auto: bf16 where the processor is fast in it, else fp32 (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--overwrite", action="store_true", help="paint again what was painted with other settings")
    photos = parser.add_argument_group("people in photos, in place of drawn ones")
    photos.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="each folder in it is a person, and so is each photo there"
    )
    photos.add_argument(
        "--pictures",
        action="append",
        default=[],
        metavar="NAME=FOLDER[#N]",
        help="a method's pictures, PERSON_p01_s1.png as hyperlora queue names them (#N: the Nth of each job); the name "
        f'"{NONE}" is for those without a person',
    )
    photos.add_argument(
        "--workflow",
        action="append",
        default=[],
        metavar="NAME=FILE[#N]",
        help="a method in ComfyUI: a workflow in API format, run for every person, prompt and seed as hyperlora queue does "
        f'(#N: the Nth picture of each job); "{NONE}" runs without photos',
    )
    photos.add_argument(
        "--server", nargs="+", action="extend", metavar="URL", help=f"for --workflow (default: {queue.SERVER})"
    )
    photos.add_argument("--base", metavar="FILE", help="SDXL checkpoint or diffusers folder: paint --checkpoint's here")
    photos.add_argument(
        "--arc2face", metavar="FOLDER", help="Arc2Face's weights (arc2face/, encoder/, arcface.onnx): a row of its own"
    )
    photos.add_argument("--sd15", metavar="FOLDER", help="Stable Diffusion 1.5, in diffusers' form, for --arc2face")
    photos.add_argument("--prompts", type=Path, default=PROMPTS, metavar="FILE", help="default: ten of ours")
    photos.add_argument("--seeds", metavar="SEEDS", help=f"1-4, or 1,2,10-20 (default: the pictures', else {SEEDS})")
    photos.add_argument(
        "--recognition",
        metavar="FILE",
        help="the network of ID Sim, .onnx or TorchScript, such as CurricularFace (default: the face pack's, with a warning)",
    )
    photos.add_argument(
        "--measuring-clip", metavar="FILE", help="whole CLIP with image and text tower (default: --clip's, or ViT-L/14)"
    )
    add_encoder_arguments(photos)


class Setup(NamedTuple):
    """What an evaluation is made of."""

    people: list["Person"]
    methods: list[Method]
    protocol: Protocol
    painter: "Painter | None"
    person_painters: "dict[str, PersonPainter]"
    instruments: "Instruments"
    settings: dict[str, object]


def run(arguments: Namespace) -> int:
    """Run the command."""
    from ..evaluate.report import write_report
    from ..evaluate.run import Evaluation

    if arguments.batch is None:
        arguments.batch = 16 if arguments.photos is None else 1
    if min(arguments.steps, arguments.batch) < 1:
        raise HyperLoRAError(f"--steps {arguments.steps} and --batch {arguments.batch} must be at least 1.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with _bars() as progress:
        setup = _drawn(arguments, progress) if arguments.photos is None else _photographed(arguments)
        evaluation = Evaluation(
            setup.people,
            setup.methods,
            setup.protocol,
            setup.painter,
            setup.person_painters,
            setup.instruments,
            arguments.out,
            arguments.seed,
            arguments.batch,
            arguments.overwrite,
        )
        results = evaluation.run(progress)
    settings = {
        **setup.settings,
        **(setup.painter.settings | {"batch": arguments.batch} if setup.painter else {}),
        "methods": [vars(method) for method in setup.methods],
    }
    print(write_report(arguments.out, results, setup.protocol.comparisons, settings, arguments.seed))
    print(f"Written to {arguments.out}: report.html, table.md, results.json, results.csv, grid_1.png ...")
    return 0


def _drawn(arguments: Namespace, progress: "Progress") -> Setup:
    from ..evaluate.hyperlora import HyperLoRAPainter
    from ..evaluate.people import drawn_people
    from ..locate import demo_folder

    if arguments.pictures or arguments.workflow or arguments.base or arguments.arc2face or arguments.sd15:
        raise HyperLoRAError(
            "--pictures, --workflow, --base, --arc2face and --sd15 go with --photos FOLDER: name the folder of the people's photos."
        )
    protocol = load_protocol(arguments.protocol)
    methods = chosen_methods(
        protocol,
        arguments.methods,
        _checkpoints(arguments),
        arguments.ways or [FULL],
        arguments.id_weight,
        arguments.base_weight,
    )
    painter = _painter(demo_folder(), arguments)
    encoders, instruments = _open_demo(methods, arguments.device)
    painters = {name: HyperLoRAPainter(encoder, painter) for name, encoder in encoders.items()}
    people = drawn_people(
        arguments.people,
        max(1, *(method.photos for method in methods)),
        protocol.prompts,
        protocol.chances,
        arguments.seed,
        lambda done, total: progress("drawing people", done, total),
    )
    return Setup(people, methods, protocol, painter, painters, instruments, {"seed": arguments.seed})


def _photographed(arguments: Namespace) -> Setup:
    from ..evaluate.arc2face import ARC2FACE, PROMPT, Arc2Face
    from ..evaluate.hyperlora import HyperLoRAPainter
    from ..evaluate.photo_people import given_methods, photographed_people, read_kinds, seeds_of
    from ..locate import DEFAULT
    from ..queue.jobs import parse_seeds, read_prompts

    workflows = [read_workflow_method(text, arguments.out, arguments.prompts) for text in arguments.workflow]
    methods = given_methods([*arguments.pictures, *(workflow.pictures for workflow in workflows)])
    if bool(arguments.arc2face) != bool(arguments.sd15):
        raise HyperLoRAError(
            "--arc2face FOLDER and --sd15 FOLDER go together: its own weights, and what they stand on."
        )
    if not (methods or arguments.base or arguments.arc2face):
        raise HyperLoRAError(
            "There is nothing to measure: give --pictures NAME=FOLDER or --workflow NAME=FILE, or --base FILE or --arc2face "
            "FOLDER to paint here."
        )
    if arguments.methods or (arguments.checkpoint and not arguments.base):
        raise HyperLoRAError(
            "With --photos, pictures are painted by --base FILE, --checkpoint NAME=FOLDER and --as NAME."
        )
    prompts = read_prompts(arguments.prompts)
    if workflows and not arguments.seeds:
        arguments.seeds = SEEDS
    seeds = parse_seeds(arguments.seeds) if arguments.seeds else seeds_of(methods) or parse_seeds(SEEDS)
    protocol = load_protocol(arguments.protocol)
    sets = {**protocol.prompts, SCENES: [[prompt] for prompt in prompts for _ in seeds], ALONE: [[PROMPT]] * len(seeds)}
    if arguments.base:
        painted = chosen_methods(
            dataclasses.replace(protocol, prompts=sets),
            [],
            _checkpoints(arguments) or {DEFAULT: DEFAULT},
            arguments.ways or [ID_ONLY],
            arguments.id_weight,
            arguments.base_weight,
        )
        given = {method.name for method in methods}
        methods = [method for method in painted if method.name != NONE or NONE not in given] + methods
        _refuse_twice(painted, given - {NONE})
    if arguments.arc2face:
        row = Method(ARC2FACE, 1, 0.0, 0.0, False, ALONE, checkpoint=arguments.arc2face)
        _refuse_twice([row], {method.name for method in methods})
        methods.append(row)
    rows = [method.name for method in methods if method.name != NONE]
    protocol = dataclasses.replace(
        protocol,
        prompts=sets,
        comparisons=tuple((rows[0], other) for other in rows[1:]),
        kinds=read_kinds(arguments.prompts),
    )
    people = photographed_people(
        arguments.photos,
        prompts,
        seeds,
        max(1, *(method.photos for method in methods)),
        {name: tuple(choices[0] for choices in of) for name, of in protocol.prompts.items() if name != SCENES},
    )
    encoders, instruments = _open(methods, arguments)
    for workflow in workflows:  # last: what else is wrong shows at once
        workflow.run(arguments)
    painter = None
    if arguments.base:
        painter = _painter(arguments.base, arguments)
    painters = {name: HyperLoRAPainter(encoder, painter) for name, encoder in encoders.items()}
    settings = {"seeds": " ".join(map(str, seeds)), "prompts": prompts}
    if arguments.arc2face:
        arc2face = Arc2Face.load(arguments.arc2face, arguments.sd15, instruments.faces.analyzer, arguments.device)
        painters[arguments.arc2face], settings["Arc2Face"] = arc2face, arc2face.settings
    return Setup(people, methods, protocol, painter, painters, instruments, settings)


def _painter(base: str | Path, arguments: Namespace) -> "Painter":
    from ..evaluate.paint import Painter
    from ..pipeline import load_pipeline

    pipeline = load_pipeline(base, device=arguments.device)
    if arguments.precision == AUTO:
        half = fast_half(pipeline.device)
    else:
        half = torch.bfloat16 if arguments.precision == BF16 and pipeline.device.type == "cpu" else None
    return Painter(pipeline, arguments.steps, arguments.cfg, autocast=half)


def _refuse_twice(painted: list[Method], others: set[str]) -> None:
    """Refuse two rows of one name."""
    if both := [method.name for method in painted if method.name in others]:
        raise HyperLoRAError(f'Two rows would be called "{both[0]}": give the pictures or the checkpoint another name.')


def _checkpoints(arguments: Namespace) -> dict[str, str]:
    checkpoints = {}
    for text in arguments.checkpoint:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise HyperLoRAError(f"--checkpoint {text} isn't NAME=FOLDER.")
        checkpoints[name] = folder
    return checkpoints


def _open(methods: list[Method], arguments: Namespace) -> tuple[dict[str, "PhotoEncoder"], "Instruments"]:
    """The encoders of all checkpoints, and the measuring instruments for photographs."""
    from ..evaluate.clip import ClipView
    from ..evaluate.instruments import Instruments, MeasuringNetwork
    from ..face.analyzer import FaceAnalyzer
    from ..locate import DEFAULT, find_face_pack, find_file, open_encoder

    folder, provider = arguments.models_folder, arguments.provider
    encoders = {
        checkpoint: open_encoder(checkpoint, arguments.face_pack, arguments.clip, folder, provider, arguments.device)
        for checkpoint in dict.fromkeys(method.checkpoint for method in methods if method.photos)
        if checkpoint != arguments.arc2face
    }
    if encoders:
        faces = next(iter(encoders.values())).faces
    else:
        faces = FaceAnalyzer.load(arguments.face_pack or find_face_pack(DEFAULT, folder), provider)
    clip = arguments.measuring_clip or arguments.clip or find_file("clip-vision", folder)
    return encoders, Instruments(
        MeasuringNetwork(arguments.recognition, faces), None, ClipView.load(clip, arguments.device)
    )


def _open_demo(methods: list[Method], device: str) -> tuple[dict[str, "PhotoEncoder"], "Instruments"]:
    """The encoders of all checkpoints, on the same face pack and CLIP tower, and the measuring instruments."""
    from ..checkpoint import load_hyperlora
    from ..encode import PhotoEncoder
    from ..evaluate.attributes import AttributeReader
    from ..evaluate.clip import TokenView
    from ..evaluate.instruments import ATTRIBUTE_MEASURE, FACE_MEASURE, Instruments, MeasuringNetwork
    from ..locate import DEMO, demo_folder, open_encoder

    demo = open_encoder(DEMO, device=device)
    encoders = {DEMO: demo}
    for checkpoint in {method.checkpoint for method in methods} - {DEMO}:
        encoders[checkpoint] = PhotoEncoder(load_hyperlora(checkpoint, device), demo.faces, demo.vision)
    measuring = MeasuringNetwork(demo_folder() / FACE_MEASURE, demo.faces)
    attributes = AttributeReader(demo_folder() / ATTRIBUTE_MEASURE)
    return encoders, Instruments(measuring, attributes, TokenView(demo.vision))


@contextmanager
def _bars() -> Iterator:
    """Progress as a bar per stage, with the time left; a line a minute where nobody watches, as in a log."""
    bar: tqdm | None = None
    shown = ""

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal bar, shown
        if stage != shown:
            if bar is not None:
                bar.close()
            seconds = 1 if sys.stderr.isatty() else 60
            bar, shown = tqdm(total=total, desc=stage, mininterval=seconds, maxinterval=600, smoothing=0.1), stage
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()
