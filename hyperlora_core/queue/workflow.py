"""A workflow in API format: {node id: {"class_type": ..., "inputs": {...}, "_meta": {"title": ...}}}.

An input holds a value, or a link [node id, number of the output].
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import HyperLoRAError

Workflow = dict[str, dict[str, Any]]


class Input(NamedTuple):
    """One input of one node."""

    node: str  # id
    name: str


class Role(NamedTuple):
    """Something that varies from job to job."""

    what: str
    option: str
    kind: type
    names: tuple[str, ...]  # what inputs for it are usually called


PHOTO = Role("photo", "--photo-input", str, ("image",))
PROMPT = Role("prompt", "--prompt-input", str, ("prompt", "text", "string", "value", "text_g", "text_l"))
SEED = Role("seed", "--seed-input", int, ("seed", "noise_seed"))

# by which a text reaches a sampler; what else enters a conditioning node (images, masks, models) leads to no prompt
_CONDITIONS = ("conditioning", "cond", *PROMPT.names)


def read_workflow(path: str | Path) -> Workflow:
    """Read an API-format workflow. Raises HyperLoRAError when the file is something else."""
    try:
        workflow = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise HyperLoRAError(f"The workflow {path} can't be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise HyperLoRAError(f"The workflow {path} isn't JSON ({error}): export it again from ComfyUI.") from error
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise HyperLoRAError(
            f"The workflow {path} is in the format of the graph editor: open it in ComfyUI and choose File > Export (API)."
        )
    if isinstance(workflow, dict) and isinstance(workflow.get("prompt"), dict):
        workflow = workflow["prompt"]  # the body of a request
    if not isinstance(workflow, dict) or not workflow or not all(map(_is_node, workflow.values())):
        raise HyperLoRAError(
            f"{path} isn't a workflow in API format: open the workflow in ComfyUI and choose File > Export (API)."
        )
    return workflow


def _is_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def title(workflow: Workflow, node: str) -> str:
    """What the editor shows above the node."""
    return workflow[node].get("_meta", {}).get("title") or workflow[node]["class_type"]


def find_inputs(workflow: Workflow, role: Role, named: Sequence[str] = ()) -> list[Input]:
    """The inputs for a role: those `named` ("Load Image.image", "4.image", "Load Image"), else the one that is evident.

    Raises HyperLoRAError with the candidates where a name fits none or several, or nothing is evident.
    """
    if named:
        return [_named(workflow, role, text) for text in named]
    found = _EVIDENT[role](workflow)
    if len(found) == 1:
        return found
    if not found:
        candidates = [place for place in _all_inputs(workflow) if _fits(workflow, role, place)]
        raise HyperLoRAError(
            f"The workflow has no evident place for the {role.what}: name it with {role.option}. "
            f"It could be: {_listed(workflow, candidates) or 'none of its inputs'}."
        )
    raise HyperLoRAError(
        f"The workflow has several places for the {role.what}: name one with {role.option}, "
        f"or several by giving it again. There are: {_listed(workflow, found)}."
    )


def with_values(workflow: Workflow, values: Mapping[Input, str | int]) -> Workflow:
    """A copy with other values."""
    changed = copy.deepcopy(workflow)
    for place, value in values.items():
        changed[place.node]["inputs"][place.name] = value
    return changed


def _named(workflow: Workflow, role: Role, text: str) -> Input:
    node, _, name = text.rpartition(".")
    for wanted, inputs in ((text, role.names), (node, (name,))):
        nodes = _nodes_called(workflow, wanted)
        if len(nodes) > 1:
            raise HyperLoRAError(
                f'{role.option} "{text}": several nodes are called so. Name one by its id: '
                f"{', '.join(_node_words(workflow, one) for one in nodes)}."
            )
        if nodes:
            return _input_of(workflow, role, text, nodes[0], inputs)
    raise HyperLoRAError(
        f'{role.option} "{text}": the workflow has no such node. It has: '
        f"{', '.join(_node_words(workflow, one) for one in workflow)}."
    )


def _nodes_called(workflow: Workflow, text: str) -> list[str]:
    """An id wins over titles, and titles over classes."""
    if text in workflow:
        return [text]
    wanted = text.casefold()
    titled = [node for node in workflow if title(workflow, node).casefold() == wanted]
    return titled or [node for node, spec in workflow.items() if spec["class_type"].casefold() == wanted]


def _input_of(workflow: Workflow, role: Role, text: str, node: str, names: Sequence[str]) -> Input:
    inputs = workflow[node]["inputs"]
    name = next((name for name in names if name in inputs), None)
    if name is None:
        raise HyperLoRAError(
            f'{role.option} "{text}": {title(workflow, node)} ({node}) has no such input. It has: {", ".join(inputs)}.'
        )
    value = inputs[name]
    for connected, source, _ in links(workflow[node]):
        if connected == name:
            raise HyperLoRAError(
                f'{role.option} "{text}": this input is connected to {_node_words(workflow, source)}. '
                "Name an input there."
            )
    if not _is_kind(value, role.kind):
        kind = "a whole number" if role.kind is int else "a text"
        raise HyperLoRAError(f'{role.option} "{text}": this input holds {value!r}, but a {role.what} is {kind}.')
    return Input(node, name)


def _node_words(workflow: Workflow, node: object) -> str:
    return f"{title(workflow, node)} ({node})" if node in workflow else f"node {node}"


def _all_inputs(workflow: Workflow) -> Iterator[Input]:
    return (Input(node, name) for node, spec in workflow.items() for name in spec["inputs"])


def _fits(workflow: Workflow, role: Role, place: Input) -> bool:
    return place.name in role.names and _is_kind(workflow[place.node]["inputs"].get(place.name), role.kind)


def _is_kind(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _listed(workflow: Workflow, places: Sequence[Input]) -> str:
    return ", ".join(f'{place.node}.{place.name} ("{title(workflow, place.node)}")' for place in places)


def links(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(input, node, output) of each connected input; other lists are values, of widgets with several choices, say."""
    for name, value in spec["inputs"].items():
        if isinstance(value, list) and list(map(type, value)) == [str, int]:
            yield name, value[0], value[1]


