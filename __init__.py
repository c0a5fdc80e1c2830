"""HyperLoRA for ComfyUI: photos of a person in, a LoRA of that person in the model, without training.

nodes/            the nodes, one concept per file
hyperlora_core/   the library behind them; knows nothing of ComfyUI
workflows/        templates for the template browser; workflows/api/ the same for the HTTP API
models/           the catalog of weights to download, and the shipped demo models
web/docs/         a help page per node
"""

try:
    import comfy.utils  # noqa: F401
except ImportError:
    pass  # no ComfyUI here: pytest or a packaging tool looks at this folder
else:
    from .nodes import comfy_entrypoint  # noqa: F401

WEB_DIRECTORY = "./web"
