"""The authors' node ids: their signatures, their workflows in both formats, and the golden vectors through them."""

import asyncio
import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from authors_workflows import AUTHORS, KINDS, WORKFLOWS, api, graph
from pack_without_host import PACK, WIDGETS, our_nodes
from safetensors.torch import load_file

from hyperlora_core import Identity, load_hyperlora

# HyperLoRAError: the pack loaded as the host loads it has a class of its own
Refusal = ValueError
# what our nodes have besides: later, optional inputs, and the output of Save
OURS_TOO = {"HyperLoRASaveLoRA"}


@pytest.fixture(scope="module")
def nodes():
    with our_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def schemas(nodes):
    return {name: node.define_schema() for name, node in nodes.items()}


def required(schema) -> list[str]:
    return [slot.id for slot in schema.inputs if not slot.options.get("optional")]


def widgets(schema) -> list[str]:
    return [slot.id for slot in schema.inputs if slot.type in WIDGETS]


@pytest.mark.parametrize("name", AUTHORS)
def test_signature(schemas, name):
    schema, kind = schemas[name], AUTHORS[name]
    types = {slot.id: slot.type for slot in schema.inputs}
    assert kind.sockets.items() <= types.items()
    assert widgets(schema)[: len(kind.widgets)] == kind.widgets
    if name in OURS_TOO:
        assert set(required(schema)) <= {*kind.sockets, *kind.widgets}
    else:
        assert set(types) == {*kind.sockets, *kind.widgets}
        assert [slot.type for slot in schema.outputs] == kind.outputs
        assert schema.is_deprecated


def test_inputs_stand_in_the_authors_order(schemas):
    order = {
        "HyperLoRAIDCond": "hyper_lora images face_attr grayscale remove_background",
        "HyperLoRABaseCond": "hyper_lora images face_attr crop crop_scale_LRTB safe_crop",
        "HyperLoRALoader": "config model dtype",
        "HyperLoRAApplyLoRA": "model lora weight",
        "HyperLoRAUniGenerateIDLoRA": "hyper_lora images grayscale remove_background",
    }
    assert {name: " ".join(slot.id for slot in schemas[name].inputs) for name in order} == order
    (weight,) = (slot for slot in schemas["HyperLoRAApplyLoRA"].inputs if slot.id == "weight")
    assert (weight.options["default"], weight.options["min"], weight.options["max"]) == (0.8, -1.5, 1.5)
    (precision,) = (slot for slot in schemas["HyperLoRALoader"].inputs if slot.id == "dtype")
    assert precision.options["options"] == ["fp16", "bf16", "fp32"]


def test_all_eleven_are_used():
    assert {node.kind for nodes in WORKFLOWS.values() for node in nodes.values()} >= AUTHORS.keys()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_api_format_is_accepted(schemas, name):
    """The host's rules: nothing required is missing, and linked types are equal."""
    workflow = api(name)
    for node in workflow.values():
        if node["class_type"] not in AUTHORS:
            continue
        schema = schemas[node["class_type"]]
        types = {slot.id: slot.type for slot in schema.inputs}
        assert set(required(schema)) <= node["inputs"].keys() <= types.keys()
        for label, value in node["inputs"].items():
            if isinstance(value, list):
                start, slot = value
                kind = workflow[start]["class_type"]
                given = schemas[kind].outputs[slot].type if kind in AUTHORS else KINDS[kind].outputs[slot]
                assert given == types[label], label
            else:
                assert types[label] in WIDGETS


@pytest.mark.parametrize("name", WORKFLOWS)
def test_graph_format_says_the_same(schemas, name):
    """Widgets by position and sockets by name, as the editor fills our nodes from a saved file."""
    wanted = api(name)
    saved = graph(name)
    links = {number: [str(start), slot] for number, start, slot, *_ in saved["links"]}
    for node in saved["nodes"]:
        if node["type"] not in AUTHORS:
            continue
        schema = schemas[node["type"]]
        inputs = dict(zip(widgets(schema), node["widgets_values"], strict=False))
        assert len(inputs) == len(node["widgets_values"])
        sockets = {slot.id for slot in schema.inputs if slot.type not in WIDGETS}
        assert {socket["name"] for socket in node["inputs"]} <= sockets
        inputs |= {socket["name"]: links[socket["link"]] for socket in node["inputs"]}
        assert inputs == wanted[str(node["id"])]["inputs"]
    json.dumps(saved)


class Vision:
    """Answers with a golden checkpoint's tokens, in the order in which they are asked for."""

    name = "golden"

    def __init__(self, *answers):
        self.answers = list(answers)

    @property
    def width(self) -> int:
        return self.answers[0].shape[-1]

    @property
    def tokens(self) -> int:
        return self.answers[0].shape[1]

    def encode_pictures(self, pictures):
        tokens = self.answers.pop(0)
        assert len(list(pictures)) == len(tokens)
        return tokens


