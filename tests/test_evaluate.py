"""hyperlora evaluate with real networks: batches are what single pictures would be, and a stopped evaluation goes on."""

import csv
import json

import numpy as np
import pytest
import torch
from bad_inputs import assert_sentence
from people import photo_of
from PIL import Image
from toy_clip import toy_clip

from hyperlora_core import HyperLoRAError, load_hyperlora, merge_branches, open_encoder, save_hyperlora
from hyperlora_core.cli import main
from hyperlora_core.evaluate.attributes import ATTRIBUTES, AttributeReader, shown
from hyperlora_core.evaluate.instruments import FACE_MEASURE, MeasuringNetwork
from hyperlora_core.evaluate.paint import Job, Painter, stacked
from hyperlora_core.evaluate.protocol import SHIPPED
from hyperlora_core.evaluate.run import CEILING, TRUTH
from hyperlora_core.evaluate.store import PictureStore, read_about, read_picture
from hyperlora_core.locate import demo_folder
from hyperlora_core.lora import pairs
from hyperlora_core.pipeline import apply_lora, load_pipeline, remove_lora, render

for package in ("diffusers", "peft", "insightface", "open_clip", "onnxruntime"):
    pytest.importorskip(package)

PROMPTS = ("portrait of a person, blue background", "portrait of a person with glasses")


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(demo_folder(), device="cpu")


@pytest.fixture(scope="module")
def loras():
    """Two people's, of both branches."""
    hyper = load_hyperlora(demo_folder() / "hyper_lora")
    generator = torch.Generator().manual_seed(0)
    shape = (8 * len(hyper.module_names), hyper.basis.size)

    def random_coefficients():
        return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)

    return [
        merge_branches(hyper.lora(random_coefficients()), hyper.lora(random_coefficients(), "base"), 1.2, 0.6)
        for _ in PROMPTS
    ]


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_a_batch_is_what_single_pictures_are(cfg, pipeline, loras):
    painter = Painter(pipeline, steps=2, cfg=cfg)
    jobs = [Job(prompt, seed, lora) for prompt, seed, lora in zip(PROMPTS, (5, 6), loras, strict=True)]
    steps = []
    batch = painter.paint(jobs, lambda done, of: steps.append((done, of)))
    assert steps == [(1, 2), (2, 2)]
    for job, picture in zip(jobs, batch, strict=True):
        apply_lora(pipeline, job.lora)
        alone = np.asarray(render(pipeline, job.prompt, steps=2, cfg=cfg, seed=job.seed)).astype(int)
        remove_lora(pipeline)
        assert picture.dtype == np.uint8 and np.abs(picture - alone).max() <= 2


def test_guided_only_the_prompt_has_the_person(pipeline, loras):
    """Alone and in a batch with another: what guidance makes of the UNet's two answers, computed apart."""
    apply_lora(pipeline, loras[0], name="anna")
    apply_lora(pipeline, loras[1], 0.5, name="style")  # which the negative prompt has as well
    unet, halves = pipeline.unet, []

    def seen(_unet, inputs, options, output):
        halves.append((inputs, options, output[0].clone()))

    hook = unet.register_forward_hook(seen, with_kwargs=True)
    guided = np.asarray(render(pipeline, PROMPTS[0], steps=1, cfg=4.0, seed=5, guide=["anna"]))
    hook.remove()
    inputs, options, answer = halves[0]
    with torch.no_grad():
        with_both = unet(*inputs, **options)[0]
        remove_lora(pipeline, "anna")
        with_style = unet(*inputs, **options)[0]
    torch.testing.assert_close(answer, torch.stack([with_style[0], with_both[1]]))
    assert (with_style[0] - with_both[0]).abs().max() > 0.01
    remove_lora(pipeline)

    jobs = [Job(prompt, 5, lora, guide=True) for prompt, lora in zip(PROMPTS, loras, strict=True)]
    batch = Painter(pipeline, steps=1, cfg=4.0).paint([*jobs, jobs[0]._replace(guide=False)])
    apply_lora(pipeline, loras[0])
    for guide, picture in ((["hyperlora"], batch[0]), ((), batch[2])):
        alone = np.asarray(render(pipeline, PROMPTS[0], steps=1, cfg=4.0, seed=5, guide=guide)).astype(int)
        assert np.abs(picture - alone).max() <= 2
    assert np.abs(batch[0].astype(int) - batch[2]).max() > 2 and not np.array_equal(guided, batch[0])
    at_1 = [np.asarray(render(pipeline, PROMPTS[0], steps=1, cfg=1.0, guide=guide)) for guide in (["hyperlora"], ())]
    assert np.array_equal(*at_1)
    with pytest.raises(HyperLoRAError, match='no LoRA "anna"'):
        render(pipeline, PROMPTS[0], steps=1, guide=["anna"])
    remove_lora(pipeline)


