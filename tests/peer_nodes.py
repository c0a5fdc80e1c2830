"""What our workflows rely on of other packs' nodes: kept in fixtures/peer_nodes.json, written from the real packs.

    python tests/peer_nodes.py --server http://127.0.0.1:8188 --custom-nodes ~/comfy/ComfyUI/custom_nodes

The server is a ComfyUI that has those packs installed in that folder.
"""

import argparse
import json
import re
import urllib.request
from pathlib import Path

FIXTURE = Path(__file__).parent / "fixtures" / "peer_nodes.json"
USED = {
    "ComfyUI_InstantID": ["InstantIDModelLoader", "InstantIDFaceAnalysis", "ApplyInstantID", "ApplyInstantIDAdvanced"],
    "ComfyUI_IPAdapter_plus": ["IPAdapterUnifiedLoaderFaceID", "IPAdapterFaceID"],
    "PuLID_ComfyUI": ["PulidModelLoader", "PulidInsightFaceLoader", "PulidEvaClipLoader", "ApplyPulid"],
    "ComfyUI-Impact-Pack": ["FaceDetailer"],
    "ComfyUI-Impact-Subpack": ["UltralyticsDetectorProvider"],
}
# their choices are the host's samplers, or files on disk
CHOICES_OF_THE_MACHINE = {"sampler_name", "scheduler", "instantid_file", "pulid_file", "model_name"}


def kept(definition: dict) -> dict:
    """The part of a node's entry in /object_info that workflows depend on: names, types, defaults, limits, choices."""
    inputs = {
        group: {name: _kept_input(name, *spec) for name, spec in definition["input"][group].items()}
        for group in ("required", "optional")
        if group in definition["input"]
    }
    return {
        "input": inputs,
        "input_order": {group: list(names) for group, names in inputs.items()},
        "output": list(definition["output"]),
        "output_name": list(definition["output_name"]),
        "display_name": definition["display_name"],
    }


def _kept_input(name: str, kind: str | list, options: dict | None = None) -> list:
    choices = [] if isinstance(kind, list) and name in CHOICES_OF_THE_MACHINE else kind
    return [choices, {key: value for key, value in (options or {}).items() if key != "tooltip"}]


def pack(object_info: dict, folder: Path) -> dict:
    """A pack in its folder, as in the fixture: its name in the registry, its version, and the nodes that we use."""
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    # a regular expression, because tomllib is missing before Python 3.11
    about = {key: re.search(rf'^{key} *= *"(.+)"', text, re.M)[1] for key in ("name", "version", "Repository")}
    return {
        "name": about["name"],
        "version": about["version"],
        "repository": about["Repository"],
        "folder": folder.name,
        "nodes": {kind: kept(object_info[kind]) for kind in USED[folder.name]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--custom-nodes", type=Path, required=True)
    options = parser.parse_args()
    with urllib.request.urlopen(f"{options.server}/object_info", timeout=60) as answer:
        object_info = json.load(answer)
    packs = [pack(object_info, options.custom_nodes / name) for name in USED]
    FIXTURE.write_text(json.dumps(packs, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
