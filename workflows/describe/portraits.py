"""A person in a new picture: from one photo, from several, two people, a slider, and the demo."""

from .parts import Group, Node, Workflow
from .pieces import (
    CLIP,
    apply_node,
    checkpoint_nodes,
    decode_node,
    encode_node,
    files_to_get,
    identity_node,
    loader_nodes,
    lora_node,
    negative_node,
    person_nodes,
    photo_node,
    preview_node,
    prompt_nodes,
    sampler_node,
    save_node,
    size_node,
)

FOREST = "portrait photo of a person in a forest, autumn, soft light, knitted sweater"
PICTURE = [["prompt", "positive", "negative", "size"], ["sampler", "decode", "save"]]


def portrait() -> Workflow:
    return Workflow(
        nodes={
            **checkpoint_nodes(),
            **person_nodes(),
            "crops": preview_node("identity.crops"),
            "apply": apply_node(),
            **prompt_nodes(FOREST),
            "size": size_node(),
            "sampler": sampler_node(),
            "decode": decode_node(),
            "save": save_node(),
        },
        groups=[
            Group("1 Who", [["hyperlora", "face_analysis", "photo"], ["identity", "crops"]]),
            Group("2 Model", [["checkpoint", "clip_skip", "lora", "apply"]]),
            Group("3 Picture", PICTURE),
        ],
        note=f"""## A person from one photo

The green nodes are yours to change:

1. **Load Image**: drop a photo on it. Upright, sharp, one face, nothing in front of it.
2. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
3. Press **Run**.

**Preview Image** shows what the network saw of the photo: it should be the face of the right person.

**Apply HyperLoRA**: weight 0.75 to 0.85. Lower it if the prompt is ignored or the face shows artefacts.

More photos of the same person: the template **02_portrait_from_several_photos**.

{files_to_get()}""",
    )


def several_photos() -> Workflow:
    more = {f"photo_{number}": photo_node(f"Photo {number}") for number in (2, 3, 4)}
    identity = identity_node(**{f"photos_{number}": f"photo_{number}.IMAGE" for number in (2, 3, 4)})
    identity.values["weighting"] = "agreement"
    return Workflow(
        nodes={
            **checkpoint_nodes(),
            **loader_nodes(),
            "photo": photo_node("Photo 1"),
            **more,
            "identity": identity,
            "crops": preview_node("identity.crops", "What the network saw"),
            "report": Node(
                "PreviewAny", links={"source": "identity.report"}, extra_height=140, title="Photos and shares"
            ),
            "keep": Node("HyperLoRASaveIdentity", {"name": "person"}, {"identity": "identity.identity"}, mine=True),
            "lora": lora_node(),
            "apply": apply_node(),
            **prompt_nodes(FOREST),
            "size": size_node(),
            "sampler": sampler_node(),
            "decode": decode_node(),
            "save": save_node(),
        },
        groups=[
            Group("1 Photos", [["hyperlora", "face_analysis"], ["photo", "photo_2"], ["photo_3", "photo_4"]]),
            Group("2 Who", [["identity", "crops", "report", "keep"]]),
            Group("3 Model", [["checkpoint", "clip_skip", "lora", "apply"]]),
            Group("4 Picture", PICTURE),
        ],
        note=f"""## A person from several photos

One photo shows one moment. Several, in different light and from different sides, show the person.

The green nodes are yours to change:

1. **Photo 1** to **Photo 4** (Load Image): photos of ONE person, of any size. Fewer are fine: select a node, press
   **Ctrl+B**, and it is left out. Photo 1 stays.
2. **Save Identity**: a name for the person. The file has 0.3 MB; **Load Identity** brings the person back without photos.
3. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
4. Press **Run**.

**Encode Identity**, *weighting* = agreement: photos that look like the same person count, a stranger among them is left
out. **Photos and shares** says what was found in each photo and how much it counted.

**Apply HyperLoRA**: weight 0.75 to 0.85.

{files_to_get()}""",
    )


WIDE, HIGH, EDGE = 1536, 1024, 96  # px: two people side by side, and the soft edge between them