def test_lora_noise_and_prompt_each_make_a_difference(pipeline, loras):
    job = Job(PROMPTS[0], 5, loras[0])
    others = [job._replace(lora=loras[1]), job._replace(seed=7), job._replace(prompt=PROMPTS[1])]
    picture, *different = Painter(pipeline, steps=1).paint([job, *others])
    for other, changed in zip(different, others, strict=True):
        assert np.abs(other.astype(int) - picture).max() > 2, changed[:2]


def test_half_precision_paints_nearly_the_same_and_says_so(pipeline, loras):
    job, half = Job(PROMPTS[0], 5, loras[0]), Painter(pipeline, steps=1, autocast=torch.bfloat16)
    picture, other = half.paint([job])[0].astype(int), Painter(pipeline, steps=1).paint([job])[0]
    assert 0 < np.abs(picture - other).mean() < 4
    assert half.settings["precision"] == "bfloat16" and Painter(pipeline).settings["precision"] == "float32"


def test_without_a_lora_it_is_the_base_model(pipeline, loras):
    painter = Painter(pipeline, steps=1)
    painter.paint([Job(PROMPTS[0], 5, loras[0])])
    plain = painter.paint([Job(PROMPTS[0], 5)])[0]
    assert np.abs(plain - np.asarray(render(pipeline, PROMPTS[0], steps=1, seed=5)).astype(int)).max() <= 2
    with pytest.raises(HyperLoRAError, match="paint them apart"):
        painter.paint([Job(PROMPTS[0], 5, loras[0]), Job(PROMPTS[0], 5)])


