"""Sliders, photo weighting, similarity with its gate, and comparison sheets, in a real host."""

import io
import json
import urllib.request

import numpy as np
import pytest
from bad_inputs import assert_sentence
from graphs import demo
from people import photo_of
from PIL import Image


def load(image: str) -> dict:
    return {"class_type": "LoadImage", "inputs": {"image": image}}


def encode(photos: list, **more) -> dict:
    inputs = {"hyperlora": ["2", 0], "face_analysis": ["3", 0], "photos": photos, "face": "largest"}
    return {
        "class_type": "HyperLoRAEncodeIdentity",
        "inputs": inputs | {"remove_background": True, "grayscale": False} | more,
    }


# slider


def with_slider(photo: str, other: str, amount: float, mode: str = "merge") -> dict:
    """The demo with the slider from the photo's person to the other's behind the person's own LoRA."""
    graph = demo(photo, HyperLoRAApply={"mode": mode})
    graph["20"] = load(other)
    graph["21"] = encode(["20", 0])
    graph["22"] = {
        "class_type": "HyperLoRASlider",
        "inputs": {"hyperlora": ["2", 0], "identity_from": ["5", 0], "identity_to": ["21", 0], "amount": amount},
    }
    graph["23"] = {
        "class_type": "HyperLoRAApply",
        "inputs": {
            "model": ["7", 0], "id_lora": ["22", 0], "weight": 1.0, "base_lora": ["22", 1], "base_weight": 1.0, "mode": mode,
        },
    }  # fmt: skip
    graph["12"]["inputs"]["model"] = ["23", 0]
    return graph


@pytest.mark.parametrize("mode", ["merge", "bypass"])
def test_slider_moves_and_is_off_at_zero(server, anna, ben, mode):
    plain = server.run(demo(anna, HyperLoRAApply={"mode": mode})).picture().astype(int)
    off = server.run(with_slider(anna, ben, 0.0, mode)).picture().astype(int)
    assert np.abs(off - plain).mean() < 0.5
    there, back = (server.run(with_slider(anna, ben, amount, mode)).picture().astype(int) for amount in (1.5, -1.5))
    assert np.abs(there - plain).mean() > 1 and np.abs(back - plain).mean() > 1
    assert np.abs(there - back).mean() > 1


def test_slider_to_the_other_person_gives_that_person(server, anna, ben):
    """Anna at weight 1 plus the whole way from Anna to Ben is Ben at weight 1."""
    graph = with_slider(anna, ben, 1.0)
    graph["7"]["inputs"] |= {"weight": 1.0, "base_weight": 1.0}
    arrived = server.run(graph).picture().astype(int)
    wanted = server.run(demo(ben, HyperLoRAApply={"weight": 1.0, "base_weight": 1.0})).picture().astype(int)
    assert np.abs(arrived - wanted).mean() < 1


def test_slider_between_one_photo_and_itself(server, anna):
    graph = with_slider(anna, anna, 0.7)
    graph["22"]["inputs"]["identity_to"] = ["5", 0]
    assert_sentence(server.run(graph).error, ("Both ends of the slider are the same identity",))


# photo weighting


def weighted(server, anna: str, ben: str, weighting: str | None) -> dict:
    graph = demo(anna)
    for number, name in (
        ("20", server.upload(photo_of(0, 5), "anna_2.png")),
        ("21", server.upload(photo_of(0, 6), "anna_3.png")),
        ("22", ben),
    ):
        graph[number] = load(name)
    graph["5"]["inputs"] |= {"photos_2": ["20", 0], "photos_3": ["21", 0]}
    if weighting is not None:
        graph["5"]["inputs"] |= {"photos_4": ["22", 0], "weighting": weighting}
    graph["30"] = {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}}
    return graph


def test_agreement_leaves_the_wrong_photo_out(server, anna, ben):
    right = server.run(weighted(server, anna, ben, None)).picture("14").astype(int)
    result = server.run(weighted(server, anna, ben, "agreement"))
    off = np.abs(result.picture("14").astype(int) - right).mean()
    lines = result.text("30").splitlines()
    assert len(lines) == 4 and "another person?" in lines[3] and lines[3].endswith("share 0%")
    equal = server.run(weighted(server, anna, ben, "equal"))
    assert np.abs(equal.picture("14").astype(int) - right).mean() > 2 * off
    assert "share" not in equal.text("30")
    assert "quality 0." in server.run(weighted(server, anna, ben, "quality")).text("30")


# similarity


def judged(server, *photos: str, **inputs) -> dict:
    """Photos as a batch, compared with the first; what passes the gate is saved by 40, the report shown by 41."""
    graph = {str(number): load(name) for number, name in enumerate(photos, start=1)}
    batch = ["1", 0]
    for number in range(2, len(photos) + 1):
        graph[str(10 + number)] = {
            "class_type": "ImageBatch", "inputs": {"image1": batch, "image2": [str(number), 0]},
        }  # fmt: skip
        batch = [str(10 + number), 0]
    graph["30"] = {
        "class_type": "HyperLoRALoadFaceAnalysis",
        "inputs": {"face_pack": "demo (shipped)", "provider": "auto"},
    }
    graph["31"] = {
        "class_type": "HyperLoRASimilarity",
        "inputs": {
            "face_analysis": ["30", 0], "reference": ["1", 0], "images": batch, "gate": "off", "threshold": 0.35, **inputs,
        },
    }  # fmt: skip
    graph["40"] = {"class_type": "SaveImage", "inputs": {"images": ["31", 2], "filename_prefix": "judged"}}
    graph["41"] = {"class_type": "PreviewAny", "inputs": {"source": ["31", 1]}}
    graph["42"] = {"class_type": "PreviewAny", "inputs": {"source": ["31", 0]}}
    return graph


