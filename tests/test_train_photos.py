"""Prepared photos as the trainer reads them, and the rules by which they were chosen and cut."""

import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from bad_inputs import assert_sentence
from people import photo_of
from PIL import Image, ImageFilter
from training_photos import FACES

from hyperlora_core import FaceAnalyzer, HyperLoRAError, read_photo
from hyperlora_core.demo import sdxl
from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render
from hyperlora_core.face import identity_picture
from hyperlora_core.face.analyzer import Detection
from hyperlora_core.locate import DEMO_CLIP, demo_folder
from hyperlora_core.train import photo_rules
from hyperlora_core.train.config import config_path, load_config
from hyperlora_core.train.photo_rules import PhotoRules, Rejected
from hyperlora_core.train.photos import PreparedPhotos, random_square
from hyperlora_core.train.sources import Sources

for package in ("insightface", "onnxruntime", "cv2"):
    pytest.importorskip(package)


def test_prepared_photos(photos, prepared):
    read = PreparedPhotos(prepared)
    rows = list(range(len(read)))
    assert len(read) == 7 and read.size == 128 and read.recognition == "rec_demo"
    names = [read.details(row)["source"].split("/")[1] for row in rows]
    same = read.people[:, None] == read.people[None]
    assert (same == np.array([[a == b for b in names] for a in names])).all()
    assert read.captions([names.index("ben")]) == ["ben in scene 0"]
    faces = FaceAnalyzer.load(FACES, "cpu")
    for row in (0, 6):
        photo = read_photo(photos.parent / read.details(row)["source"])
        face = faces.face(photo)
        np.testing.assert_allclose(read.embeddings([row])[0], face.embedding, atol=1e-6)
        wanted = identity_picture(photo, face.landmarks).astype(int)
        (identity,) = read.identity_pictures([row])
        assert identity.shape == wanted.shape and np.abs(identity - wanted).mean() < 3
        (base,) = read.base_pictures([row])
        assert base.dtype == np.uint8 and base.shape[2] == 3 and min(base.shape[:2]) > 60
    pictures, boxes = read.pictures(rows)
    assert pictures.shape == (7, 128, 128, 3) and pictures.dtype == np.uint8
    assert boxes.shape == (7, 4) and boxes.dtype == np.float32
    # the face is where it was in the photo: the whole photo is the square here
    assert np.abs(boxes[6] * 2 - face.box).max() < 2
    assert np.abs(pictures[6].astype(int) - np.asarray(Image.fromarray(photo).resize((128, 128)))).mean() < 4


def test_random_crops_hold_the_face(prepared):
    read = PreparedPhotos(prepared)
    whole, whole_boxes = read.pictures([0] * 20)
    pictures, boxes = read.pictures([0] * 20, np.random.default_rng(1))
    again, _ = read.pictures([0] * 20, np.random.default_rng(1))
    assert (pictures == again).all() and len({one.tobytes() for one in pictures}) > 10
    assert boxes.min() >= 0 and boxes.max() <= 128
    for picture_, box in zip(pictures, boxes, strict=True):
        face = Image.fromarray(picture_).resize((40, 40), box=tuple(box.tolist()))
        wanted = Image.fromarray(whole[0]).resize((40, 40), box=tuple(whole_boxes[0].tolist()))
        assert np.abs(np.asarray(face, int) - np.asarray(wanted, int)).mean() < 6


def test_random_squares():
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(2000):
        x0, y0, x1, y1 = np.sort(rng.uniform(0, 160, (2, 2)), axis=0).ravel()
        left, top, right, bottom = random_square(np.array([x0, y0, x1, y1]), 128, 160, rng)
        assert 0 <= left <= x0 and 0 <= top <= y0 and x1 <= right <= 160 and y1 <= bottom <= 160
        assert right - left == bottom - top >= 128
        seen.add(right - left)
    assert {128, 160} <= seen


