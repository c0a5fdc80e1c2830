"""Somebody else's pose or picture as the guide: ControlNet, InstantID's ControlNet, image to image."""

from .parts import Group, Node, Workflow, file_name
from .pieces import (
    VAE,
    apply_node,
    checkpoint_nodes,
    decode_node,
    files_to_get,
    person_nodes,
    photo_node,
    prompt_nodes,
    sampler_node,
    save_node,
    size_node,
)

WHO = [["hyperlora", "face_analysis", "photo"], ["identity", "lora"]]
INSTANTID_PACK = "ComfyUI_InstantID (https://github.com/cubiq/ComfyUI_InstantID)"
INSTANTID_SIDE = 1016  # px: with 1024 its pictures often show a watermark


def pose() -> Workflow:
    return Workflow(
        nodes={
            **checkpoint_nodes(),
            **person_nodes(),
            "apply": apply_node(),
            **prompt_nodes("photo of a person dancing in a street, full body, summer, jeans, white shirt"),
            "skeleton": photo_node("Pose: a drawn skeleton"),
            "control_net": Node("ControlNetLoader", {"control_net_name": file_name("openpose")}, models=["openpose"]),
            "control": Node(
                "ControlNetApplyAdvanced",
                {"strength": 0.8, "end_percent": 0.8},
                {
                    "positive": "positive.CONDITIONING",
                    "negative": "negative.CONDITIONING",
                    "control_net": "control_net.CONTROL_NET",
                    "image": "skeleton.IMAGE",
                    "vae": VAE,
                },
            ),
            "size": size_node(832, 1216),
            "sampler": sampler_node(positive="control.positive", negative="control.negative"),
            "decode": decode_node(),
            "save": save_node(prefix="hyperlora_pose"),
        },
        groups=[
            Group("1 Who", WHO),
            Group("2 Model", [["checkpoint", "clip_skip", "apply"], ["prompt", "positive", "negative"]]),
            Group("3 Pose", [["skeleton", "control_net", "control"]]),
            Group("4 Picture", [["size", "sampler", "decode", "save"]]),
        ],
        note=f"""## A person in a pose

The green nodes are yours to change:

1. **Load Image**: drop a photo of the person on it.
2. **Pose** (Load Image): a picture of an OpenPose skeleton, coloured sticks on black, of about the form of the picture
   (832 x 1216). Pose libraries have thousands; ControlNet preprocessors make one from any photo.
3. **Trigger Prompt**: write what the picture shows, the pose too. The trigger words are added for you.
4. Press **Run**.

**Apply ControlNet**: less *strength*, and the pose is a hint. *end_percent* 0.8 leaves the last steps, where the face gets
its details, to the person.

HyperLoRA changes the model, ControlNet steers it: they don't get in each other's way. A ControlNet for depth or edges works
the same: choose it in **Load ControlNet Model** and give it its kind of picture.

When the face is small, put the template **06_face_detailer** behind it.

{files_to_get("openpose")}""",
    )


def instantid_nodes() -> dict[str, Node]:
    """InstantID's three loaders."""
    return {
        "instantid": Node("InstantIDModelLoader", {"instantid_file": "ip-adapter.bin"}),
        "instantid_faces": Node("InstantIDFaceAnalysis", {"provider": "CPU"}),
        "instantid_control": Node(
            "ControlNetLoader", {"control_net_name": file_name("instantid")}, models=["instantid"]
        ),
    }