def two_people() -> Workflow:
    half = WIDE // 2
    nodes = {**checkpoint_nodes(), **loader_nodes()}
    nodes["black"] = Node("SolidMask", {"value": 0.0, "width": WIDE, "height": HIGH}, title="No place")
    nodes["white"] = Node("SolidMask", {"value": 1.0, "width": half, "height": HIGH}, title="One half")
    for side, x, edge in (("left", 0, "right"), ("right", half, "left")):
        nodes[f"photo_{side}"] = photo_node(f"Photo: person on the {side}")
        nodes[f"identity_{side}"] = identity_node(f"photo_{side}")
        nodes[f"lora_{side}"] = lora_node(f"identity_{side}")
        nodes[f"soft_{side}"] = Node(
            "FeatherMask", {edge: EDGE}, {"mask": "white.MASK"}, title=f"Half with a soft edge on the {edge}"
        )
        nodes[f"mask_{side}"] = Node(
            "MaskComposite",
            {"x": x, "y": 0, "operation": "add"},
            {"destination": "black.MASK", "source": f"soft_{side}.MASK"},
            title=f"Place on the {side}",
        )
        clothes = "red dress" if side == "left" else "dark suit"
        nodes[f"prompt_{side}"] = Node(
            "HyperLoRATriggerPrompt",
            {"prompt": f"photo of a person in a {clothes}, smiling"},
            extra_height=80,
            title=f"Prompt: person on the {side}",
            mine=True,
        )
        nodes[f"text_{side}"] = encode_node(f"prompt_{side}.prompt", f"Text: person on the {side}")
    nodes["scene"] = Node(
        "CLIPTextEncode",
        {"text": "photo of two people side by side at a garden party, evening, lanterns, soft light"},
        {"clip": CLIP},
        extra_height=80,
        title="Prompt: the whole picture",
        mine=True,
    )
    nodes["negative"] = negative_node()
    before = {"positive": "scene.CONDITIONING", "negative": "negative.CONDITIONING"}
    for side in ("left", "right"):
        nodes[f"region_{side}"] = Node(
            "HyperLoRARegion",
            {"start": 0.1},
            {
                **before,
                "id_lora": f"lora_{side}.id_lora",
                "base_lora": f"lora_{side}.base_lora",
                "mask": f"mask_{side}.MASK",
                "person_prompt": f"text_{side}.CONDITIONING",
            },
            title=f"Region: person on the {side}",
        )
        before = {"positive": f"region_{side}.positive", "negative": f"region_{side}.negative"}
    nodes |= {
        "size": size_node(WIDE, HIGH),
        "sampler": sampler_node(model="checkpoint.MODEL", **before),
        "decode": decode_node(),
        "save": save_node(prefix="hyperlora_two"),
    }
    return Workflow(
        nodes=nodes,
        groups=[
            Group(
                "1 Who",
                [
                    ["hyperlora", "face_analysis"],
                    ["photo_left", "identity_left", "lora_left"],
                    ["photo_right", "identity_right", "lora_right"],
                ],
            ),
            Group("2 Where", [["black", "white", "soft_left", "mask_left", "soft_right", "mask_right"]]),
            Group(
                "3 What",
                [
                    ["checkpoint", "clip_skip", "scene", "negative"],
                    ["prompt_left", "text_left", "prompt_right", "text_right"],
                ],
            ),
            Group("4 Picture", [["region_left", "region_right"], ["size", "sampler", "decode", "save"]]),
        ],
        note=f"""## Two people in one picture

Each person has a place, a photo and a prompt of their own. The model that goes to the sampler stays without them: each
LoRA works in its place only, so the two don't become a mix.

The green nodes are yours to change:

1. **Photo: person on the left**, **... on the right** (Load Image): drop a photo on each.
2. **Prompt: the whole picture**: the scene, the light, how many people. No trigger words here.
3. **Prompt: person on the left**, **... on the right**: what is in this place only, such as clothes. The trigger words
   are added for you.
4. Press **Run**.

**Places**: the masks give each person one half, with a soft edge. For other places load a mask (*Load Image (as Mask)*,
*channel* red, white where the person is) and connect it to *mask* of a **Region**.

**Region**, *start* 0.1: the first tenth of sampling belongs to the scene, so that two bodies are there before the faces
come. Too little of each person? *set_cond_area* = mask bounds paints each place as a picture of its own: more likeness, less of
one picture. A third person: one more Region behind the second.

Each place is one more run of the model per step: three times as long as one person.

{files_to_get()}""",
    )


