"""What a server's history says of a job."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .workflow import Workflow, links, title

# the last words of our own exceptions: they speak of the input, so the same job fails again
_FINAL = ("HyperLoRAError", "NoFaceError", "MissingPackageError")
SIMILARITY = "HyperLoRASimilarity"


class RemoteFile(NamedTuple):
    """A file on a server, in the terms of /view."""

    filename: str
    subfolder: str
    type: str  # output, temp or input


class Outcome(NamedTuple):
    """How a job ended."""

    error: str | None  # a sentence from the server; None: it succeeded
    final: bool  # trying again won't help
    files: tuple[RemoteFile, ...]
    similarity: float | None
    seconds: float | None  # that the server worked


def read_outcome(workflow: Workflow, entry: Mapping[str, Any]) -> Outcome:
    """From an entry of /history/{prompt_id}."""
    status = entry.get("status") or {}
    messages = dict(status.get("messages", ()))
    outputs = entry.get("outputs", {})
    gates = [node for node in _meters(workflow) if workflow[node]["inputs"].get("gate", "off") != "off"]
    # previews of steps before a closed gate aren't what was asked for
    files = _files(outputs, previews=not gates)
    error, final = _error(workflow, status, messages)
    if error is None and not files:
        error, final = _nothing_saved(workflow, gates, outputs), True
    return Outcome(error, final, files, _similarity(workflow, outputs), _seconds(messages))


def refusal(answer: Mapping[str, Any]) -> str:
    """The sentence in what a server answers to a workflow that it doesn't accept."""
    problem = answer.get("error") or {}
    parts = [problem if isinstance(problem, str) else problem.get("message", "The workflow was refused")]
    for node, said in (answer.get("node_errors") or {}).items():
        for reason in said.get("errors", ()):
            parts.append(f"{said.get('class_type', 'node')} ({node}): {reason.get('message')}: {reason.get('details')}")
    return "; ".join(part.strip() for part in parts)


def _error(workflow: Workflow, status: Mapping, messages: Mapping[str, Mapping]) -> tuple[str | None, bool]:
    if problem := messages.get("execution_error"):
        kind = str(problem.get("exception_type", "")).rpartition(".")[2]
        said = " ".join(str(problem.get("exception_message", "")).split()) or kind
        return f"{_node_words(workflow, problem.get('node_id'))}: {said}", kind in _FINAL
    if stopped := messages.get("execution_interrupted"):
        return f"{_node_words(workflow, stopped.get('node_id'))}: somebody stopped it on the server", False
    if status.get("status_str") == "error":
        return "The server says that it failed, and not why: look at its log.", False
    return None, False


def _node_words(workflow: Workflow, node: object) -> str:
    return f"{title(workflow, node)} ({node})" if node in workflow else f"Node {node}"


def _nothing_saved(workflow: Workflow, gates: Sequence[str], outputs: Mapping[str, Mapping]) -> str:
    for node in gates:
        words = _text(outputs, node).rpartition("\n")[2]
        if words and not words.startswith("Mean"):  # the last line of its report, if it did something
            return f"{_node_words(workflow, node)}: {words.rstrip('.')}. Try other seeds, or lower the threshold."
    return "The workflow saved no file: it needs a Save Image node that is reached."


def _files(outputs: Mapping[str, Mapping], previews: bool) -> tuple[RemoteFile, ...]:
    """Of every kind (pictures, videos...): what is saved; where nothing is, what is previewed."""
    found = [
        RemoteFile(item["filename"], item.get("subfolder", ""), item.get("type", "output"))
        for _, output in sorted(outputs.items(), key=lambda pair: (len(pair[0]), pair[0]))
        for items in output.values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and item.get("filename")
    ]
    saved = [file for file in found if file.type == "output"]
    return tuple(dict.fromkeys(saved or [file for file in found if previews and file.type == "temp"]))


def _similarity(workflow: Workflow, outputs: Mapping[str, Mapping]) -> float | None:
    """The number of the similarity node: shown by a node behind it, else the mean in its own report (two digits)."""
    meters = _meters(workflow)
    shown = [node for node, spec in workflow.items() if any(source in meters for _, source, _ in links(spec))]
    number = r"\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)\s*"
    for nodes, pattern in ((shown, number), (meters, rf".*^Mean{number}$.*")):
        for node in nodes:
            if match := re.fullmatch(pattern, _text(outputs, node), re.MULTILINE | re.DOTALL):
                return float(match[1])
    return None


def _meters(workflow: Workflow) -> list[str]:
    return [node for node, spec in workflow.items() if spec["class_type"] == SIMILARITY]


def _text(outputs: Mapping[str, Mapping], node: str) -> str:
    """What the node shows in words."""
    return "".join(part for part in outputs.get(node, {}).get("text", ()) if isinstance(part, str))


def _seconds(messages: Mapping[str, Mapping]) -> float | None:
    start, end = (messages.get(f"execution_{word}", {}).get("timestamp") for word in ("start", "success"))
    return round((end - start) / 1000, 2) if start and end else None