def test_stopping_leaves_the_model_as_it_was(pipeline, loras):
    painter = Painter(pipeline, steps=1)
    before = painter.paint([Job(PROMPTS[0], 5)])[0]

    def stop(_done, _of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        painter.paint([Job(PROMPTS[0], 5, loras[0])], stop)
    assert np.array_equal(painter.paint([Job(PROMPTS[0], 5)])[0], before)


def test_reconstructions_are_what_the_autoencoder_makes_of_pictures(pipeline):
    photos = [np.asarray(photo_of(number, 0)) for number in range(3)]
    made = Painter(pipeline).reconstruct(photos)
    for photo, picture in zip(photos, made, strict=True):
        assert picture.shape == photo.shape and picture.dtype == np.uint8
        assert 0 < np.abs(picture.astype(int) - photo).mean() < 12
    other = np.abs(made[0].astype(int) - photos[1]).mean()
    assert other > 3 * np.abs(made[0].astype(int) - photos[0]).mean()


def test_the_measuring_network_knows_people():
    faces = MeasuringNetwork(demo_folder() / FACE_MEASURE, open_encoder("demo").faces)
    # two photos of each of three people, and one that shows nobody
    photos = [np.asarray(photo_of(number, scene)) for number in range(3) for scene in (0, 1)]
    embeddings = faces.embed_all([*photos, np.full((128, 128, 3), 90, np.uint8)])
    assert np.linalg.norm(embeddings[:6], axis=1) == pytest.approx(1) and not embeddings[6].any()
    alike = embeddings[0:6:2] @ embeddings[1:6:2].T
    assert (alike.argmax(1) == np.arange(3)).all()


def test_recognition_in_other_forms(tmp_path):
    from hyperlora_core.train.onnx_torch import OnnxNetwork

    analyzer, file = open_encoder("demo").faces, demo_folder() / "face" / "rec_demo.onnx"
    network = OnnxNetwork(file).eval()
    torch.jit.trace(network, torch.zeros(1, 3, 112, 112)).save(tmp_path / "traced.pt")
    photo = np.asarray(photo_of(0))
    one, other = (MeasuringNetwork(source, analyzer) for source in (file, tmp_path / "traced.pt"))
    assert one.embed(photo) == pytest.approx(other.embed(photo), abs=1e-3)
    assert other.name == "traced" and MeasuringNetwork(demo_folder() / FACE_MEASURE, analyzer).independent
    # the very network that HyperLoRA reads, named or not
    own = MeasuringNetwork(None, analyzer)
    assert own.name == one.name == "rec_demo" and not own.independent and not one.independent
    assert own.embed(photo) == pytest.approx(analyzer.face(photo).embedding, abs=1e-5)
    seen = one.look(photo)
    height = seen.close_up.shape[0]
    assert seen.close_up.shape == (height, height, 3) and 0.3 * len(photo) < height < len(photo)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(HyperLoRAError, match=r"weights\.pt isn't a TorchScript file"):
        MeasuringNetwork(tmp_path / "weights.pt", analyzer)
    with pytest.raises(HyperLoRAError, match=r"det_demo\.onnx isn't a face recognition network"):
        MeasuringNetwork(demo_folder() / "face" / "det_demo.onnx", analyzer)


@pytest.mark.parametrize(
    ("inputs", "flat"),
    [([3, 224, 224], True), ([1, 112, 112], True), ([3, 128, 128], True), ([3, 112, 112], False)],
    ids=["classifier", "grey", "larger", "picture out"],
)
def test_other_networks_measure_nobody(tmp_path, inputs, flat):
    """InsightFace itself takes each of these for a recognition."""
    from onnx import TensorProto, checker, helper, save

    last = "pooled" if flat else "out"
    nodes = [helper.make_node("GlobalAveragePool", ["in"], [last])]
    nodes += [helper.make_node("Flatten", [last], ["out"])] if flat else []
    shape = ["n", inputs[0]] if flat else ["n", inputs[0], 1, 1]
    ends = ("in", ["n", *inputs]), ("out", shape)
    into, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in ends)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [into], [out]), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    checker.check_model(model)
    save(model, tmp_path / "other.onnx")
    with pytest.raises(HyperLoRAError, match=r"other\.onnx isn't a face recognition network.*\[n, 3, 112, 112\]"):
        MeasuringNetwork(tmp_path / "other.onnx", None)


def test_the_reader_reads_held_out_portraits():
    from hyperlora_core.demo.measure_face import held_out_portraits

    drawn = [portrait for row in held_out_portraits(10, 3, sketch=0.1) for portrait in row]
    truth = [shown(portrait.caption) for portrait in drawn]
    seen = AttributeReader(demo_folder() / "attribute_measure").read([portrait.image for portrait in drawn])
    for name in ATTRIBUTES:
        hits = [s.get(name) == t[name] for t, s in zip(truth, seen, strict=True) if name in t]
        assert np.mean(hits) >= (0.75 if name == "old" else 0.9), name
    # a picture of any size; no hat, no hat's colour
    large = Image.fromarray(drawn[0].image).resize((256, 256), Image.Resampling.BICUBIC)
    assert AttributeReader(demo_folder() / "attribute_measure").read([np.asarray(large)]) == seen[:1]
    assert all(("hat_colour" in looks) == (looks["hat"] == "yes") for looks in seen)


def test_other_networks_are_no_readers(tmp_path):
    with pytest.raises(HyperLoRAError, match=r"attributes\.onnx is missing.*demo-attributes"):
        AttributeReader(tmp_path)
    (tmp_path / "attributes.onnx").write_bytes((demo_folder() / "face_measure" / "rec_measure.onnx").read_bytes())
    with pytest.raises(HyperLoRAError, match="isn't a network that reads"):
        AttributeReader(tmp_path)
    with pytest.raises(HyperLoRAError, match=r"holds no \.onnx file"):
        MeasuringNetwork(demo_folder() / "sdxl", open_encoder("demo").faces)


PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_store(tmp_path):
    store = PictureStore(tmp_path / "full", {"steps": 2, "ways": ("a",)})
    assert not store.path("000", "1").exists()
    store.save("000", "1", PICTURE, {"prompt": "a person"})
    path = PictureStore(tmp_path / "full", {"steps": 2, "ways": ("a",)}).path("000", "1")
    assert path.name == "000_1.png" and np.array_equal(read_picture(path), PICTURE)
    assert read_about(path) == Image.open(path).text == {"prompt": "a person"}
    assert store.path("", "p01_s1").name == "p01_s1.png"  # everybody's
    with pytest.raises(HyperLoRAError, match=r"other settings \(steps was 2, is 3\).*--overwrite"):
        PictureStore(tmp_path / "full", {"steps": 3, "ways": ("a",)})
    assert path.exists()
    PictureStore(tmp_path / "full", {"steps": 3, "ways": ("a",)}, overwrite=True)
    assert not path.exists()
    path.write_bytes(b"no picture")
    for read in (read_picture, read_about):
        with pytest.raises(HyperLoRAError, match=r"000_1\.png can't be read"):
            read(path)


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory, pipeline):
    """The command, on two people with two pictures each; the base model is opened once for all its runs."""
    table = json.loads(SHIPPED.read_text(encoding="utf-8"))
    table["prompts"] = {name: pictures[2:] for name, pictures in table["prompts"].items()}
    protocol = tmp_path_factory.mktemp("protocol") / "short.json"
    protocol.write_text(json.dumps(table), encoding="utf-8")

    def run(folder, *arguments):
        given = {"--people": "2", "--steps": "1", "--batch": "3", "--protocol": str(protocol)}
        return main(["evaluate", "--out", str(folder), *(word for pair in given.items() for word in pair), *arguments])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hyperlora_core.pipeline.load_pipeline", lambda *_, **__: pipeline)
        yield run


def pictures(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.glob("pictures/*/*.png")}


def test_evaluate_stops_resumes_and_reports(evaluate, tmp_path, capsys, monkeypatch):
    paint, batches = Painter.paint, []

    def counted(self, jobs, progress=None):
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(len(jobs))
        return paint(self, jobs, progress)

    monkeypatch.setattr(Painter, "paint", counted)
    methods = ["--methods", "full", "base only, bare prompt"]
    assert evaluate(tmp_path, *methods) == 130
    first = pictures(tmp_path)
    assert len(first) == sum(batches) == 3 + 1 + 3
    monkeypatch.setattr(Painter, "paint", paint)
    assert evaluate(tmp_path, *methods) == 0
    everything = pictures(tmp_path)
    assert len(everything) == 3 * 2 * 2 and everything.items() >= first.items()  # none is painted twice

    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out and "| base only, bare prompt |" in table
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["figures"]
    assert list(rows) == [TRUTH, CEILING, "none", "full", "base only, bare prompt"]
    assert rows[TRUTH]["similarity"]["value"] == 1 and rows["none"]["similarity"]["value"] == 0
    assert rows[TRUTH]["retrieval"]["value"] == 1 and rows["none"]["cosine"]["value"] < 0.4
    # the autoencoder costs some similarity, and leaves most of it
    assert 0.4 < rows[CEILING]["cosine"]["value"] < rows[TRUTH]["cosine"]["value"]
    assert results["settings"]["seed"] == 0 and results["people"] == 2 and results["left out"] == []
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 2 * 2
    right = [line for line in lines if line["method"] == TRUTH]
    assert sum(len(line["right"].split()) for line in right) > 4 * sum(len(line["wrong"].split()) for line in right)
    assert Image.open(tmp_path / "grid_2.png").width == 160 * 6  # the photo, and a column per row

    # further people and methods join what is there; other settings don't
    assert evaluate(tmp_path, "--people", "3", "--methods", "ID only") == 0
    assert pictures(tmp_path).items() >= {k: v for k, v in everything.items() if "none" in str(k.parent)}.items()
    capsys.readouterr()
    assert evaluate(tmp_path, "--methods", "full", "--cfg", "1") == 2
    assert_sentence(capsys.readouterr().err.splitlines()[-1], ("other settings", "cfg was 5.0, is 1.0", "--overwrite"))
    assert pictures(tmp_path).items() >= everything.items()


