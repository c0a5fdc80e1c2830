"""A face painted again with more pixels: as a second pass, with Impact-Pack, and into a picture that exists."""

from .parts import Group, Node, Workflow, file_name
from .pieces import (
    SAMPLER,
    VAE,
    apply_node,
    checkpoint_nodes,
    decode_node,
    files_to_get,
    person_nodes,
    photo_node,
    preview_node,
    prompt_nodes,
    sampler_node,
    save_node,
    size_node,
)

CLOSE_UP = 896  # px, the side at which the face is painted; as the authors set FaceDetailer
FULL_BODY = "photo of a person walking on a beach, full body, linen clothes, evening sun"
WHO = [["hyperlora", "face_analysis", "photo"], ["identity", "lora"]]
FACE_PASS = [
    ["find", "found"],
    ["enlarge", "encode", "only_face"],
    ["gently", "again", "decode_face", "shrink"],
]
PUT_BACK = [["put_back", "save"]]
FIRST_PASS = [
    Group("1 Who", WHO),
    Group("2 Picture", [["checkpoint", "clip_skip", "apply", "size"], ["prompt", "positive", "negative"]]),
    Group("3 First pass", [["sampler", "decode", "first"]]),
]


def first_pass() -> dict[str, Node]:
    """A full-body picture of the person, whose face has few pixels."""
    return {
        **checkpoint_nodes(),
        **person_nodes(),
        "apply": apply_node(),
        **prompt_nodes(FULL_BODY),
        "size": size_node(832, 1216),
        "sampler": sampler_node(),
        "decode": decode_node(),
        "first": preview_node("decode.IMAGE", "Before"),
    }


def face_pass(image: str, denoise: float, steps: int) -> dict[str, Node]:
    """The largest face of a picture cut out, enlarged, painted again inside its outline, and put back."""
    return {
        "find": Node(
            "HyperLoRADetectFaces",
            {"face": "largest"},
            {"face_analysis": "face_analysis.face_analysis", "image": image},
        ),
        "found": preview_node("find.annotated", "Which face"),
        "enlarge": Node(
            "ImageScale",
            {"upscale_method": "lanczos", "width": CLOSE_UP, "height": CLOSE_UP},
            {"image": "find.close_up"},
            title="Enlarge the close-up",
        ),
        "encode": Node("VAEEncode", links={"pixels": "enlarge.IMAGE", "vae": VAE}),
        "only_face": Node("SetLatentNoiseMask", links={"samples": "encode.LATENT", "mask": "find.close_up_mask"}),
        "gently": Node("DifferentialDiffusion", links={"model": "apply.model"}),
        "again": sampler_node(
            "gently.MODEL", "only_face.LATENT", title="KSampler: the face again", steps=steps, denoise=denoise
        ),
        "decode_face": decode_node("again"),
        "shrink": Node(
            "ImageScale",
            {"upscale_method": "lanczos"},
            {"image": "decode_face.IMAGE", "width": "find.side", "height": "find.side"},
            title="Back to its size",
        ),
        "put_back": Node(
            "ImageCompositeMasked",
            links={
                "destination": image,
                "source": "shrink.IMAGE",
                "x": "find.x",
                "y": "find.y",
                "mask": "find.close_up_mask",
            },
        ),
    }


def detailer() -> Workflow:
    return Workflow(
        nodes={
            **first_pass(),
            **face_pass("decode.IMAGE", denoise=0.5, steps=20),
            "save": save_node("put_back.IMAGE", "hyperlora_detailed"),
        },
        groups=[
            *FIRST_PASS,
            Group("4 The face again", FACE_PASS),
            Group("5 Put back", PUT_BACK),
        ],
        note=f"""## Small faces in full detail

In a full-body picture a face has too few pixels to look like anybody. A second pass cuts it out, paints it again at
{CLOSE_UP} x {CLOSE_UP} and puts it back. Core nodes and this pack's, no other pack.

The green nodes are yours to change:

1. **Load Image**: drop a photo of the person on it.
2. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
3. Press **Run**. **Before** shows the first pass.

**Detect Faces**: the largest face. For another one choose *index* and its number, counted from the left. If no face is
found, the run stops and says so.

**KSampler: the face again**, *denoise*: 0.5 to begin with. Lower keeps more of the first pass; higher looks more like the
person, and fits the head less.

Only the face is painted and put back, with a soft edge; the rest of the close-up is there to fit it in.

**Empty Latent Image**: leave *batch_size* at 1. The second pass sees the first picture only, and would put its face into
all of them. For more pictures press **Run** again, or raise the number beside it.

{files_to_get()}""",
    )


