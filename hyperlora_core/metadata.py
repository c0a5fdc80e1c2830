"""What a LoRA file says of itself, in the keys that LoRA managers read (modelspec) and in our own."""

from datetime import datetime, timezone

from .identity import Identity
from .prompt import TRIGGER


def describe(title: str, identity: Identity | None = None, base_weight: float | None = None) -> dict[str, str]:
    """Metadata for `save_lora`; `base_weight`: at which weight the base branch was joined in."""
    metadata = {
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.description": "A person's LoRA, written by HyperLoRA from photos. Use it at 0.75 to 0.85.",
        "modelspec.trigger_phrase": TRIGGER,
    }
    if identity is not None:
        metadata |= {
            "hyperlora.checkpoint": identity.checkpoint,
            "hyperlora.fingerprint": identity.fingerprint,
            "hyperlora.photo_count": str(identity.photo_count),
        }
    if base_weight is not None:
        metadata["hyperlora.base_weight"] = f"{base_weight:g}"
    return metadata
