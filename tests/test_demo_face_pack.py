"""The shipped face packs: InsightFace takes them as they are, and they do what their card says on people never trained on."""

from pathlib import Path

import numpy as np
import pytest

from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render

pytest.importorskip("insightface")
pytest.importorskip("torch")

from hyperlora_core.demo import train_face
from hyperlora_core.demo.face_crowds import crowd, targets
from hyperlora_core.demo.face_data import ARCFACE_POINTS, aligned, make_cache, similarity
from hyperlora_core.demo.face_networks import ANCHOR_SIZES, STRIDES, Detector
from hyperlora_core.demo.measure_face import analyzer, identification, matches
from hyperlora_core.errors import HyperLoRAError

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
    train_face.export("detector", Detector(), tmp_path / "det.onnx")
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


def test_training_stops_and_goes_on_and_refuses_held_out_people(tmp_path, monkeypatch):
    monkeypatch.setitem(train_face.PLAN, "landmarks", ((3,), range(2), 2))
    monkeypatch.setattr(train_face, "landmarks_task", lambda faces, seed: landmarks_task(faces, seed, batch=2))
    whole = train_face.train("landmarks", tmp_path / "whole", tmp_path / "a", workers=1).read_bytes()

    train_face.train("landmarks", tmp_path / "part", tmp_path / "b", rounds=(3,), workers=1)
    assert (tmp_path / "part" / "2d106_demo.onnx").read_bytes() == whole

    stopped = iter([False, False, True])
    jittered = train_face.jittered

    def interrupted(*arguments):
        if next(stopped, False):
            raise KeyboardInterrupt
        return jittered(*arguments)

    monkeypatch.setattr(train_face, "jittered", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_face.train("landmarks", tmp_path / "resumed", tmp_path / "c", workers=1)
    assert not (tmp_path / "resumed").exists()
    path = train_face.train("landmarks", tmp_path / "resumed", tmp_path / "c", workers=1)
    assert path.read_bytes() == whole

    with pytest.raises(HyperLoRAError, match="held out"):
        make_cache(tmp_path / "d", range(HELD_OUT.start, HELD_OUT.start + 1), 1)


landmarks_task = train_face.landmarks_task
