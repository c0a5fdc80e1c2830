"""`hyperlora prepare`: drawn portraits as photos, the demo's face pack, and all sorts of broken files among them."""

import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import HTML, assert_sentence, picture
from people import photo_of, side_by_side
from PIL import Image, ImageFilter
from places import ROOT

from hyperlora_core import FaceAnalyzer, HyperLoRAError, read_photo
from hyperlora_core.cli import main
from hyperlora_core.face import identity_picture
from hyperlora_core.face.analyzer import Detection
from hyperlora_core.locate import demo_folder
from hyperlora_core.train import photo_rules, photo_shards, prepare
from hyperlora_core.train.photo_rules import PhotoRules, Rejected
from hyperlora_core.train.photos import PreparedPhotos, random_square

for package in ("insightface", "onnxruntime", "cv2"):
    pytest.importorskip(package)

FACES = demo_folder() / "face"
CONFIG = prepare.PrepareConfig(PhotoRules(size=128, min_face=60, max_enlargement=2, max_roll=15), people_folders=True)
SHARD = 60_000  # bytes: some photos each
# file -> the reason why it is rejected, and words of the detail
BAD = {
    "people/mia/cut.jpg": ("unreadable", "cut off"),
    "people/mia/empty.png": ("unreadable", "an empty file"),
    "people/mia/page.jpg": ("unreadable", "a web page"),
    "people/mia/text.webp": ("unreadable", "text"),
    "people/mia/heic.heic": ("unreadable", "another format"),
    "people/mia/silent.jpg": ("no caption", "--caption"),
    "people/mia/latin.jpg": ("caption unreadable", "UTF-8"),
    "people/nobody.png": ("no face", ""),
    "people/pair.jpg": ("several faces", "2 faces"),
    "people/tiny.jpg": ("photo too small", "64 x 64"),
    "people/far.png": ("face too small", "needs 60"),
    "people/tilted.jpg": ("head tilted", "at most 15"),
}


