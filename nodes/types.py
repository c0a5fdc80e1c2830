"""The types that travel along our wires."""

from comfy_api.latest import io

CATEGORY = "HyperLoRA"

HyperLoRAModel = io.Custom("HYPERLORA")  # host.LoadedHyperLoRA
FaceAnalysis = io.Custom("FACEANALYSIS")  # insightface.app.FaceAnalysis, the type that other packs exchange
Faces = io.Custom("HYPERLORA_FACES")  # list of hyperlora_core.face.analyzer.Face for each picture of the batch
IdentityType = io.Custom("HYPERLORA_IDENTITY")  # hyperlora_core.Identity