def test_a_training_stage_learns_from_them(prepared, tmp_path):
    for package in ("accelerate", "diffusers", "transformers", "open_clip", "matplotlib"):
        pytest.importorskip(package)
    from hyperlora_core.train import stage

    texts = (sdxl.TextSize(32, 1, 1, "quick_gelu"), sdxl.TextSize(64, 1, 1, "gelu"))
    narrow = replace(sdxl.DEMO, channels=(32, 32, 32), res_blocks=1, text=texts)
    sdxl.save_models(tmp_path / "sdxl", narrow, sdxl.random_models(narrow))
    config = load_config(config_path("id-embedding", "cpu", "cpu"), stage.Config)
    sources = Sources(tmp_path, prepared, tmp_path / "sdxl", demo_folder() / DEMO_CLIP)
    task = stage.make_task(replace(config, stage=replace(config.stage, start=(), cache=False)), sources, "id-embedding")
    batch = task.batch(stage.Draw(np.random.default_rng(0), 3, torch.device("cpu")))
    assert batch["noisy"].shape == (3, 4, 16, 16) and batch["embeds"].shape == (3, 512)
    assert batch["tokens"].shape == batch["base_tokens"].shape
    assert (batch["weights"].flatten(1).std(1) > 0).all()  # a part of every picture is face
    loss = sum(task.module(**batch).values())
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in task.module.parameters())


def test_shards_are_webdataset(prepared):
    index = np.load(prepared / "index.npy")
    shards = sorted(prepared.glob("*.tar"))
    assert len(shards) > 1 and sorted(set(index["shard"])) == list(range(len(shards)))
    keys = []
    for number, path in enumerate(shards):
        with tarfile.open(path) as shard:
            members = shard.getmembers()
            for i in range(0, len(members), 5):
                key = members[i].name.partition(".")[0]
                names = [f"{key}.{ending}" for ending in ("jpg", "id.jpg", "base.jpg", "json", "npy")]
                assert [member.name for member in members[i : i + 5]] == names
                row = index[int(key)]
                assert row["shard"] == number
                assert row["offsets"].tolist() == [member.offset_data for member in members[i : i + 5]]
                assert row["sizes"].tolist() == [member.size for member in members[i : i + 5]]
                keys.append(key)
    assert keys == [f"{row:09d}" for row in range(len(index))]


def test_damaged_folders(prepared, tmp_path):
    shards = sorted(path.name for path in prepared.glob("*.tar"))

    def spoilt(name, spoil):
        shutil.copytree(prepared, tmp_path / name)
        spoil(tmp_path / name)
        return tmp_path / name

    def cut(path, less):
        path.write_bytes(path.read_bytes()[:-less])

    for folder, words in (
        (tmp_path / "nowhere", ("holds no prepared photos", "hyperlora prepare")),
        (spoilt("unfinished", lambda f: (f / "index.npy").unlink()), ("aren't all prepared",)),
        (spoilt("no shard", lambda f: (f / shards[1]).unlink()), (shards[1], "isn't there")),
        (spoilt("cut shard", lambda f: cut(f / shards[0], 3000)), (shards[0], "copy it again")),
        (spoilt("cut index", lambda f: cut(f / "index.npy", 40)), ("index.npy", "can't be read")),
        (spoilt("other index", lambda f: np.save(f / "index.npy", np.zeros(3))), ("index.npy", "is not an index")),
        (spoilt("newer", lambda f: (f / "config.json").write_text('{"format": 2}')), ("another version",)),
    ):
        with pytest.raises(HyperLoRAError) as error:
            PreparedPhotos(folder)
        assert_sentence(str(error.value), words)
    folder = spoilt("overwritten", lambda f: None)
    read = PreparedPhotos(folder)
    (folder / shards[0]).write_bytes(b"\0" * (folder / shards[0]).stat().st_size)
    with pytest.raises(HyperLoRAError) as error:
        read.pictures([0])
    assert_sentence(str(error.value), (shards[0], "photo 0"))


# --- the rules -------------------------------------------------------------------------------------------------------