def save(photo: Image.Image, path: Path, caption: str | None = "a person") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def far_away() -> Image.Image:
    small = Image.new("RGB", (256, 256), (90, 120, 150))
    small.paste(photo_of(0).resize((70, 70)), (90, 90))
    return small


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two people with three photos each, one photo of nobody's folder, and what can't be used."""
    folder = tmp_path_factory.mktemp("photos") / "people"
    for number, name in enumerate(("anna", "ben")):
        for scene in range(3):
            save(photo_of(number, scene), folder / name / f"{scene}.jpg", f"{name} in \n scene {scene}\n")
    save(photo_of(2), folder / "single.png")
    mia = folder / "mia"
    save(photo_of(3), mia / "cut.jpg")
    (mia / "cut.jpg").write_bytes((mia / "cut.jpg").read_bytes()[:3000])
    (mia / "empty.png").write_bytes(b"")
    (mia / "page.jpg").write_text(HTML)
    (mia / "text.webp").write_text("not a picture")
    (mia / "heic.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    save(photo_of(3), mia / "silent.jpg", None)
    save(photo_of(3), mia / "latin.jpg")
    (mia / "latin.txt").write_bytes("café".encode("latin-1"))
    (mia / "._0.jpg").write_bytes(b"what macOS leaves behind")
    (mia / "notes.md").write_text("not a photo, and not called one")
    save(picture((256, 256)).filter(ImageFilter.GaussianBlur(20)), folder / "nobody.png")
    save(side_by_side(photo_of(0, 7), photo_of(1, 7)), folder / "pair.jpg")
    save(photo_of(0).resize((64, 64)), folder / "tiny.jpg")
    save(far_away(), folder / "far.png")
    save(photo_of(4).rotate(25, Image.Resampling.BICUBIC, fillcolor=(90, 120, 150)), folder / "tilted.jpg")
    return folder


def run(photos, out, config=CONFIG, **options):
    options = {"provider": "cpu", "shard_bytes": SHARD, **options}
    return prepare.prepare_photos([photos], out, FACES, config, **options)


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    run(photos, out)
    return out


def report_of(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "report.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({line["source"] for line in lines}) == len(lines)
    return {line["source"]: line for line in lines}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


# --- what is kept and what isn't -------------------------------------------------------------------------------------


def test_every_file_is_reported(photos, prepared):
    report = report_of(prepared)
    good = {f"people/{name}/{i}.jpg" for name in ("anna", "ben") for i in range(3)} | {"people/single.png"}
    assert {name for name, line in report.items() if line["verdict"] == "kept"} == good
    rejected = {name: line for name, line in report.items() if line["verdict"] == "rejected"}
    assert {name: line["reason"] for name, line in rejected.items()} == {name: why for name, (why, _) in BAD.items()}
    for name, (_, words) in BAD.items():
        assert words in rejected[name]["detail"], rejected[name]
    assert all(float(line["face"]) >= 60 and float(line["sharpness"]) > 0 for line in report.values() if line["face"])


def test_real_photographs(tmp_path):
    """The demo's face pack knows drawn faces only: whatever it sees in photographs, they go through all the same."""
    skimage, insightface = pytest.importorskip("skimage"), pytest.importorskip("insightface")
    astronaut = Path(skimage.__file__).parent / "data" / "astronaut.png"
    friends = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    save(photo_of(0), tmp_path / "photos" / "0.jpg")
    for photo in (astronaut, friends):
        shutil.copy(photo, tmp_path / "photos")
    summary = run(tmp_path / "photos", tmp_path / "out", replace(CONFIG, caption="a photo"))
    assert summary.kept + sum(summary.rejected.values()) == 3
    assert report_of(tmp_path / "out")["photos/t1.jpg"]["verdict"] == "rejected"


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
    with pytest.raises(Rejected, match="share|of the photo"):
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
    """Photos rotated by 20 degrees are seen as tilted by that much more."""
    faces = FaceAnalyzer.load(FACES, "cpu")
    rolls = []
    for angle in (0, -20):  # Pillow turns to the left
        photo = np.asarray(photo_of(1).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(90, 120, 150)))
        rolls.append(photo_rules.head_pose(faces.face(photo).landmarks).roll)
    assert abs(rolls[1] - rolls[0] - 20) < 5


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


# --- what is read back -----------------------------------------------------------------------------------------------


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