def test_another_checkpoint_is_a_row_of_its_own(evaluate, tmp_path, capsys):
    hyper = load_hyperlora(demo_folder() / "hyper_lora")
    save_hyperlora(hyper, tmp_path / "same")
    del hyper.encoder["base_resampler"]
    save_hyperlora(hyper, tmp_path / "no_base")
    same = ["--methods", "ID only", "--checkpoint", f"same={tmp_path / 'same'}", "--as", "ID only"]
    assert evaluate(tmp_path / "out", *same) == 0
    folder = tmp_path / "out" / "pictures"
    for name in ("000_0.png", "001_1.png"):
        one, other, none = (
            np.asarray(Image.open(folder / row / name)).astype(int) for row in ("same", "ID_only", "none")
        )
        # a picture has other neighbours in each row's batch, and bf16 rounds by them
        assert np.abs(one - other).mean() < 0.3 * np.abs(one - none).mean()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert rows["same"]["cosine"]["value"] == pytest.approx(rows["ID only"]["cosine"]["value"], abs=0.02)
    capsys.readouterr()
    assert evaluate(tmp_path / "x", "--methods", "none", "--checkpoint", f"small={tmp_path / 'no_base'}") == 2
    assert_sentence(capsys.readouterr().err.splitlines()[-1], ('"small" needs a base branch', "no_base", "ID only"))


def test_mistakes(evaluate, tmp_path, capsys):
    for arguments, words in (
        (["--people", "1"], ("1 people", "--people")),
        (["--methods", "some"], ('no method "some"',)),
        (["--checkpoint", "folder"], ("--checkpoint folder isn't NAME=FOLDER",)),
        (["--checkpoint", f"a={tmp_path}"], (str(tmp_path),)),
        (["--steps", "0"], ("--steps 0",)),
        (["--protocol", str(tmp_path / "mine.json")], ("mine.json", "protocol")),
    ):
        assert evaluate(tmp_path / "out", *arguments) == 2, arguments
        assert_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "out").exists()


def test_photographs(evaluate, tmp_path, capsys):
    """People in photos, painted here by a checkpoint, beside pictures that were made elsewhere."""
    for number, name in enumerate(("anna", "ben")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).mkdir(parents=True)
        for scene in (0, 1):
            photo_of(number, scene).save(tmp_path / "photos" / name / f"{scene}.png")
        photo_of(number, 2).save(tmp_path / "mine" / f"{name}_p01_s3.png")
    toy_clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("# class: clothes\nportrait of a person, red shirt\n")
    arguments = ["--photos", tmp_path / "photos", "--pictures", f"mine={tmp_path / 'mine'}", "--base", demo_folder()]
    arguments += [
        "--checkpoint",
        "demo=demo",
        "--prompts",
        tmp_path / "prompts.txt",
        "--face-pack",
        demo_folder() / "face",
    ]
    arguments += ["--recognition", demo_folder() / FACE_MEASURE, "--measuring-clip", tmp_path / "clip"]
    assert evaluate(tmp_path / "out", *map(str, arguments)) == 0
    assert (tmp_path / "out" / "pictures" / "demo" / "anna_p01_s3.png").exists()
    assert (tmp_path / "out" / "pictures" / "none" / "p01_s3.png").exists()
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = report["figures"]
    assert list(rows) == ["none", "demo", "mine"] and report["settings"]["seeds"] == "3"
    # true photos of the right people, in another scene
    assert (
        rows["mine"]["retrieval"]["value"] == 1
        and rows["mine"]["ID Sim"]["value"] > 0.4 > rows["none"]["ID Sim"]["value"]
    )
    assert -1 < rows["mine"]["CLIP-T, clothes"]["value"] < 1 and rows["none"]["CLIP-I"]["value"] == pytest.approx(1)
    assert list(report["seconds"]) == ["none", "demo"] and report["seconds"]["demo"]["preprocessing"][0] > 0
    assert "Face recognition: rec_measure." in capsys.readouterr().out
    assert "demo minus mine" in (tmp_path / "out" / "report.html").read_text()


def test_a_guided_batch_stays_on_its_device(loras, monkeypatch):
    """The meta device is as strict as a GPU, and there everywhere."""

    def elsewhere(lora):
        return [(key, down.to("meta"), up.to("meta"), scale) for key, down, up, scale in pairs(lora)]

    monkeypatch.setattr("hyperlora_core.evaluate.paint.pairs", elsewhere)
    layers = stacked(loras, [True, False]).values()
    assert all(part.device.type == "meta" for layer in layers for part in (layer.down, layer.up))
