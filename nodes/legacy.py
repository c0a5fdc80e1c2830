"""The ids of the authors' pack, so that workflows saved with it open and run unchanged; ours do the work.

Inputs and outputs stand in their order, under their names. HyperLoRASaveLoRA, the eleventh id, is our own node.
"""

from comfy_api.latest import io

from ..hyperlora_core import Identity
from ..hyperlora_core.photo import read_batch
from ..hyperlora_core.pictures import image_batch
from . import folders
from .apply import apply
from .host import PRECISIONS
from .identity import CROP_SIZE
from .legacy_work import (
    Config,
    LegacyHyperLoRA,
    base_condition,
    checkpoint_names,
    faces_of,
    id_condition,
    lora_of,
)
from .types import CATEGORY, LegacyBaseCondition, LegacyConfig, LegacyFaces, LegacyIDCondition, LegacyLoRA, LegacyModel

IGNORED = "Not needed any more: it is read from the checkpoint's files."


def legacy_schema(name: str, description: str, inputs: list, outputs: list) -> io.Schema:
    return io.Schema(
        node_id=f"HyperLoRA{name.replace(' ', '')}",
        display_name=f"HyperLoRA {name} (old)",
        category=f"{CATEGORY}/legacy",
        description=description,
        search_aliases=[f"HyperLoRA{name.replace(' ', '')}", "authors' pack"],
        inputs=inputs,
        outputs=outputs,
        is_deprecated=True,
    )


def model_wire():
    return LegacyModel.Input("hyper_lora", tooltip="From HyperLoRA Loader or HyperLoRA Uni Loader.")


def model_output():
    return LegacyModel.Output("HYPER_LORA", tooltip="For the other nodes of the authors' pack.")


def images_input():
    return io.Image.Input("images", tooltip="Photos of ONE person, one or a batch.")


def faces_input():
    return LegacyFaces.Input("face_attr", tooltip="From HyperLoRA Face Attr, of the same photos.")


def picture_inputs() -> list:
    return [
        io.Boolean.Input("grayscale", default=False, tooltip="Show the network the face without colour."),
        io.Boolean.Input("remove_background", default=True, tooltip="Show the network the face only."),
    ]


def crops_output():
    return io.Image.Output("IMAGE", tooltip="What the network saw of each photo.")


def lora_output():
    return LegacyLoRA.Output("LORA", tooltip="For HyperLoRA Apply LoRA and Save Person's LoRA.")


def image_encoder_inputs() -> list:
    return [
        io.Combo.Input("image_processor", options=["clip_vit_large_14_processor"], tooltip=IGNORED),
        io.Combo.Input(
            "image_encoder",
            options=["clip_vit_large_14"],
            tooltip="The CLIP image tower. If there is none of that name, the one that fits the checkpoint is taken.",
        ),
    ]


def encoder_types_input():
    return io.Combo.Input("encoder_types", options=["clip + arcface", "clip", "arcface"], tooltip=IGNORED)


def face_analyzer_input():
    packs = folders.face_pack_names()
    return io.Combo.Input("face_analyzer", options=packs, default=packs[0], tooltip="The face pack.")


def size(name: str, default: int):
    return io.Int.Input(name, default=default, min=1, max=65536, tooltip=IGNORED)


def model_inputs() -> list:
    return [
        io.Combo.Input("model", options=checkpoint_names(), tooltip="A HyperLoRA checkpoint's folder."),
        io.Combo.Input("dtype", options=list(PRECISIONS), tooltip="Precision of the computation."),
    ]


class HyperLoRAConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Config",
            "The sizes of a checkpoint, which today are read from its files. New: Load HyperLoRA, Load Face Analysis.",
            [
                *image_encoder_inputs(),
                size("resampler.dim", 1024),
                size("resampler.dim_head", 64),
                size("resampler.heads", 12),
                size("resampler.depth", 4),
                size("resampler.ff_mult", 4),
                encoder_types_input(),
                face_analyzer_input(),
                size("id_embed_dim", 512),
                size("num_id_tokens", 16),
                size("hyper_dim", 128),
                size("lora_rank", 8),
                io.Boolean.Input("has_base_lora", default=False, tooltip=IGNORED),
            ],
            [LegacyConfig.Output("HYPER_LORA_CONFIG", tooltip="For HyperLoRA Loader.")],
        )

    @classmethod
    def validate_inputs(cls, image_processor: str, image_encoder: str, encoder_types: str) -> bool:
        """Whatever another machine called them: what fits the checkpoint is found."""
        return True

    @classmethod
    def execute(cls, image_encoder: str, face_analyzer: str, **_sizes) -> io.NodeOutput:
        return io.NodeOutput(Config(image_encoder, face_analyzer))


class HyperLoRALoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Loader",
            "Loads a checkpoint and its encoders. New: Load HyperLoRA, Load Face Analysis.",
            [LegacyConfig.Input("config", tooltip="From HyperLoRA Config."), *model_inputs()],
            [model_output()],
        )

    @classmethod
    def execute(cls, config: Config, model: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(LegacyHyperLoRA(model, dtype, config))


class HyperLoRAIDCond(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "ID Cond",
            "Reads the faces of the photos. New: Encode Identity.",
            [model_wire(), images_input(), faces_input(), *picture_inputs()],
            [LegacyIDCondition.Output("ID_COND", tooltip="For HyperLoRA Generate ID LoRA."), crops_output()],
        )

    @classmethod
    def execute(
        cls, hyper_lora: LegacyHyperLoRA, images, face_attr: list, grayscale: bool, remove_background: bool
    ) -> io.NodeOutput:
        condition, crops = id_condition(
            hyper_lora, read_batch(images, "Photo"), face_attr, grayscale, remove_background
        )
        return io.NodeOutput(condition, image_batch(crops, CROP_SIZE))


class HyperLoRABaseCond(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Base Cond",
            "Reads the surroundings of the faces, for checkpoints with a base branch. New: Encode Identity.",
            [
                model_wire(),
                images_input(),
                faces_input(),
                io.Boolean.Input(
                    "crop", default=True, tooltip="Off: the whole photo instead of the face's surroundings."
                ),
                io.String.Input(
                    "crop_scale_LRTB",
                    default="1,1,1,1",
                    tooltip="How far the crop reaches to the left, right, top and bottom, as shares of the usual.",
                ),
                io.Boolean.Input(
                    "safe_crop", default=True, tooltip="End the crop at the photo's edges. Off: black beyond."
                ),
            ],
            [LegacyBaseCondition.Output("BASE_COND", tooltip="For HyperLoRA Generate Base LoRA."), crops_output()],
        )

    @classmethod
    def execute(
        cls, hyper_lora: LegacyHyperLoRA, images, face_attr: list, crop: bool, crop_scale_LRTB: str, safe_crop: bool
    ) -> io.NodeOutput:
        scale = crop_scale_LRTB if crop else None
        condition, crops = base_condition(hyper_lora, read_batch(images, "Photo"), face_attr, scale, safe_crop)
        return io.NodeOutput(condition, image_batch(crops, CROP_SIZE))


class HyperLoRAGenerateIDLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Generate ID LoRA",
            "Writes the person's LoRA. New: Generate LoRA.",
            [model_wire(), LegacyIDCondition.Input("id_cond", tooltip="From HyperLoRA ID Cond.")],
            [lora_output()],
        )

    @classmethod
    def execute(cls, hyper_lora: LegacyHyperLoRA, id_cond: Identity) -> io.NodeOutput:
        return io.NodeOutput(lora_of(hyper_lora, id_cond, "id"))


class HyperLoRAGenerateBaseLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Generate Base LoRA",
            "Writes the LoRA of the photos' surroundings. New: Generate LoRA.",
            [model_wire(), LegacyBaseCondition.Input("base_cond", tooltip="From HyperLoRA Base Cond.")],
            [lora_output()],
        )

    @classmethod
    def execute(cls, hyper_lora: LegacyHyperLoRA, base_cond: Identity) -> io.NodeOutput:
        return io.NodeOutput(lora_of(hyper_lora, base_cond, "base"))


class HyperLoRAApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Apply LoRA",
            "Puts a LoRA on the model. New: Apply HyperLoRA.",
            [
                io.Model.Input("model", tooltip="An SDXL model."),
                LegacyLoRA.Input("lora", tooltip="From HyperLoRA Generate ID LoRA or Generate Base LoRA."),
                io.Float.Input(
                    "weight",
                    default=0.8,
                    min=-1.5,
                    max=1.5,
                    step=0.01,
                    tooltip="Strength. 0.75 to 0.85 suits most checkpoints; for a base LoRA 0.4.",
                ),
            ],
            [io.Model.Output("MODEL", tooltip="For the sampler, or for another LoRA.")],
        )

    @classmethod
    def execute(cls, model, lora: dict, weight: float) -> io.NodeOutput:
        return io.NodeOutput(apply(model, lora, weight))


class HyperLoRAFaceAttr(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Face Attr",
            "Finds the largest face of each photo. New: Encode Identity does it along the way.",
            [model_wire(), images_input()],
            [LegacyFaces.Output("FACE_ATTR", tooltip="For HyperLoRA ID Cond and Base Cond.")],
        )

    @classmethod
    def execute(cls, hyper_lora: LegacyHyperLoRA, images) -> io.NodeOutput:
        return io.NodeOutput(faces_of(hyper_lora, read_batch(images, "Photo")))


class HyperLoRAUniLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Uni Loader",
            "Loads a checkpoint and its encoders. New: Load HyperLoRA, Load Face Analysis.",
            [*image_encoder_inputs(), encoder_types_input(), face_analyzer_input(), *model_inputs()],
            [model_output()],
        )

    @classmethod
    def validate_inputs(cls, image_processor: str, image_encoder: str, encoder_types: str) -> bool:
        """As HyperLoRAConfig's."""
        return True

    @classmethod
    def execute(cls, image_encoder: str, face_analyzer: str, model: str, dtype: str, **_ignored) -> io.NodeOutput:
        return io.NodeOutput(LegacyHyperLoRA(model, dtype, Config(image_encoder, face_analyzer)))


class HyperLoRAUniGenerateIDLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "Uni Generate ID LoRA",
            "Photos in, the person's LoRA out. New: Encode Identity, Generate LoRA.",
            [model_wire(), images_input(), *picture_inputs()],
            [lora_output()],
        )

    @classmethod
    def execute(cls, hyper_lora: LegacyHyperLoRA, images, grayscale: bool, remove_background: bool) -> io.NodeOutput:
        photos = read_batch(images, "Photo")
        faces = faces_of(hyper_lora, photos)
        condition, _ = id_condition(hyper_lora, photos, faces, grayscale, remove_background)
        return io.NodeOutput(lora_of(hyper_lora, condition, "id"))


NODES: list[type[io.ComfyNode]] = [
    HyperLoRAConfig,
    HyperLoRALoader,
    HyperLoRAIDCond,
    HyperLoRABaseCond,
    HyperLoRAGenerateIDLoRA,
    HyperLoRAGenerateBaseLoRA,
    HyperLoRAApplyLoRA,
    HyperLoRAFaceAttr,
    HyperLoRAUniLoader,
    HyperLoRAUniGenerateIDLoRA,
]
