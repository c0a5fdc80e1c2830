"""Identities: photos encoded, people saved, loaded and blended."""

from contextlib import nullcontext
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..hyperlora_core import EncodeOptions, FaceAnalyzer, HyperLoRAError, Identity, PhotoEncoder
from ..hyperlora_core.encode import parse_weights
from ..hyperlora_core.files import free_name, numbered
from ..hyperlora_core.pictures import image_batch
from ..hyperlora_core.weighting import EQUAL, WEIGHTINGS
from . import folders, host
from .clip_vision import HostClipVision
from .faces import chosen_face, face_inputs
from .types import CATEGORY, HyperLoRAModel, IdentityType, face_analysis_input

CROP_SIZE = 512  # px, of the crops shown
MORE_PHOTOS = ("photos_2", "photos_3", "photos_4")


class HyperLoRAEncodeIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRAEncodeIdentity",
            display_name="Encode Identity",
            category=CATEGORY,
            description="Turns photos of one person into an identity. Save it, blend it, or generate its LoRA.",
            search_aliases=["face embedding", "face encoder", "photo to identity", "hyperlora id cond"],
            inputs=[
                HyperLoRAModel.Input("hyperlora", tooltip="From Load HyperLoRA."),
                face_analysis_input(),
                io.Image.Input("photos", tooltip="Photos of ONE person, one or a batch."),
                *face_inputs(),
                io.Boolean.Input(
                    "remove_background",
                    default=True,
                    tooltip="Show the network the face only. Off: hair and surroundings of the photo come along.",
                ),
                io.Boolean.Input(
                    "grayscale",
                    default=False,
                    tooltip="Show the network the face without colour, so that the photo's light and make-up matter less.",
                ),
                io.String.Input(
                    "photo_weights",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Share of each photo, such as 1, 1, 0.5. Empty: all alike.",
                ),
                *(
                    io.Image.Input(name, optional=True, tooltip="More photos of the same person, of any size.")
                    for name in MORE_PHOTOS
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Another CLIP ViT-L/14 than the one that Load HyperLoRA found.",
                ),
                # last and optional: workflows from before it was there still run
                io.Combo.Input(
                    "weighting",
                    options=list(WEIGHTINGS),
                    default=EQUAL,
                    optional=True,
                    tooltip="Which photos count more. quality: large, sharp, frontal faces. agreement: those that show "
                    "the same person as most; a wrong person among them is left out. Multiplied by photo_weights.",
                ),
            ],
            outputs=[
                IdentityType.Output("identity", tooltip="The person: for Generate LoRA, Save, Blend."),
                io.Image.Output("crops", tooltip="What the network saw of each photo."),
                io.String.Output("report", tooltip="What was found in each photo."),
            ],
        )

    @classmethod
    def execute(
        cls,
        hyperlora: host.LoadedHyperLoRA,
        face_analysis,
        photos,
        face: str,
        remove_background: bool,
        grayscale: bool,
        face_index: int = 0,
        photo_weights: str = "",
        photos_2=None,
        photos_3=None,
        photos_4=None,
        clip_vision=None,
        weighting: str = EQUAL,
    ) -> io.NodeOutput:
        batches = [batch for batch in (photos, photos_2, photos_3, photos_4) if batch is not None]
        pictures = [picture for batch in batches for picture in batch]
        options = EncodeOptions(chosen_face(face, face_index), remove_background, grayscale)
        weights = parse_weights(photo_weights)
        encoded = encode(hyperlora, face_analysis, pictures, options, weights, clip_vision, weighting)
        return io.NodeOutput(encoded.identity, image_batch(encoded.crops, CROP_SIZE), encoded.report)


def encode(
    loaded: host.LoadedHyperLoRA,
    face_analysis,
    pictures: list,
    options: EncodeOptions,
    weights=None,
    clip_vision=None,
    weighting: str = EQUAL,
):
    vision = loaded.vision if clip_vision is None else HostClipVision(clip_vision)
    encoder = PhotoEncoder(loaded.hyper, FaceAnalyzer(face_analysis), vision)
    return encoder.encode(pictures, options, weights, host.progress(len(pictures)), weighting)


class HyperLoRASaveIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRASaveIdentity",
            display_name="Save Identity",
            category=CATEGORY,
            description="Keeps a person as a small file (0.3 MB) in models/hyper_lora_identities, for Load Identity.",
            search_aliases=["save face", "save person", "face model"],
            inputs=[
                IdentityType.Input("identity", tooltip="From Encode Identity or Blend Identities."),
                io.String.Input(
                    "name", default="person", tooltip="The file's name; sub/name puts it into a sub-folder."
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name. Off: the new one gets a number."
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file lies.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, identity: Identity, name: str, overwrite: bool) -> io.NodeOutput:
        root = Path(folder_paths.get_folder_paths(folders.IDENTITIES)[0]).resolve()
        path = (root / f"{name.strip()}.safetensors").resolve()
        if not name.strip().split("/")[-1].strip(". ") or root not in path.parents:
            raise HyperLoRAError(
                f"{name!r} is not a name for a file in {root}: use letters, digits, and / for sub-folders."
            )
        with nullcontext(path) if overwrite else free_name(numbered(path)) as path:
            identity.save(path)
        return io.NodeOutput(str(path), ui={"text": [f"Saved {path.relative_to(root)}"]})


class HyperLoRALoadIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRALoadIdentity",
            display_name="Load Identity",
            category=CATEGORY,
            description="Loads a person saved by Save Identity. No photo, no face analysis needed.",
            search_aliases=["load face", "load person", "face model"],
            inputs=[
                io.Combo.Input(
                    "identity",
                    options=folders.identity_names(),
                    tooltip="A file in models/hyper_lora_identities. Press R to see new ones.",
                )
            ],
            outputs=[IdentityType.Output("identity", tooltip="The person: for Generate LoRA and Blend.")],
        )

    @classmethod
    def fingerprint_inputs(cls, identity: str) -> int:
        return (
            folders.identity_path(identity).stat().st_mtime_ns
        )  # a person saved anew under the same name is loaded anew

    @classmethod
    def execute(cls, identity: str) -> io.NodeOutput:
        return io.NodeOutput(Identity.load(folders.identity_path(identity)))


class HyperLoRABlendIdentities(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def weight(name: str, default: float, **more):
            return io.Float.Input(
                name,
                default=default,
                min=-2,
                max=2,
                step=0.05,
                tooltip="Share of this person; shares are scaled to sum to 1.",
                **more,
            )

        return io.Schema(
            node_id="HyperLoRABlendIdentities",
            display_name="Blend Identities",
            category=CATEGORY,
            description="Mixes two to four people into one who has something of each.",
            search_aliases=["mix faces", "face morph", "interpolate identities", "average people"],
            inputs=[
                IdentityType.Input("identity_a", tooltip="A person, from Encode, Load or Blend."),
                weight("weight_a", 0.5),
                IdentityType.Input("identity_b", tooltip="A person, from Encode, Load or Blend."),
                weight("weight_b", 0.5),
                IdentityType.Input("identity_c", tooltip="A person, from Encode, Load or Blend.", optional=True),
                weight("weight_c", 0.5, optional=True),
                IdentityType.Input("identity_d", tooltip="A person, from Encode, Load or Blend.", optional=True),
                weight("weight_d", 0.5, optional=True),
            ],
            outputs=[IdentityType.Output("identity", tooltip="The mixed person: for Generate LoRA, Save, Blend.")],
        )

    @classmethod
    def execute(
        cls, identity_a, weight_a, identity_b, weight_b, identity_c=None, weight_c=0.5, identity_d=None, weight_d=0.5
    ) -> io.NodeOutput:
        people = [(identity_a, weight_a), (identity_b, weight_b), (identity_c, weight_c), (identity_d, weight_d)]
        return io.NodeOutput(
            Identity.blend([(identity, weight) for identity, weight in people if identity is not None])
        )