@pytest.fixture(scope="session")
def trio(server, anna, ben):
    return anna, server.upload(photo_of(0, 5), "anna_2.png"), ben


def test_similarity_in_number_text_and_pictures(server, trio):
    result = server.run(judged(server, *trio))
    assert len(result.outputs["40"]["images"]) == 3
    lines = result.text("41").splitlines()
    assert lines[0] == "Picture 1: similarity 1.00" and lines[-1].startswith("Mean ")
    values = [float(line.split()[-1]) for line in lines[:3]]
    assert values[1] > 0.35 > values[2]
    assert float(result.text("42")) == pytest.approx(sum(values) / 3, abs=0.01)


def test_gate_removes_what_is_not_like(server, trio):
    result = server.run(judged(server, *trio, gate="remove"))
    assert len(result.outputs["40"]["images"]) == 2
    assert "2 of 3 pictures passed" in result.text("41")
    none = server.run(judged(server, *trio, gate="remove", threshold=1.0, reference=["3", 0], images=["1", 0]))
    assert none.error is None and "40" not in none.outputs and "0 of 1 pictures passed" in none.text("41")


def test_gate_stops_quietly_or_with_an_error(server, trio):
    stopped = server.run(judged(server, *trio, gate="stop", threshold=0.99))
    assert stopped.error is None and "40" not in stopped.outputs
    assert "nothing behind this gate was run" in stopped.text("41")
    assert len(server.run(judged(server, *trio, gate="stop", threshold=0.1)).outputs["40"]["images"]) == 3
    failed = server.run(judged(server, *trio, gate="error", threshold=0.99))
    assert_sentence(failed.error, ("mean similarity", "below the threshold 0.99", "another seed"))


def test_similarity_to_a_photo_without_a_face(server, trio):
    empty = server.upload(Image.new("RGB", (200, 200), (120, 130, 140)), "empty.png")
    assert_sentence(server.run(judged(server, empty, *trio)).error, ("No face was found in reference photo 1",))
    report = server.run(judged(server, trio[0], empty)).text("41")
    assert "Picture 2: no face found" in report


# comparison


def compared(server, photos: list[str], **inputs) -> dict:
    graph = {str(number): load(name) for number, name in enumerate(photos, start=1)}
    graph["30"] = {
        "class_type": "HyperLoRACompare",
        "inputs": {f"images_{number}": [str(number), 0] for number in range(1, len(photos) + 1)}
        | {"labels": "photo\nanother", "picture_size": 128}
        | inputs,
    }
    graph["31"] = {"class_type": "SaveImage", "inputs": {"images": ["30", 0], "filename_prefix": "compared"}}
    graph["32"] = {"class_type": "PreviewAny", "inputs": {"source": ["30", 1]}}
    graph["33"] = {
        "class_type": "HyperLoRALoadFaceAnalysis",
        "inputs": {"face_pack": "demo (shipped)", "provider": "auto"},
    }
    return graph


def test_comparison_is_shown_and_saved_with_the_workflow(server, trio):
    graph = compared(server, list(trio), face_analysis=["33", 0], reference=["2", 0])
    result = server.run(graph)
    sheet = result.picture("31")
    assert sheet.shape[1] == 3 * 128 and sheet.shape[0] > 128 + 2 * 16
    assert np.array_equal(result.picture("30"), sheet)  # shown on the node itself
    lines = result.text("32").splitlines()
    assert [line.split(":")[0] for line in lines] == ["photo", "another", "C"]
    values = [float(line.split()[-1]) for line in lines]
    assert values[1] == 1 and values[0] > 0.35 > values[2]
    saved = result.outputs["31"]["images"][0]
    query = f"filename={saved['filename']}&subfolder={saved['subfolder']}&type={saved['type']}"
    with urllib.request.urlopen(f"{server.url}/view?{query}", timeout=60) as answer:
        picture = Image.open(io.BytesIO(answer.read()))
    assert json.loads(picture.text["prompt"])["30"]["class_type"] == "HyperLoRACompare"


def test_comparison_without_scores(server, trio):
    result = server.run(compared(server, list(trio[:2]), labels=""))
    assert result.picture("31").shape[1] == 2 * 128 and result.text("32") == ""


def test_comparisons_that_cannot_be(server, trio):
    graph = compared(server, list(trio), reference=["1", 0])
    assert_sentence(server.run(graph).error, ("For scores connect face_analysis too",))
    graph = compared(server, list(trio[:1]))
    assert_sentence(server.run(graph).error, ("2 labels for 1 column",))
