"""The shipped face packs: InsightFace takes them as they are, and they do what their card says on people never trained on."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render

pytest.importorskip("insightface")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
import onnxruntime
import torch

from hyperlora_core.cli import main
from hyperlora_core.cli.train import STAGES
from hyperlora_core.demo.face_crowds import crowd, targets
from hyperlora_core.demo.face_data import ARCFACE_POINTS, aligned, load_cache, make_cache, similarity
from hyperlora_core.demo.face_networks import ANCHOR_SIZES, STRIDES, Detector
from hyperlora_core.demo.measure_face import analyzer, identification, matches
from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.train import demo_face, loop
from hyperlora_core.train.config import config_path, load_config
from hyperlora_core.train.demo_face import write_onnx
from hyperlora_core.train.loop import CHECKPOINT, CURVES
from hyperlora_core.train.sources import Sources
from hyperlora_core.train.trained import read_checkpoint

MODELS = Path(__file__).parents[1] / "models" / "demo"
PACK, MEASURING = MODELS / "face", MODELS / "face_measure"


@pytest.fixture(scope="module")
def app():
    return analyzer(PACK, 320)


@pytest.fixture(scope="module")
def drawn():
    """Eight held-out people in four scenes each, people first."""
    rng = np.random.default_rng(17)
    return [
        [render(Identity.from_seed(seed), Scene.random(rng, sketch=0)) for _ in range(4)] for seed in HELD_OUT[500:508]
    ]


def bgr(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


def test_insightface_recognises_each_file_by_its_form(app):
    assert set(app.models) == {"detection", "landmark_2d_106", "recognition"}
    assert app.det_model.use_kps
    assert (app.models["recognition"].input_mean, app.models["recognition"].input_std) == (127.5, 127.5)
    assert (app.models["landmark_2d_106"].input_mean, app.models["landmark_2d_106"].input_std) == (127.5, 128.0)
    assert app.models["recognition"].output_shape[1] == 512


def test_the_packs_are_small_and_the_measuring_network_lies_apart():
    assert sum(path.stat().st_size for path in PACK.glob("*.onnx")) < 6_000_000
    assert [path.name for path in MEASURING.glob("*.onnx")] == ["rec_measure.onnx"]


def test_held_out_faces_are_found_once_with_their_landmarks(app, drawn):
    for portrait in (p for row in drawn for p in row):
        faces = app.get(bgr(portrait.image))
        assert len(faces) == 1
        assert matches(faces[0].bbox[None], portrait.box[None]) == (1, 0)
        width = np.ptp(portrait.landmarks[:33, 0])
        assert np.linalg.norm(faces[0].landmark_2d_106 - portrait.landmarks, axis=1).mean() < 0.05 * width
        assert np.linalg.norm(faces[0].kps - portrait.keypoints, axis=1).mean() < 0.1 * width
        assert faces[0].normed_embedding.shape == (512,)


def test_embeddings_tell_held_out_people_apart(app, drawn):
    embeddings = np.stack([[app.get(bgr(p.image), max_num=1)[0].embedding for p in row] for row in drawn])
    figures = identification(embeddings[:, 0], embeddings[:, 1:])
    assert figures["rank-1"] >= 0.9
    assert figures["AUC"] >= 0.97


def test_the_measuring_network_agrees_without_being_the_same(app, drawn):
    from insightface.model_zoo import get_model

    second = get_model(str(MEASURING / "rec_measure.onnx"), providers=["CPUExecutionProvider"])
    faces = [[app.get(bgr(p.image), max_num=1)[0] for p in row] for row in drawn]
    embeddings = np.stack(
        [
            [second.get(bgr(p.image), f) for p, f in zip(row, found, strict=True)]
            for row, found in zip(drawn, faces, strict=True)
        ]
    )
    assert embeddings.shape[-1] == 256
    assert identification(embeddings[:, 0], embeddings[:, 1:])["rank-1"] >= 0.85


def test_all_faces_of_a_group_are_found_at_640(drawn):
    app = analyzer(PACK, 640)
    canvas = np.full((600, 900, 3), 120, np.uint8)
    boxes = []
    for i, row in enumerate(drawn[:6]):
        y, x = divmod(i, 3)
        canvas[y * 300 + 20 : y * 300 + 148, x * 300 + 40 : x * 300 + 168] = row[0].image
        boxes.append(row[0].box + np.array([x * 300 + 40, y * 300 + 20] * 2))
    found = app.det_model.detect(bgr(canvas))[0][:, :4]
    assert matches(found, np.array(boxes)) == (6, 0)


def test_nothing_is_found_where_no_face_is(app):
    rng = np.random.default_rng(0)
    flat = np.full((320, 320, 3), 90, np.uint8)
    noise = rng.integers(0, 256, (320, 320, 3), np.uint8)
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((40, 40)))[..., None].repeat(3, 2).astype(np.uint8) * 255
    assert [len(app.get(picture)) for picture in (flat, noise, board)] == [0, 0, 0]


def test_targets_are_what_the_decoder_gives_back():
    portraits = np.stack([render(Identity.from_seed(0), Scene()).image])
    portrait = render(Identity.from_seed(0), Scene())
    truths = np.concatenate([portrait.box, portrait.keypoints.ravel()])[None]
    places = 0
    for seed in range(12):
        picture = crowd(np.random.default_rng(seed), portraits, truths, 256)
        for level, stride, sizes in zip(
            targets(picture.boxes, picture.points, 256), STRIDES, ANCHOR_SIZES, strict=True
        ):
            for y, x, anchor in np.argwhere(level[..., 0] == 1):
                left, top, right, bottom = level[y, x, anchor, 1:5] * sizes[anchor]
                box = np.array([x * stride - left, y * stride - top, x * stride + right, y * stride + bottom])
                assert min(np.abs(picture.boxes - box).max(1)) < 1e-2
                places += 1
    assert places > 30


def test_the_detector_has_two_places_per_stride_and_cell(tmp_path):
    write_onnx("detector", Detector(), tmp_path / "det.onnx")
    from insightface.model_zoo import get_model

    detector = get_model(str(tmp_path / "det.onnx"), providers=["CPUExecutionProvider"])
    detector.prepare(-1, input_size=(320, 256), det_thresh=0.0)
    boxes, points = detector.detect(np.zeros((256, 320, 3), np.uint8))
    assert len(boxes) and points.shape[1:] == (5, 2)


def test_alignment_puts_the_key_points_where_arcface_wants_them():
    portrait = render(Identity.from_seed(0), Scene(roll=0.3, scale=0.3))
    matrix = similarity(portrait.keypoints, ARCFACE_POINTS)
    moved = portrait.keypoints @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(moved - ARCFACE_POINTS).max() < 12  # a drawn face isn't the mean face
    from insightface.utils.face_align import norm_crop

    ours = aligned(portrait, np.random.default_rng(0), error=0.0)
    theirs = norm_crop(portrait.image, portrait.keypoints)
    assert np.abs(ours.astype(int) - theirs).mean() < 3


TINY = {
    "people": "people = 2", "scenes": "scenes = 2", "steps": "steps = 6", "batch": "batch = 4", "warmup": "warmup = 1",
    "save_every": "save_every = 2", "restarts": "restarts = [3]",
}  # fmt: skip


def tiny(stage, folder):
    """The shipped config of a stage with a few people and steps, as a file."""
    given = config_path(stage, "cpu", "cpu").read_text(encoding="utf-8")
    lines = [TINY.get(line.partition(" ")[0], line) for line in given.splitlines()]
    (folder / f"{stage}.toml").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / f"{stage}.toml")


NETWORKS = [name for name, (module, _) in STAGES.items() if module in ("demo_face", "demo_attributes")]


@pytest.mark.parametrize("stage", NETWORKS)
def test_training_stops_and_goes_on_and_exports(tmp_path, stage, capsys):
    folder = STAGES[stage][1]

    def train(out, *more):
        asked = ["--config", tiny(stage, tmp_path), "--out", str(tmp_path / out), "--device", "cpu", "--workers", "1"]
        return main(["train", stage, *asked, *more])

    def kill(step, _steps, losses):
        if step == 4 and losses:
            raise SystemExit  # the last checkpoint is that of step 2

    assert train("whole") == 0
    module = importlib.import_module(f"hyperlora_core.train.{STAGES[stage][0]}")
    config, root = load_config(tiny(stage, tmp_path), module.Config), tmp_path / "halves"
    task = module.make_task(config, Sources(root, root / "data", root, root), folder)
    with pytest.raises(SystemExit):
        loop.train(task, config, root / folder, "cpu", progress=kill)
    assert train("halves", "--resume") == 0
    assert train("halves") == 2 and "holds a training already" in capsys.readouterr().err
    whole, halves = (read_checkpoint(tmp_path / out / folder / CHECKPOINT) for out in ("whole", "halves"))
    for part in ("module", "statistics"):  # a batch norm's means are trained too
        assert whole[part] and all(torch.equal(value, halves[part][name]) for name, value in whole[part].items())
    assert (tmp_path / "whole" / folder / CURVES).read_bytes().startswith(b"\x89PNG")

    files = []
    for out in ("whole", "halves"):
        assert train(out, "--export", str(tmp_path / out / "demo")) == 0
        files += (tmp_path / out / "demo").rglob("*.onnx")
    assert files[0].read_bytes() == files[1].read_bytes()
    shipped = MODELS / files[0].relative_to(tmp_path / "whole" / "demo")
    assert signature(files[0]) == signature(shipped)  # the shipped network is one of these


def signature(path):
    """What an ONNX file takes, gives and holds, but for the values."""
    network = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    sizes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(str(path)).graph.initializer}
    return [[(i.name, i.shape) for i in side] for side in (network.get_inputs(), network.get_outputs())], sizes


def test_recognition_learns_whose_face_it_is(tmp_path):
    """Batch norms' means count in what is exported, or the network would answer as an untrained one."""
    text = (
        Path(tiny("demo-recognition", tmp_path)).read_text().replace("steps = 6", "steps = 60").replace("[3]", "[40]")
    )
    config = tmp_path / "longer.toml"
    config.write_text(text.replace("batch = 4", "batch = 16").replace("scenes = 2", "scenes = 8"))
    assert main(["train", "demo-recognition", "--config", str(config), "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert main(["train", "demo-recognition", "--out", str(tmp_path), "--export", str(tmp_path / "demo")]) == 0
    network = onnxruntime.InferenceSession(
        tmp_path / "demo" / "face" / "rec_demo.onnx", providers=["CPUExecutionProvider"]
    )
    faces = load_cache(tmp_path / "faces" / "0_2x8")["aligned"]
    embeddings = network.run(None, {"input": (faces.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)})[0]
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    alike = embeddings @ embeddings.T
    own = np.kron(np.eye(2, dtype=bool), np.ones((8, 8), bool))
    assert alike[own].mean() > alike[~own].mean() + 0.3


def test_held_out_people_are_refused(tmp_path):
    with pytest.raises(HyperLoRAError, match="held out"):
        make_cache(tmp_path, range(HELD_OUT.start, HELD_OUT.start + 1), 1)


def test_another_networks_config_is_told(tmp_path, capsys):
    """Else its training would end in the other's folder, and its export in the other's file."""
    assert main(["train", "demo-landmarks", "--config", tiny("demo-detector", tmp_path), "--out", str(tmp_path)]) == 2
    assert "is a config of demo-detector, not of demo-landmarks" in capsys.readouterr().err


def test_faces_are_drawn_whole_or_not_at_all(tmp_path):
    folder, people = tmp_path / "faces", range(2)

    def stop(done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cache(folder, people, 2, 1, stop)
    assert not list(tmp_path.iterdir())

    def another_is_first(done, total):
        if done == total:
            make_cache(folder, people, 2, 1)

    make_cache(folder, people, 2, 1, another_is_first)
    assert list(tmp_path.iterdir()) == [folder] and load_cache(folder)["aligned"].any((1, 2, 3)).all()


def test_an_unknown_network_is_told(tmp_path):
    text = Path(tiny("demo-landmarks", tmp_path)).read_text().replace('"landmarks"', '"nose"')
    (tmp_path / "nose.toml").write_text(text)
    given = load_config(tmp_path / "nose.toml", demo_face.Config)
    with pytest.raises(HyperLoRAError, match=r"faces\.network is 'nose'\. Known: detector"):
        demo_face.prepare(given, Sources(tmp_path, tmp_path, tmp_path, tmp_path))