def _evident_photo(workflow: Workflow) -> list[Input]:
    """Load Image; where there are several, those whose picture goes straight to photos of a HyperLoRA node."""
    loaders = [
        Input(node, "image")
        for node, spec in workflow.items()
        if spec["class_type"] == "LoadImage" and _fits(workflow, PHOTO, Input(node, "image"))
    ]
    if len(loaders) < 2:
        return loaders
    persons = {
        source
        for spec in workflow.values()
        if spec["class_type"].startswith("HyperLoRA")
        for name, source, _ in links(spec)
        if name.startswith("photos")
    }
    return [place for place in loaders if place.node in persons] or loaders


def _evident_prompt(workflow: Workflow) -> list[Input]:
    """The text in our own nodes that take a prompt; without any, what reaches the samplers as the positive prompt."""
    ours = [
        Input(node, "prompt")
        for node, spec in workflow.items()
        if spec["class_type"].startswith("HyperLoRA") and _fits(workflow, PROMPT, Input(node, "prompt"))
    ]
    if ours:
        return ours
    found: dict[Input, None] = {}
    seen: set[tuple[str, int]] = set()
    positive = [
        (link, output)
        for spec in workflow.values()
        for name, link, output in links(spec)
        if name == "positive" and "negative" in spec["inputs"]
    ]
    ahead = positive or [
        (link, output)
        for spec in workflow.values()
        for name, link, output in links(spec)
        if name in ("conditioning", "guider")
    ]
    while ahead:
        node, output = ahead.pop()
        if node not in workflow or (node, output) in seen:
            continue
        seen.add((node, output))
        spec = workflow[node]
        texts = [Input(node, name) for name in PROMPT.names if _fits(workflow, PROMPT, Input(node, name))]
        found |= dict.fromkeys(texts)
        positives = [(link, number) for name, link, number in links(spec) if name == "positive"]
        # a node with both prompts hands the positive one on
        ahead += positives or [(link, number) for name, link, number in links(spec) if name.startswith(_CONDITIONS)]
    return list(found)


def _evident_seed(workflow: Workflow) -> list[Input]:
    """A seed; where there are several, those that say at which noise a sampler begins. Of a connected one, the number there."""
    found = [place for place in _all_inputs(workflow) if _fits(workflow, SEED, place)]
    samplers = [place for place in found if re.search("sampler|noise", workflow[place.node]["class_type"], re.I)]
    sources = {source for spec in workflow.values() for name, source, _ in links(spec) if name in SEED.names}
    connected = [
        Input(node, name)
        for node in workflow
        if node in sources
        for name in ("value", *SEED.names)
        if _is_kind(workflow[node]["inputs"].get(name), SEED.kind)
    ]
    return list(dict.fromkeys([*samplers, *connected])) or found


_EVIDENT = {PHOTO: _evident_photo, PROMPT: _evident_prompt, SEED: _evident_seed}
