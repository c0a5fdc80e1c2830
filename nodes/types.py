"""The types that travel along our wires."""

from comfy_api.latest import io

CATEGORY = "HyperLoRA"

HyperLoRAModel = io.Custom("HYPERLORA")  # host.LoadedHyperLoRA
FaceAnalysis = io.Custom("FACEANALYSIS")  # insightface.app.FaceAnalysis, the type that other packs exchange
Faces = io.Custom("HYPERLORA_FACES")  # list of hyperlora_core.face.analyzer.Face for each picture of the batch
IdentityType = io.Custom("HYPERLORA_IDENTITY")  # hyperlora_core.Identity

# of the authors' pack, whose saved workflows name them
LegacyModel = io.Custom("HYPER_LORA")  # legacy.LegacyHyperLoRA
LegacyConfig = io.Custom("HYPER_LORA_CONFIG")  # legacy.Config
LegacyFaces = io.Custom("FACE_ATTR")  # list of hyperlora_core.face.analyzer.Face, one for each photo
LegacyIDCondition = io.Custom("ID_COND")  # coefficients of the ID branch [8 * modules, K]
LegacyBaseCondition = io.Custom("BASE_COND")  # coefficients of the base branch [8 * modules, K]
LegacyLoRA = io.Custom("LORA")  # as LORA_MODEL
