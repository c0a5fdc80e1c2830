"""The shipped demo workflow, posted over HTTP with an uploaded photo, as a user's front end or script does."""

import numpy as np
import pytest
from authors_workflows import AUTHORS
from graphs import demo, nodes_of
from people import photo_of
from PIL import Image

from hyperlora_core.cli import main
from hyperlora_core.face.draw import CHOSEN

IDS = {
    "HyperLoRALoadModel", "HyperLoRALoadFaceAnalysis", "HyperLoRADetectFaces", "HyperLoRAEncodeIdentity",
    "HyperLoRASaveIdentity", "HyperLoRALoadIdentity", "HyperLoRABlendIdentities", "HyperLoRAGenerateLoRA",
    "HyperLoRAApply", "HyperLoRATriggerPrompt", "HyperLoRAPortrait", "HyperLoRASaveLoRA", "HyperLoRALoadDemo",
    "HyperLoRASlider", "HyperLoRASimilarity", "HyperLoRACompare", "HyperLoRARegion", "HyperLoRATransfer", *AUTHORS,
}  # fmt: skip


def test_every_node_is_there(server):
    known = server.get("/object_info")
    ours = {name for name, info in known.items() if info["python_module"].startswith("custom_nodes.hyperlora")}
    assert ours == IDS
    for name in ours:
        assert known[name]["description"], name
        assert known[name]["search_aliases"], name
        for group in ("required", "optional"):
            for label, spec in known[name]["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{label}"


def test_two_people_in_turn_leave_nothing_of_each_other(server, anna, ben):
    """First of all tests, so that Ben's first picture comes from a fresh server."""
    fresh = server.run(demo(ben)).picture()
    other = server.run(demo(anna)).picture()
    # the same photo under another name: nothing of it is cached, everything runs again after Anna
    again = server.run(demo(server.upload(photo_of(1), "ben_again.png")))
    assert "7" not in again.cached
    assert np.array_equal(again.picture(), fresh)
    assert not np.array_equal(other, fresh)


def test_the_template_paints_what_the_demo_command_paints(server, tmp_path):
    """With the command's seed and steps: host and diffusers are two samplers of one model, and give the same people."""
    assert main(["demo", "--out", str(tmp_path)]) == 0
    people = [f"person_{number}" for number in (1, 2, 3)]
    as_there = {"HyperLoRAApply": {"mode": "guide"}, "KSampler": {"seed": 2, "steps": 20}}
    for name in people:
        photo = server.upload(Image.open(tmp_path / "photos" / f"{name}.png"), f"demo_{name}.png")
        painted = server.run(demo(photo, **as_there)).picture().astype(int)
        apart = [np.abs(painted - np.asarray(Image.open(tmp_path / n / "portrait.png"))).mean() for n in people]
        own = apart.pop(people.index(name))
        assert own < 2 and min(apart) > 5, (name, own, apart)


def test_picture_and_weights(server, anna):
    plain = demo(anna)
    (sampler,) = nodes_of(plain, "KSampler")
    (loader,) = nodes_of(plain, "HyperLoRALoadDemo")
    plain[sampler]["inputs"]["model"] = [loader, 0]
    unpatched = server.run(plain).picture()
    assert unpatched.shape == (128, 128, 3)
    off = server.run(demo(anna, HyperLoRAApply={"weight": 0, "base_weight": 0})).picture()
    assert np.array_equal(off, unpatched)
    pictures = [server.run(demo(anna, HyperLoRAApply=w)).picture() for w in (
        {"weight": 0.8, "base_weight": 0}, {"weight": 0.8, "base_weight": 0.4}, {"weight": 0, "base_weight": 0.4},
    )]  # fmt: skip
    for i, picture in enumerate(pictures):
        assert np.abs(picture.astype(int) - unpatched).mean() > 1
        assert all(not np.array_equal(picture, other) for other in pictures[:i])


def test_another_seed_reuses_the_identity(server, anna):
    first = demo(anna, KSampler={"seed": 100})
    one = server.run(first)
    two = server.run(demo(anna, KSampler={"seed": 101}))
    upstream = {
        i for i, n in first.items() if n["class_type"].startswith("HyperLoRA") or n["class_type"] == "LoadImage"
    }
    assert upstream <= two.cached
    assert not np.array_equal(one.picture(), two.picture())


def with_portrait(photo: str, mode: str) -> dict:
    """The demo workflow with one node for Encode Identity, Generate LoRA, Apply and Trigger Prompt."""
    short = demo(photo)
    prompt = short["8"]["inputs"]["prompt"]
    for replaced in ("5", "6", "7", "8"):
        del short[replaced]
    short["20"] = {
        "class_type": "HyperLoRAPortrait",
        "inputs": {
            "hyperlora": ["2", 0], "face_analysis": ["3", 0], "model": ["1", 0], "photos": ["4", 0],
            "prompt": prompt, "weight": 0.8, "base_weight": 0.4, "mode": mode,
        },
    }  # fmt: skip
    short["12"]["inputs"]["model"] = ["20", 0]
    short["9"]["inputs"]["text"] = ["20", 1]
    return short


@pytest.mark.parametrize("mode", ["merge", "guide"])
def test_portrait_node_equals_the_chain(server, anna, mode):
    chain = server.run(demo(anna, HyperLoRAApply={"mode": mode})).picture()
    assert np.array_equal(server.run(with_portrait(anna, mode)).picture(), chain)
    other = {"merge": "guide", "guide": "merge"}[mode]
    assert not np.array_equal(server.run(demo(anna, HyperLoRAApply={"mode": other})).picture(), chain)


def test_portrait_node_keeps_what_another_prompt_or_weight_leaves(server, anna, ben):
    graph, inside = with_portrait(anna, "merge"), {f"20.0.0.{number}" for number in (1, 2, 3)}
    server.run(graph)
    prompt = graph["20"]["inputs"]["prompt"] + ", smiling"
    graph["20"]["inputs"]["prompt"] = prompt
    another_prompt, ran = server.run_and_watch(graph)
    assert {"20", "9", "12"} <= ran and not ran & inside, "the model stays as it was patched"
    graph["20"]["inputs"]["weight"] = 0.5
    assert server.run_and_watch(graph)[1] & inside == {max(inside)}, "Apply alone"
    graph["4"]["inputs"]["image"] = ben
    another_person, ran = server.run_and_watch(graph)
    assert ran & inside == inside
    # the chains come last: a graph without the node makes the host forget what the node kept
    for result, chain in ((another_prompt, demo(anna)), (another_person, demo(ben, HyperLoRAApply={"weight": 0.5}))):
        chain["8"]["inputs"]["prompt"] = prompt
        assert np.array_equal(result.picture(), server.run(chain).picture())


def test_portrait_node_says_what_is_wrong_with_a_photo(server):
    graph = with_portrait(server.upload(Image.new("RGB", (256, 256)), "black.png"), "merge")
    assert "No face was found in Photo 1" in server.run(graph).error


def test_saved_and_loaded_identity_paints_the_same_photo_of(server, anna):
    chain = demo(anna)
    chain["30"] = {
        "class_type": "HyperLoRASaveIdentity",
        "inputs": {"identity": ["5", 0], "name": "anna", "overwrite": True},
    }
    wanted = server.run(chain).picture("14").astype(int)
    chain["30"] = {"class_type": "HyperLoRALoadIdentity", "inputs": {"identity": "anna.safetensors"}}
    for unused in ("3", "4", "5"):
        del chain[unused]
    chain["6"]["inputs"]["identity"] = ["30", 0]
    loaded = server.run(chain).picture("14").astype(int)
    # the file keeps the coefficients in half precision
    assert np.abs(loaded - wanted).mean() < 0.5


def test_blend(server, anna, ben):
    chain = demo(anna)
    chain["31"] = {"class_type": "LoadImage", "inputs": {"image": ben}}
    chain["32"] = {"class_type": "HyperLoRAEncodeIdentity", "inputs": chain["5"]["inputs"] | {"photos": ["31", 0]}}
    chain["33"] = {
        "class_type": "HyperLoRABlendIdentities",
        "inputs": {"identity_a": ["5", 0], "weight_a": 1.0, "identity_b": ["32", 0], "weight_b": 0.0},
    }
    chain["6"]["inputs"]["identity"] = ["33", 0]
    assert np.array_equal(server.run(chain).picture("14"), server.run(demo(anna)).picture())
    chain["33"]["inputs"] |= {"weight_a": 0.5, "weight_b": 0.5}
    half = server.run(chain).picture("14")
    assert not np.array_equal(half, server.run(demo(anna)).picture())
    assert not np.array_equal(half, server.run(demo(ben)).picture())


def test_several_photos_and_the_report(server, anna):
    chain = demo(anna)
    chain["31"] = {
        "class_type": "LoadImage",
        "inputs": {"image": server.upload(photo_of(0, scene=5, size=192), "anna_2.png")},
    }
    chain["5"]["inputs"] |= {"photos_2": ["31", 0]}
    chain["32"] = {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}}
    chain["33"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 1]}}
    both = server.run(chain)
    assert [line.split(":")[0] for line in both.text("32").splitlines()] == ["Photo 1", "Photo 2"]
    assert len(both.outputs["33"]["images"]) == 2
    assert both.picture("33").shape == (512, 512, 3)
    chain["5"]["inputs"]["photo_weights"] = "1, 0"
    first_only = server.run(chain).picture("14").astype(int)
    # a batch of two photos is rounded otherwise than one photo alone
    rounding = np.abs(first_only - server.run(demo(anna)).picture()).mean()
    assert rounding < 0.1 and np.abs(first_only - both.picture("14")).mean() > 3 * rounding + 0.1