def slider() -> Workflow:
    return Workflow(
        nodes={
            **checkpoint_nodes(),
            **person_nodes(),
            "photo_from": photo_node("Photo: without (neutral)"),
            "identity_from": identity_node("photo_from"),
            "photo_to": photo_node("Photo: with (smiling)"),
            "identity_to": identity_node("photo_to"),
            "slider": Node(
                "HyperLoRASlider",
                {"amount": 0.7},
                {
                    "hyperlora": "hyperlora.hyperlora",
                    "identity_from": "identity_from.identity",
                    "identity_to": "identity_to.identity",
                },
                mine=True,
            ),
            "apply": apply_node(weight=0.85),
            "apply_slider": Node(
                "HyperLoRAApply",
                {"weight": 1.0},
                {"model": "apply.model", "id_lora": "slider.slider_lora"},
                title="Apply the slider",
            ),
            **prompt_nodes(FOREST),
            "size": size_node(),
            "sampler": sampler_node("apply_slider.model"),
            "decode": decode_node(),
            "save": save_node(prefix="hyperlora_slider"),
        },
        groups=[
            Group("1 Who", [["hyperlora", "face_analysis", "photo", "identity", "lora"]]),
            Group("2 Slider", [["photo_from", "identity_from", "slider"], ["photo_to", "identity_to"]]),
            Group("3 Model", [["checkpoint", "clip_skip", "apply", "apply_slider"]]),
            Group("4 Picture", PICTURE),
        ],
        note=f"""## A slider from two photos

What two photos differ in (a smile, glasses, age) becomes a slider for any person.

The green nodes are yours to change:

1. **Load Image**: the person to paint.
2. **Photo: without**, **Photo: with** (Load Image): two photos that differ in ONE thing, best of one person in the same
   light and pose. It need not be the person to paint: what both photos share cancels out.
3. **Identity Slider**, *amount*: above 0 adds it, below 0 takes it away. 0.7 either way is what the paper uses.
4. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
5. Press **Run**. Keep the seed (*fixed*) while you move the slider.

What a checkpoint doesn't read from a photo doesn't move (the demo's reads no expression). Whatever else differs between the
two photos moves too. Several photos for each end (*photos_2* to *photos_4* of
**Encode Identity**) make the slider cleaner.

More sliders: one more **Apply HyperLoRA** for each, one behind the other.

{files_to_get()}""",
    )


def demo() -> Workflow:
    shipped = "demo (shipped)"
    return Workflow(
        nodes={
            "demo": Node("HyperLoRALoadDemo"),
            **person_nodes(shipped, shipped, "hyperlora_demo_person.png"),  # put there by the pack
            "apply": apply_node("demo.model", mode="guide"),
            **prompt_nodes("portrait of a person, green background, white shirt", "", "demo.clip"),
            "size": size_node(128, 128),
            "sampler": sampler_node(steps=12, cfg=5.0, sampler_name="euler", scheduler="normal"),
            "decode": decode_node(vae="demo.vae"),
            "save": save_node(prefix="hyperlora_demo"),
            "similarity": Node(
                "HyperLoRASimilarity",
                links={
                    "face_analysis": "face_analysis.face_analysis",
                    "reference": "photo.IMAGE",
                    "images": "decode.IMAGE",
                },
            ),
            "number": Node(
                "PreviewAny", links={"source": "similarity.similarity"}, title="How like the photo, -1 to 1"
            ),
        },
        groups=[
            Group("1 Who", [["hyperlora", "face_analysis", "photo"], ["identity"]]),
            Group("2 Model", [["demo", "lora", "apply"]]),
            Group("3 Picture", [*PICTURE, ["similarity", "number"]]),
        ],
        note="""## The same steps on small models, without any download

The demo models know drawn people only. They come with this pack and need no graphics card.
Their training is not finished: hair and skin are mostly the photo's, the features only in part.
**Apply HyperLoRA** has *mode* = guide: the person isn't in the negative prompt, so that CFG leads to the person, too.
**Identity Similarity** says how like the photo the picture is; another drawn person's is near 0.
The green nodes are yours to change:

1. Press **Run**: the drawn person in **Load Image** comes with the pack.
2. **Trigger Prompt**: write what the picture shows.
3. **Load Image**: drop another drawn person on it; `python . demo` writes three into `outputs/demo/photos`.

Keep 128 x 128, and don't mix demo and real models: their LoRAs don't fit each other.

For photos of real people open the template **01_portrait_from_photo**.
""",
    )
