"""Trigger words: in training they stood at the start of the caption whenever the identity was meant (scenario a)."""

TRIGGER = "fcsks fxhks fhyks"


def with_trigger(prompt: str) -> str:
    """`prompt` with the trigger words at its very start, once."""
    prompt = prompt.strip()
    if prompt.startswith(TRIGGER):
        return prompt
    return f"{TRIGGER}, {prompt}" if prompt else TRIGGER