def impact_detailer() -> Workflow:
    return Workflow(
        nodes={
            **first_pass(),
            "detector": Node(
                "UltralyticsDetectorProvider", {"model_name": file_name("face-detector")}, models=["face-detector"]
            ),
            "detailer": Node(
                "FaceDetailer",
                {
                    **SAMPLER,
                    "guide_size": CLOSE_UP,
                    "max_size": CLOSE_UP,
                    "seed": 1,
                    "steps": 10,
                    "denoise": 0.5,
                    "bbox_crop_factor": 2.0,
                },
                {
                    "image": "decode.IMAGE",
                    "model": "apply.model",
                    "clip": "clip_skip.CLIP",
                    "vae": VAE,
                    "positive": "positive.CONDITIONING",
                    "negative": "negative.CONDITIONING",
                    "bbox_detector": "detector.BBOX_DETECTOR",
                },
                extra_height=60,
            ),
            "save": save_node("detailer.image", "hyperlora_detailed"),
        },
        groups=[
            *FIRST_PASS,
            Group("4 The faces again", [["detector", "detailer"], ["save"]]),
        ],
        note=f"""## Small faces in full detail, with Impact-Pack

As the template **06_face_detailer**, with Impact-Pack's FaceDetailer in place of the second pass: it paints EVERY face that
it finds, and has a switch for everything.

The green nodes are yours to change:

1. **Load Image**: drop a photo of the person on it.
2. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
3. Press **Run**. **Before** shows the first pass.

The authors' numbers: *guide_size* and *max_size* {CLOSE_UP}, 10 steps, CFG 5, *denoise* 0.5, *bbox_crop_factor* 2.

All faces become this person. With several people in the picture use **06_face_detailer**, which takes one.

## Node packs

ComfyUI Impact Pack (https://github.com/ltdrdata/ComfyUI-Impact-Pack) and ComfyUI Impact Subpack
(https://github.com/ltdrdata/ComfyUI-Impact-Subpack): ComfyUI Manager installs both.

{files_to_get("face-detector")}""",
    )


def change_face() -> Workflow:
    return Workflow(
        nodes={
            **checkpoint_nodes(),
            **person_nodes(),
            "apply": apply_node(weight=0.85, base_weight=0.0),
            **prompt_nodes("close-up photo of a person, natural skin, soft light"),
            "picture": photo_node("Picture whose face changes"),
            **face_pass("picture.IMAGE", denoise=0.75, steps=30),
            "save": save_node("put_back.IMAGE", "hyperlora_face"),
        },
        groups=[
            Group("1 Who", WHO),
            Group("2 Model", [["checkpoint", "clip_skip", "apply"], ["prompt", "positive", "negative"]]),
            Group("3 Picture", [["picture"]]),
            Group("4 The face again", FACE_PASS),
            Group("5 Put back", PUT_BACK),
        ],
        note=f"""## Change only the face

A picture keeps everything, hair, clothes, background; the face becomes the person's.

The green nodes are yours to change:

1. **Load Image**: drop a photo of the person on it.
2. **Picture whose face changes** (Load Image): any picture with a face.
3. **Trigger Prompt**: write how the face is: expression, light, glasses. The trigger words are added for you.
4. Press **Run**. **Which face** shows the one that is painted.

**KSampler: the face again**, *denoise*: 0.75 to begin with. Lower keeps more of the old face's expression and light,
higher forgets the old face.

**Detect Faces**: the largest face. For another one choose *index* and its number, counted from the left. If no face is found,
the run stops and says so.

**Several people**, each with a face of their own: copy groups 1 (**Load Image** to **Generate LoRA**), 2 (**Apply**, and a prompt
of their own if they differ), 4 and 5 for each further person. Wire the copy's **Detect Faces** and **Image Composite Masked** to the
picture that the first one gives, and choose *left* and *right*, or *index*.

*base_weight* is 0 here: the photo's hair and clothes have no place in this picture.

Do this to pictures of people only if they agree to it, the one in the photo and the one in the picture.

{files_to_get()}""",
    )
