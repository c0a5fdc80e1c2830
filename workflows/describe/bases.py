"""A person on another base model than the LoRA was made for."""

from .parts import Group, Node, Workflow
from .pieces import (
    MODEL,
    apply_node,
    checkpoint_node,
    checkpoint_nodes,
    decode_node,
    files_to_get,
    person_nodes,
    prompt_nodes,
    sampler_node,
    save_node,
    size_node,
)
from .portraits import FOREST, PICTURE

SOURCE, TARGET = "sdxl", "ssd-1b"
CFG = 9.0  # as SSD-1B's authors say


def another_base() -> Workflow:
    apply = apply_node()
    apply.links = {"model": MODEL, "id_lora": "move.lora"}
    return Workflow(
        nodes={
            "source": checkpoint_node(SOURCE, "Source: what the LoRA was made for"),
            **checkpoint_nodes(TARGET, "Target: what paints"),
            **person_nodes(),
            "move": Node(
                "HyperLoRATransfer", links={"lora": "lora.id_lora", "source": "source.MODEL", "target": MODEL}
            ),
            "report": Node(
                "PreviewAny", links={"source": "move.report"}, extra_height=200, title="What was moved, layer by layer"
            ),
            "apply": apply,
            **prompt_nodes(FOREST),
            "size": size_node(),
            "sampler": sampler_node(cfg=CFG),
            "decode": decode_node(),
            "save": save_node(prefix="hyperlora_moved"),
        },
        groups=[
            Group("1 Who", [["hyperlora", "face_analysis", "photo"], ["identity", "lora"]]),
            Group("2 From base to base", [["source", "checkpoint", "clip_skip"], ["move", "report", "apply"]]),
            Group("3 Picture", PICTURE),
        ],
        note=f"""## A person on another base model

SSD-1B is SDXL at half its size, and paints faster. It lacks layers that the person's LoRA is for, so the LoRA doesn't fit it.
Moved (LoRA-X, without training) it does.

The green nodes are yours to change:

1. **Load Image**: drop a photo on it. Upright, sharp, one face, nothing in front of it.
2. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
3. Press **Run**. The first person takes the time of many decompositions, best with a graphics card; the next ones are quick.

**Source** (Load Checkpoint): the model that the LoRA was made for. For HyperLoRA that is plain SDXL.

**Target** (Load Checkpoint): the model that paints: SSD-1B, Segmind-Vega, KOALA, or an SDXL checkpoint. On an SDXL
checkpoint of full size a person works without being moved: there the template **01_portrait_from_photo** will do.

**What was moved, layer by layer**: how alike both models are there, and how much of the person is kept. Is the person
weak? Raise *weight* of **Apply HyperLoRA**.

**KSampler**, *cfg* {CFG:g}: as SSD-1B's authors say. For another target take what suits it.

To keep the moved LoRA as a file, connect it to **Save Person's LoRA**.

{files_to_get(first=("fidelity", "clip-vision", "antelopev2", SOURCE, TARGET), instead="any of the targets above will do")}""",
    )