def instantid_pose() -> Workflow:
    return Workflow(
        nodes={
            **checkpoint_nodes(),
            **person_nodes(),
            "apply": apply_node(weight=0.85),
            **prompt_nodes("portrait photo of a person in a library, warm light, green coat"),
            "framing": photo_node("Photo: pose of the head"),
            **instantid_nodes(),
            "control": Node(
                "ApplyInstantIDAdvanced",
                {"ip_weight": 0.0, "cn_strength": 0.6},
                {
                    "instantid": "instantid.INSTANTID",
                    "insightface": "instantid_faces.FACEANALYSIS",
                    "control_net": "instantid_control.CONTROL_NET",
                    "image": "photo.IMAGE",
                    "model": "apply.model",
                    "positive": "positive.CONDITIONING",
                    "negative": "negative.CONDITIONING",
                    "image_kps": "framing.IMAGE",
                },
            ),
            "size": size_node(INSTANTID_SIDE, INSTANTID_SIDE),
            "sampler": sampler_node("control.MODEL", positive="control.positive", negative="control.negative", cfg=3.0),
            "decode": decode_node(),
            "save": save_node(prefix="hyperlora_instantid"),
        },
        groups=[
            Group("1 Who", WHO),
            Group("2 Model", [["checkpoint", "clip_skip", "apply"], ["prompt", "positive", "negative"]]),
            Group("3 InstantID", [["framing", "instantid", "instantid_faces"], ["instantid_control", "control"]]),
            Group("4 Picture", [["size", "sampler", "decode", "save"]]),
        ],
        note=f"""## With InstantID's ControlNet

The pair that HyperLoRA's authors recommend: HyperLoRA says who, InstantID's ControlNet says where the eyes, nose and mouth
are. InstantID's own identity is off (*ip_weight* 0).

The green nodes are yours to change:

1. **Load Image**: drop a photo of the person on it.
2. **Photo: pose of the head** (Load Image): any photo, of anybody; where its face is, and how it is turned, is where the
   person's will be. The photo of the person itself will do.
3. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
4. Press **Run**.

The authors' numbers: HyperLoRA 0.85, ControlNet (*cn_strength*) 0.6, CFG 3. 1016 x 1016, because at 1024 InstantID often
paints a watermark.

## Node packs

{INSTANTID_PACK}: ComfyUI Manager installs it.

{files_to_get("instantid")}""",
    )


def restyle() -> Workflow:
    return Workflow(
        nodes={
            **checkpoint_nodes(),
            **person_nodes(),
            "apply": apply_node(weight=0.7, blocks="soft", start=0.1, mode="bypass"),
            **prompt_nodes(
                "oil painting of a person in a garden, thick brush strokes, impressionism, warm colours",
                "photo, blurry, low quality, deformed, watermark, text",
            ),
            "picture": photo_node("Picture to paint over"),
            "scale": Node(
                "ImageScaleToTotalPixels", {"upscale_method": "lanczos", "megapixels": 1.0}, {"image": "picture.IMAGE"}
            ),
            "encode": Node("VAEEncode", links={"pixels": "scale.IMAGE", "vae": VAE}),
            "sampler": sampler_node(latent="encode.LATENT", denoise=0.65),
            "decode": decode_node(),
            "save": save_node(prefix="hyperlora_style"),
        },
        groups=[
            Group("1 Who", WHO),
            Group("2 Model", [["checkpoint", "clip_skip", "apply"], ["prompt", "positive", "negative"]]),
            Group("3 Picture to paint over", [["picture", "scale", "encode"]]),
            Group("4 Picture", [["sampler", "decode", "save"]]),
        ],
        note=f"""## Image to image, and a style

A picture gives the composition, the prompt the style, a photo the person.

The green nodes are yours to change:

1. **Load Image**: drop a photo of the person on it.
2. **Picture to paint over** (Load Image): a photo, a sketch, a painting. It is brought to one megapixel.
3. **Trigger Prompt**: write the style first, then what the picture shows. The trigger words are added for you.
4. Press **Run**.

**KSampler**, *denoise*: 0.65 to begin with. Lower keeps more of the picture, higher follows the prompt more.

**Apply HyperLoRA** gives way to the style: *weight* 0.7 instead of 0.8, *blocks* = soft (less of the skin's surface),
*start* 0.1, and *mode* = bypass, in which a start costs nothing. Still too much of a photo: less *weight*. A stranger: more.

A style LoRA goes before or behind **Apply HyperLoRA**, with core's **Load LoRA**.

{files_to_get()}""",
    )
