"""What is compared: prompts, methods and their settings, as data (protocol.json)."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import HyperLoRAError

SHIPPED = Path(__file__).with_name("protocol.json")
PROMPTS = Path(__file__).with_name("prompts.txt")  # for photographed people
NONE = "none"  # the base model's own pictures: the reference for what a prompt gives
FULL, ID_ONLY = "full", "ID only"
SCENES = "scenes"  # the set of prompts that the true renders follow
ALONE = "alone"  # the set of a method that takes no prompt: one picture for each seed


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: how pictures of a person are painted."""

    name: str
    photos: int  # references that the identity is read from; 0: no identity, the base model as it is
    id_weight: float
    base_weight: float
    trigger: bool  # whether the trigger words stand before the prompt
    prompts: str  # which set of prompts
    checkpoint: str = "demo"  # a HyperLoRA folder, or what `open_encoder` knows by name
    pictures: str | None = None  # folder of the pictures, where they were made elsewhere
    number: int | None = None  # which picture of each job there, from 1
    guide: bool = False  # whether the LoRA is left out for the negative prompt: identity guidance


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The file's contents."""

    chances: Mapping[str, float]  # of sketch, hat and glasses in photos and gallery
    prompts: Mapping[str, list[list[str]]]  # set -> picture -> the prompts to choose from
    methods: Mapping[str, Method]
    comparisons: tuple[tuple[str, str], ...]  # pairs of methods whose difference is told with its interval
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)  # prompt -> the class that it belongs to


def load_protocol(path: str | Path = SHIPPED) -> Protocol:
    """Read a protocol. Raises HyperLoRAError when the file isn't one."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        methods = {
            name: Method(
                name=name,
                photos=row["photos"],
                id_weight=row["id"],
                base_weight=row["base"],
                trigger=row["trigger"],
                prompts=row["prompts"],
                guide=row.get("guide", False),
            )
            for name, row in table["methods"].items()
        }
        protocol = Protocol(
            table["photos"], table["prompts"], methods, tuple((one, other) for one, other in table["comparisons"])
        )
        known = all(method.prompts in protocol.prompts for method in methods.values())
        if not (known and NONE in methods and SCENES in protocol.prompts and methods[NONE].prompts == SCENES):
            raise KeyError(f'method "{NONE}" with prompts "{SCENES}", or a set of prompts that a method names')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HyperLoRAError(
            f"{path} can't be read as a protocol ({type(error).__name__}: {error}). Write it like {SHIPPED}."
        ) from error
    return protocol


def chosen_methods(
    protocol: Protocol,
    names: Iterable[str] | None = None,
    checkpoints: Mapping[str, str] | None = None,
    checkpoint_methods: Iterable[str] = (FULL,),
    id_weight: float | None = None,
    base_weight: float | None = None,
) -> list[Method]:
    """The methods to run, "none" first: `names` (default: all), then each checkpoint by `checkpoint_methods`.

    `checkpoints`: name -> folder of a HyperLoRA that is compared with the demo's. `id_weight`, `base_weight` stand in
    for every weight that isn't 0. Raises HyperLoRAError for a name that the protocol doesn't have.
    """
    wanted = list(protocol.methods if names is None else names)
    ways = list(checkpoint_methods) if checkpoints else []
    for name in [*wanted, *ways]:
        if name not in protocol.methods:
            raise HyperLoRAError(f'There is no method "{name}". Choose from: {", ".join(protocol.methods)}.')
    methods = {name: protocol.methods[name] for name in dict.fromkeys([NONE, *wanted])}
    for name, folder in (checkpoints or {}).items():
        for way in ways:
            row = name if len(ways) == 1 else f"{name}, {way}"
            if row in methods:
                raise HyperLoRAError(f'Two rows would be called "{row}". Give the checkpoint another name.')
            methods[row] = dataclasses.replace(protocol.methods[way], name=row, checkpoint=folder)
    return [
        dataclasses.replace(
            method,
            id_weight=id_weight if id_weight is not None and method.id_weight else method.id_weight,
            base_weight=base_weight if base_weight is not None and method.base_weight else method.base_weight,
        )
        for method in methods.values()
    ]