def test_the_face_is_one_large_and_whole():
    def found(*boxes):
        return [Detection(np.float32(box), 0.9, np.zeros((5, 2))) for box in boxes]

    rules = PhotoRules()
    assert photo_rules.the_face(found((100, 100, 300, 350)), 1000, 1200, rules).box[3] == 350
    for boxes, reason in (
        ((), "no face"),
        (((0, 0, 300, 300), (500, 500, 800, 800)), "several faces"),
        (((100, 100, 200, 240),), "face too small"),
        (((-30, 100, 300, 350),), "face cut off"),
        (((800, 1000, 1000, 1230),), "face cut off"),
    ):
        with pytest.raises(Rejected) as rejected:
            photo_rules.the_face(found(*boxes), 1000, 1200, rules)
        assert rejected.value.reason == reason
    with pytest.raises(Rejected, match="of the photo"):
        photo_rules.the_face(found((100, 100, 300, 350)), 4000, 3000, rules)


def test_training_squares_lie_in_the_photo_around_the_face():
    rng = np.random.default_rng(0)
    rules = PhotoRules(max_enlargement=100)
    for _ in range(500):
        width, height = rng.integers(400, 4000, 2)
        side = rng.uniform(0.1, 1) * min(width, height)
        x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
        box = np.array([x, y, x + side * rng.uniform(0.6, 1), y + side])
        square = photo_rules.training_square(box, width, height, rules)
        assert square.x >= 0 and square.y >= 0
        assert square.x + square.side <= width and square.y + square.side <= height
        low, high = box[:2] - square[:2], box[2:] - square[:2]
        assert low.min() >= -1 and high.max() <= square.side + 1  # rounding
        assert square.side == min(width, height, round(4 * side))
    with pytest.raises(Rejected, match="too few pixels"):
        photo_rules.training_square(np.array([500, 500, 700, 700]), 4000, 4000, PhotoRules())


@pytest.mark.parametrize("yaw, roll", [(0, 0), (30, 0), (-45, 0), (0, 25), (20, -30), (-60, 80)])
def test_head_pose_of_a_mean_face(yaw, roll):
    """Eyes and nose in three dimensions, turned, seen from afar, tilted."""
    points = np.zeros((106, 3))
    points[photo_rules.LEFT_EYE], points[photo_rules.RIGHT_EYE] = (-0.5, 0, 0), (0.5, 0, 0)
    points[photo_rules.NOSE_TIP] = (0, 0.33, photo_rules.NOSE_DEPTH)
    a, b = np.radians([yaw, roll])
    x, y = points[:, 0] * np.cos(a) + points[:, 2] * np.sin(a), points[:, 1]
    seen = np.stack([x * np.cos(b) - y * np.sin(b), x * np.sin(b) + y * np.cos(b)], 1)
    np.testing.assert_allclose(photo_rules.head_pose(seen * 80 + 300), (yaw, roll), atol=1e-6)


def test_head_pose_of_found_landmarks():
    """One person, drawn straight, tilted to either side and turned to either side."""
    faces = FaceAnalyzer.load(FACES, "cpu")
    scene = replace(Scene.random(np.random.default_rng(1), sketch=0, hat=0, glasses=0), roll=0.0, turn=0.0)
    pose = {}
    for name, change in {"right": 0.3, "left": -0.3}.items():
        for what in ("roll", "turn"):
            drawn = render(Identity.from_seed(HELD_OUT[4]), replace(scene, **{what: change}), 256)
            pose[what, name] = photo_rules.head_pose(faces.face(drawn.image).landmarks)
    assert pose["roll", "right"].roll == pytest.approx(np.degrees(0.3), abs=4)
    assert pose["roll", "left"].roll == pytest.approx(np.degrees(-0.3), abs=4)
    assert pose["turn", "right"].yaw > 5 and pose["turn", "left"].yaw < -5


def test_turned_and_blurred_heads_are_rejected():
    with pytest.raises(Rejected, match="head turned"):
        photo_rules.check_pose(photo_rules.HeadPose(-61, 0), PhotoRules())
    photo_rules.check_pose(photo_rules.HeadPose(-49, 39), PhotoRules())
    sharp, box = photo_of(0), np.array([60, 60, 190, 190])
    values = [
        photo_rules.sharpness(np.asarray(photo), box) for photo in (sharp, sharp.filter(ImageFilter.GaussianBlur(3)))
    ]
    assert values[0] > 2 * values[1]
    with pytest.raises(Rejected, match="face blurred"):
        photo_rules.check_sharpness(values[1], PhotoRules(min_sharpness=values[0]))