def test_extra_model_paths(server, anna):
    """Checkpoints and face packs that extra_model_paths.yaml names, a pack's folder one level too deep included."""
    wanted = server.run(demo(anna))
    elsewhere = server.run(demo(anna, HyperLoRALoadFaceAnalysis={"face_pack": "nested"}))
    assert np.array_equal(elsewhere.picture(), wanted.picture())
    assert "5" not in elsewhere.cached
    spec = server.get("/object_info/HyperLoRALoadModel")["HyperLoRALoadModel"]["input"]["required"]["checkpoint"]
    assert "small_elsewhere" in (spec[1].get("options") or spec[0])


def test_detect_faces(server, anna):
    wide = Image.new("RGB", (512, 256), (120, 140, 160))
    wide.paste(photo_of(0), (0, 0))
    wide.paste(photo_of(1), (256, 0))
    graph = {i: n for i, n in demo(server.upload(wide, "two.png")).items() if i in ("3", "4")}
    graph["40"] = {
        "class_type": "HyperLoRADetectFaces",
        "inputs": {"face_analysis": ["3", 0], "image": ["4", 0], "face": "all", "face_index": 0},
    }
    graph["41"] = {"class_type": "PreviewAny", "inputs": {"source": ["40", 3]}}
    graph["42"] = {"class_type": "PreviewImage", "inputs": {"images": ["40", 1]}}
    graph["43"] = {"class_type": "MaskToImage", "inputs": {"mask": ["40", 2]}}
    graph["44"] = {"class_type": "PreviewImage", "inputs": {"images": ["43", 0]}}
    result = server.run(graph)
    assert result.text("41") == "2"
    mask = result.picture("44")[..., 0] > 127
    assert mask[:, :256].mean() > 0.05 and mask[:, 256:].mean() > 0.05
    far = Image.new("RGB", (1024, 256), (120, 140, 160))
    far.paste(photo_of(0), (0, 0))
    far.paste(photo_of(1), (768, 0))
    graph["4"]["inputs"]["image"] = server.upload(far, "far.png")
    graph["45"] = {"class_type": "PreviewImage", "inputs": {"images": ["40", 4]}}
    assert "2 faces lie too far apart for a close-up" in server.run(graph).error
    del graph["45"]
    assert server.run(graph).text("41") == "2", "masks and count need no close-up"
    graph["4"]["inputs"]["image"] = "two.png"
    graph["40"]["inputs"]["face"] = "right"
    result = server.run(graph)
    yellow = (result.picture("42") == CHOSEN).all(-1)
    assert yellow[:, 256:].any() and not yellow[:, :256].any(), "the other face has a number, too, but isn't chosen"
    mask = result.picture("44")[..., 0] > 127
    assert mask[:, :256].mean() == 0 and mask[:, 256:].mean() > 0.05
