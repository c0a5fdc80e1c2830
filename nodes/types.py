"""The types that travel along our wires."""

from comfy_api.latest import io

CATEGORY = "HyperLoRA"

HyperLoRAModel = io.Custom("HYPERLORA")  # host.LoadedHyperLoRA
FaceAnalysis = io.Custom("FACEANALYSIS")  # insightface.app.FaceAnalysis, as InstantID's and PuLID's nodes call it
InsightFace = io.Custom("INSIGHTFACE")  # the same, as IP-Adapter's call it
Faces = io.Custom("HYPERLORA_FACES")  # list of hyperlora_core.face.analyzer.Face for each picture of the batch
IdentityType = io.Custom("HYPERLORA_IDENTITY")  # hyperlora_core.Identity

# of the authors' pack, whose saved workflows name them
LegacyModel = io.Custom("HYPER_LORA")  # legacy.LegacyHyperLoRA
LegacyConfig = io.Custom("HYPER_LORA_CONFIG")  # legacy.Config
LegacyFaces = io.Custom("FACE_ATTR")  # list of hyperlora_core.face.analyzer.Face, one for each photo
LegacyIDCondition = io.Custom("ID_COND")  # coefficients of the ID branch [8 * modules, K]
LegacyBaseCondition = io.Custom("BASE_COND")  # coefficients of the base branch [8 * modules, K]
LegacyLoRA = io.Custom("LORA")  # as LORA_MODEL


def face_analysis_input(tooltip: str = "From Load Face Analysis, or another pack's loader.", **options):
    """Under either name, since all packs mean the same object."""
    return io.MultiType.Input("face_analysis", [FaceAnalysis, InsightFace], tooltip=tooltip, **options)