@pytest.fixture
def loaded(golden, monkeypatch):
    """A HYPER_LORA of a golden checkpoint, photos for it, and what shall come out."""
    expected = load_file(golden / "expected.safetensors")
    embeds = expected["in.id_embeds"]
    landmarks = np.random.default_rng(0).uniform(60, 190, (106, 2)).astype(np.float32)
    faces = [SimpleNamespace(landmarks=landmarks, embedding=row.numpy()) for row in embeds]
    waiting = list(faces)
    analyzer = SimpleNamespace(face=lambda photo, name: waiting.pop(0), recognition_name="glintr100")
    tokens = [expected[f"in.{kind}clip_tokens"] for kind in ("", "base_") if f"in.{kind}clip_tokens" in expected]
    hyper = load_hyperlora(golden)
    photos = torch.rand(len(embeds), 256, 256, 3)
    return SimpleNamespace(hyper=hyper, faces=analyzer, vision=Vision(*tokens)), photos, expected


def assert_golden(lora: dict, expected: dict, branch: str) -> None:
    wanted = {name.partition(".")[2]: t for name, t in expected.items() if name.startswith(f"{branch}.")}
    assert wanted and set(lora) == set(wanted)
    for name, tensor in wanted.items():
        assert (lora[name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_golden_lora_through_the_chain(nodes, loaded):
    model, photos, expected = loaded
    (faces,) = nodes["HyperLoRAFaceAttr"].execute(model, photos)
    condition, crops = nodes["HyperLoRAIDCond"].execute(model, photos, faces, False, True)
    assert crops.shape == (len(photos), 512, 512, 3)
    (lora,) = nodes["HyperLoRAGenerateIDLoRA"].execute(model, condition)
    assert_golden(lora, expected, "id")
    if model.hyper.has_base:
        condition, _ = nodes["HyperLoRABaseCond"].execute(model, photos, faces, True, "1,1,1,1", True)
        (lora,) = nodes["HyperLoRAGenerateBaseLoRA"].execute(model, condition)
        assert_golden(lora, expected, "base")
    else:
        with pytest.raises(Refusal, match="has no base branch"):
            nodes["HyperLoRABaseCond"].execute(model, photos, faces, True, "1,1,1,1", True)


def test_golden_lora_in_one_node(nodes, loaded):
    model, photos, expected = loaded
    (lora,) = nodes["HyperLoRAUniGenerateIDLoRA"].execute(model, photos, False, True)
    assert_golden(lora, expected, "id")


def test_bad_input(nodes, loaded):
    model, photos, _ = loaded
    (faces,) = nodes["HyperLoRAFaceAttr"].execute(model, photos)
    with pytest.raises(Refusal, match="connect both to the same images"):
        nodes["HyperLoRAIDCond"].execute(model, torch.rand(5, 64, 64, 3), faces, False, True)
    with pytest.raises(Refusal, match="encoded with another checkpoint"):
        nodes["HyperLoRAGenerateIDLoRA"].execute(model, Identity(torch.zeros(8, 8)))
    if model.hyper.has_base:
        with pytest.raises(Refusal, match="isn't four numbers"):
            nodes["HyperLoRABaseCond"].execute(model, photos, faces, True, "1,1,1", True)
    with pytest.raises(Refusal, match="connect id_lora"):
        nodes["HyperLoRASaveLoRA"].execute("loras/nobody")


def test_names_of_other_machines_are_accepted(nodes):
    for name in ("HyperLoRAConfig", "HyperLoRAUniLoader"):
        assert nodes[name].validate_inputs("my processor", "my encoder", "my types") is True


@pytest.fixture
def host(nodes, monkeypatch):
    """The host's table of nodes, with the authors' nodes loaded before or after ours."""
    table = {}
    monkeypatch.setitem(sys.modules, "nodes", SimpleNamespace(NODE_CLASS_MAPPINGS=table))
    return table, sys.modules[f"{PACK}.nodes.beside_authors"]


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_both_packs_installed(host, nodes, first, caplog):
    table, beside = host
    theirs = {name: type(name, (), {}) for name in AUTHORS}

    def load_ours():
        table.update({node.__name__: node for node in [nodes["HyperLoRASaveLoRA"], *beside.free_nodes()]})

    if first == "theirs":
        table.update(theirs)
        load_ours()
    else:
        load_ours()
        table.update(theirs)
    with caplog.at_level(logging.WARNING):
        asyncio.run(beside._settle(None))
    assert table == theirs | {"HyperLoRASaveLoRA": nodes["HyperLoRASaveLoRA"]}
    assert len(caplog.records) == 1 and "HyperLoRAConfig" in caplog.text


def test_alone_nothing_is_said(host, nodes, caplog):
    table, beside = host
    table.update({node.__name__: node for node in [nodes["HyperLoRASaveLoRA"], *beside.free_nodes()]})
    before = dict(table)
    with caplog.at_level(logging.WARNING):
        asyncio.run(beside._settle(None))
    assert table == before and AUTHORS.keys() == before.keys() and not caplog.records