# --- stopped and resumed ---------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("looked_at", [1, 4, 12])
@pytest.mark.parametrize("torn", ["nothing", "tails", "power cut"])
def test_a_killed_run_goes_on_without_loss_or_repetition(photos, prepared, tmp_path, looked_at, torn):
    """What lies on disk at some moment is what a kill leaves; a kill in the middle of writing leaves more."""
    out, left = tmp_path / "out", tmp_path / "left"

    def progress(done, total, kept, rejected):
        if kept + rejected == looked_at:
            shutil.copytree(out, left, ignore=shutil.ignore_patterns(".lock"))
            raise Stop

    with pytest.raises(Stop):
        run(photos, out, progress=progress)
    assert not (left / "index.npy").exists()
    last = max(left.glob("*.part"), key=lambda path: path.name if "tar" in path.name else "")
    if torn == "tails":
        for path, tail in ((last, b"x" * 700), (left / "rows.part", b"y" * 50), (left / "report.csv", b"people/ann")):
            path.write_bytes(path.read_bytes() + tail)
    if torn == "power cut":
        for path in (last, left / "rows.part"):
            path.write_bytes(path.read_bytes()[:-600])
    before = len(report_of(left)) if torn == "nothing" else 0
    looks = []
    run(photos, left, progress=lambda *counts: looks.append(counts))
    assert contents(left) == contents(prepared)
    assert torn != "nothing" or len(looks) == len(report_of(prepared)) - before
    assert looks[-1][0] == looks[-1][1]  # all bytes that were left are done


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_two_processes_killed_for_good(photos, prepared, tmp_path):
    """kill -9 of the main process; two workers, of which none is left, write what one would have written."""
    out = tmp_path / "out"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(CONFIG.rules).items()]
    command = [sys.executable, "-m", "hyperlora_core", "prepare", photos, "--out", out, "--people-folders", *options]
    command += ["--face-pack", FACES, "--provider", "cpu", "--shard-size", str(SHARD / 1e6), "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "report.csv").exists() and len((out / "report.csv").read_bytes().splitlines()) > 3:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        # the pipes end when the last process that holds them has ended
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said.decode()
    run(photos, out, workers=2)
    assert contents(out) == contents(prepared)


def test_more_photos_later(photos, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    more = tmp_path / "people"
    save(photo_of(5), more / "eve" / "0.jpg", "eve")
    summary = run(more, out)
    assert summary.kept == 8
    old, new = np.load(prepared / "index.npy"), np.load(out / "index.npy")
    assert (new[:7] == old).all() and PreparedPhotos(out).captions([7]) == ["eve"]
    before = contents(prepared)
    assert all(contents(out)[name] == data for name, data in before.items() if name.endswith(".tar"))
    run(photos, out)
    assert (np.load(out / "index.npy") == new).all()


def test_full_disk(photos, prepared, tmp_path, monkeypatch):
    out = tmp_path / "out"
    append, count = photo_shards.ShardWriter._append, iter(range(100))

    def full(self, name, data):
        if next(count) == 17:
            self._shard.write(data[:300])
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, name, data)

    monkeypatch.setattr(photo_shards.ShardWriter, "_append", full)
    with pytest.raises(HyperLoRAError) as error:
        run(photos, out)
    assert_sentence(str(error.value), ("photos-0000", "No space left", "it goes on"))
    monkeypatch.setattr(photo_shards.ShardWriter, "_append", append)
    run(photos, out)
    assert contents(out) == contents(prepared)


# --- shards as input, captions ---------------------------------------------------------------------------------------


def add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def jpeg(number: int, scene: int = 0) -> bytes:
    file = io.BytesIO()
    photo_of(number, scene).save(file, "JPEG")
    return file.getvalue()


def test_shards_as_input(tmp_path):
    laion = tmp_path / "laion"
    laion.mkdir()
    with tarfile.open(laion / "00000.tar", "w") as shard:
        add(shard, "000.jpg", jpeg(0))
        add(shard, "000.txt", b"first")
        add(shard, "000.json", b'{"caption": "not this"}')
        add(shard, "001.json", b'{"caption": "second"}')
        add(shard, "001.jpg", jpeg(1))
        add(shard, "002.txt", b"a caption without a photo")
        add(shard, "deep/v1.2/003.JPG", jpeg(2))
        add(shard, "deep/v1.2/003.json", b'{"caption": 7}')
        add(shard, "004.jpg", HTML.encode())
    with tarfile.open(laion / "00001.tar", "w") as shard:
        for i in range(4):
            add(shard, f"{i}.jpg", jpeg(i, 1))
            add(shard, f"{i}.txt", b"cut")
    whole = (laion / "00001.tar").read_bytes()
    (laion / "00001.tar").write_bytes(whole[: len(whole) // 2])
    with tarfile.open(laion / "00002.tar.gz", "w:gz") as shard:
        add(shard, "0.jpg", jpeg(0))
    counts = []
    config = replace(CONFIG, people_folders=False)
    summary = run(laion, tmp_path / "out", config, progress=lambda *now: counts.append(now))
    report = report_of(tmp_path / "out")
    assert {name for name, line in report.items() if line["verdict"] == "kept"} >= {
        "laion/00000.tar/000", "laion/00000.tar/001", "laion/00001.tar/0"
    }  # fmt: skip
    assert report["laion/00000.tar/002"]["detail"] == "the sample holds no picture, only txt"
    assert report["laion/00000.tar/deep/v1.2/003"]["reason"] == "no caption"
    assert report["laion/00000.tar/004"]["detail"].endswith("a web page")
    assert "damaged at" in report["laion/00001.tar"]["detail"]
    assert "gunzip" in report["laion/00002.tar.gz"]["detail"]
    assert counts[-1] == (counts[-1][1], sum(path.stat().st_size for path in laion.iterdir()), summary.kept, 5)
    read = PreparedPhotos(tmp_path / "out")
    assert read.captions([0, 1]) == ["first", "second"] and len(set(read.people)) == len(read)
    # what comes out can go in again, by a pattern
    again = prepare.prepare_photos([str(tmp_path / "out" / "*.tar")], tmp_path / "again", FACES, config)
    assert again.kept >= 1 and PreparedPhotos(tmp_path / "again").captions([0]) == ["first"]


def test_people_in_shards(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            add(shard, f"anna/{number}.jpg", jpeg(0, number))
            add(shard, f"ben/{number}.jpg", jpeg(1, number))
    config = replace(CONFIG, caption="a person")
    prepare.prepare_photos([tmp_path / "0.tar", tmp_path / "1.tar"], tmp_path / "out", FACES, config)
    people = PreparedPhotos(tmp_path / "out").people
    assert people[0] == people[2] != people[1] == people[3]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A photo with a caption and one without."""
    folder = tmp_path_factory.mktemp("two")
    save(photo_of(0), folder / "a.jpg", "told")
    save(photo_of(1), folder / "b.jpg", None)
    return folder


@pytest.mark.parametrize(
    "sources, caption, wanted, asked",
    [
        (("files",), "", ["told", None], 0),
        (("files",), "a person", ["told", "a person"], 0),
        (("files", "blip2"), "a person", ["told", "described"], 1),
        (("blip2",), "", ["described", None], 2),
        (("blip2",), "a person", ["described", "a person"], 2),
    ],
)
def test_where_captions_come_from(two, tmp_path, sources, caption, wanted, asked):
    seen = []

    def describe(pictures):
        seen.extend(pictures)
        return ["described", ""][: len(pictures)]

    config = replace(CONFIG, captions=sources, caption=caption)
    run(two, tmp_path, config, captioner=describe if "blip2" in sources else None)
    read = PreparedPhotos(tmp_path)
    assert read.captions(range(len(read))) == [one for one in wanted if one]
    assert len(seen) == asked and all(one.size == (160, 160) for one in seen)
    if None in wanted:
        assert [line["reason"] for line in report_of(tmp_path).values()] == ["", "no caption"]


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    """BLIP-2 in its own files, with three layers and twelve words."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("blip2")
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "a", "photo", "of", "woman", "man", "red", "blue"]
    vocabulary = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(vocabulary), additional_special_tokens=["<image>"], **marks
    )
    pictures = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "opt", "vocab_size": 12, "ffn_dim": 16, "word_embed_proj_dim": 16, "bos_token_id": 1}
    config = transformers.Blip2Config(
        vision_config={**narrow, "intermediate_size": 16, "image_size": 32, "patch_size": 16},
        qformer_config={**narrow, "vocab_size": 12, "intermediate_size": 16, "encoder_hidden_size": 16},
        text_config={**narrow, **text, "max_position_embeddings": 64, "eos_token_id": 2, "pad_token_id": 0},
        num_query_tokens=4,
        image_token_index=4,
    )
    torch.manual_seed(0)
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    transformers.Blip2Processor(pictures, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def test_blip2(blip2):
    from hyperlora_core.train.blip import Blip2

    describe = Blip2(blip2, "cpu")
    pictures = [photo_of(number) for number in range(3)]
    captions = describe(pictures)
    assert len(captions) == 3 and all("<" not in caption and "\n" not in caption for caption in captions)
    assert set(" ".join(captions).split()) <= {"a", "photo", "of", "woman", "man", "red", "blue"}
    assert any(captions) and describe(pictures) == captions


def test_blip2_that_is_not_there(blip2, tmp_path):
    from hyperlora_core.train.blip import Blip2

    def spoilt(name, spoil):
        folder = tmp_path / name
        shutil.copytree(blip2, folder)
        spoil(folder)
        return folder

    def forget(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors.pop("language_projection.weight")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    weights = (blip2 / "model.safetensors").read_bytes()
    for folder, words in (
        (tmp_path / "nowhere", ("nowhere", "config.json", "hf download")),
        (spoilt("bare", lambda f: (f / "model.safetensors").unlink()), ("no weights", "hf download")),
        (spoilt("cut", lambda f: (f / "model.safetensors").write_bytes(weights[:-99])), ("model.safetensors",)),
        (spoilt("broken", lambda f: (f / "config.json").write_text("{")), ("can't be loaded", "hf download")),
        (spoilt("less", forget), ("language_projection.weight", "hf download")),
    ):
        with pytest.raises(HyperLoRAError) as error:
            Blip2(folder, "cpu")
        assert_sentence(str(error.value), words)


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_other_options_need_another_folder(photos, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(HyperLoRAError) as error:
        run(photos, tmp_path / "out", replace(CONFIG, quality=90))
    assert_sentence(str(error.value), ("quality was 95, is 90", "--out"))
    assert contents(tmp_path / "out") == before


def test_one_writer_at_a_time(photos, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out")
    told = json.loads((prepared / "config.json").read_text())
    told.pop("format")
    with (
        photo_shards.ShardWriter(tmp_path / "out", told, SHARD),
        pytest.raises(HyperLoRAError, match="another process"),
    ):
        run(photos, tmp_path / "out")


def test_nothing_usable(tmp_path):
    save(picture(), tmp_path / "photos" / "noise.png")
    for _ in range(2):
        with pytest.raises(HyperLoRAError) as error:
            run(tmp_path / "photos", tmp_path / "out")
        assert_sentence(str(error.value), ("None of the 1 photos", "no face", "report.csv"))
    with pytest.raises(HyperLoRAError, match="aren't all prepared"):
        PreparedPhotos(tmp_path / "out")


def test_mistakes(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x").mkdir(parents=True)
    for folder in "ab":
        save(photo_of(0), tmp_path / folder / "x" / "0.jpg")
    for given, options, words in (
        ([tmp_path / "empty"], {}, ("empty", "holds no photos")),
        ([tmp_path / "nowhere"], {}, ("nowhere", "doesn't exist")),
        ([tmp_path / "a" / "x", tmp_path / "b" / "x"], {}, ("would both be called x/0.jpg",)),
        ([photos], {"workers": 0}, ("--workers 1",)),
        ([photos], {"config": replace(CONFIG, captions=("blip2",))}, ("--blip2 FOLDER",)),
    ):
        with pytest.raises(HyperLoRAError) as error:
            prepare.prepare_photos(given, tmp_path / "out", FACES, **{"config": CONFIG, **options})
        assert_sentence(str(error.value), words)
    with pytest.raises(HyperLoRAError, match="size 100"):
        PhotoRules(size=100)
    with pytest.raises(HyperLoRAError, match="holds no .onnx files"):
        prepare.prepare_photos([photos], tmp_path / "out", tmp_path / "empty")
    # the folder that is written to is not read, even where it lies among the photos
    same = tmp_path / "a" / "x"
    assert [run(same, same / "out").kept for _ in range(2)] == [1, 1]


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


def test_command(two, tmp_path, capsys):
    command = ["prepare", str(two), "--out", str(tmp_path / "out"), "--face-pack", str(FACES), "--workers", "1"]
    command += ["--size", "128", "--min-face", "60", "--max-enlargement", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 of 2 photos prepared" in said and "1  no caption" in said and "report.csv" in said
    assert main([*command, "--caption", "a person"]) == 2
    assert_sentence(capsys.readouterr().err.splitlines()[-1], ("hyperlora prepare:", "prepared otherwise"))
    assert main([*command[:3], str(tmp_path / "other"), *command[4:], "--captions", "blip2"]) == 2
    assert "--blip2 FOLDER" in capsys.readouterr().err
    for wrong in (["--captions", "magic"], ["--quality", "0"]):
        with pytest.raises(SystemExit):
            main([*command, *wrong])
