"""Workflows with several people in one picture, each in a column of their own, on the demo models."""

from collections.abc import Sequence

from graphs import demo
from PIL import Image

SIDE = 128  # px of the demo's pictures, and of a person's column
PICTURE_PROMPT = "portrait of a person"


def column(number: int, people: int) -> Image.Image:
    """The mask of a person's column, in the picture's size."""
    mask = Image.new("L", (SIDE * people, SIDE))
    mask.paste(255, (SIDE * number, 0, SIDE * (number + 1), SIDE))
    return mask


def ids(number: int) -> dict[str, str]:
    """The nodes of the person with this number."""
    names = ("photo", "encode", "generate", "trigger", "prompt", "mask", "region")
    return {name: str(100 + 10 * number + i) for i, name in enumerate(names)}


def crowd(
    photos: Sequence[str],
    masks: Sequence[str] | None,
    prompts: Sequence[str],
    regions: Sequence[dict] = (),
    width: int | None = None,
    batch: int = 1,
    **sampler,
) -> dict:
    """A Region for each uploaded photo, one after another, and then core's KSampler on the demo's own model.

    `masks`: uploaded too; None: nobody has one. `regions`: more inputs of each person's Region.
    """
    graph = demo("unused.png", KSampler=sampler)
    encode = graph["5"]["inputs"]
    for unused in ("4", "5", "6", "7", "8"):
        del graph[unused]
    graph["9"]["inputs"]["text"] = PICTURE_PROMPT
    graph["11"]["inputs"] |= {"width": width or SIDE * len(photos), "batch_size": batch}
    positive, negative = ["9", 0], ["10", 0]
    for number, (photo, prompt) in enumerate(zip(photos, prompts, strict=True)):
        node = ids(number)
        inputs = {
            "positive": positive,
            "negative": negative,
            "id_lora": [node["generate"], 0],
            "weight": 0.8,
            "base_lora": [node["generate"], 1],
            "base_weight": 0.0,
            "person_prompt": [node["prompt"], 0],
        }
        graph[node["photo"]] = {"class_type": "LoadImage", "inputs": {"image": photo}}
        graph[node["encode"]] = {
            "class_type": "HyperLoRAEncodeIdentity",
            "inputs": encode | {"photos": [node["photo"], 0]},
        }
        graph[node["generate"]] = {
            "class_type": "HyperLoRAGenerateLoRA",
            "inputs": {"hyperlora": ["2", 0], "identity": [node["encode"], 0]},
        }
        graph[node["trigger"]] = {"class_type": "HyperLoRATriggerPrompt", "inputs": {"prompt": prompt}}
        graph[node["prompt"]] = {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": [node["trigger"], 0], "clip": ["1", 1]},
        }
        if masks is not None:
            graph[node["mask"]] = {
                "class_type": "LoadImageMask",
                "inputs": {"image": masks[number], "channel": "red"},
            }
            inputs["mask"] = [node["mask"], 0]
        more = regions[number] if regions else {}
        graph[node["region"]] = {"class_type": "HyperLoRARegion", "inputs": inputs | more}
        positive, negative = [node["region"], 0], [node["region"], 1]
    graph["12"]["inputs"] |= {"model": ["1", 0], "positive": positive, "negative": negative}
    return graph
