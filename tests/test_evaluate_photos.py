"""hyperlora evaluate on photographs: people and pictures found by name, every figure worked out by hand on toy pictures,
and a report that opens without a network."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bad_inputs import assert_sentence
from PIL import Image

from hyperlora_core import HyperLoRAError
from hyperlora_core.cli import evaluate, main
from hyperlora_core.evaluate import paper
from hyperlora_core.evaluate.hyperlora import HyperLoRAPainter
from hyperlora_core.evaluate.instruments import Instruments, Seen
from hyperlora_core.evaluate.paint import Job
from hyperlora_core.evaluate.photo_people import given_methods, photographed_people, read_kinds, seeds_of
from hyperlora_core.evaluate.protocol import ALONE, ID_ONLY, NONE, PROMPTS, SCENES, Method, load_protocol
from hyperlora_core.evaluate.report import write_report
from hyperlora_core.evaluate.run import Evaluation
from hyperlora_core.evaluate.store import PictureFolder
from hyperlora_core.queue.jobs import Inputs, plan_jobs, read_people, read_prompts

pytest.importorskip("cv2")

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
ORANGE = (204, 153, 0)  # cosine 0.8 to red and 0.6 to green
WORDS = ("a red coat", "a green hat")


def save(path, colour, stripes=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((64, 64, 3), colour, np.uint8)
    pixels[:, : 2 * stripes : 2] = 0
    Image.fromarray(pixels).save(path)
    return path


class ToyFaces:
    """Who someone is is the colour of the picture; a black one shows nobody."""

    name, independent = "toy", False

    def look(self, picture):
        mean = picture.reshape(-1, 3).mean(0)
        return Seen(mean / np.linalg.norm(mean), picture[:32, :32]) if mean.any() else None

    def table(self, rows):
        return np.stack([np.zeros(3) if row is None else row for row in rows])


class ToyView:
    """The colour, too; words are red, green or neither."""

    name = "toy view"

    def pictures(self, pictures):
        mean = np.stack([picture.reshape(-1, 3).mean(0) for picture in pictures]) + 1e-9
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def texts(self, texts):
        return np.array([[float("red" in text), float("green" in text), 0.0] for text in texts])


INSTRUMENTS = Instruments(ToyFaces(), None, ToyView())


@pytest.fixture
def photos(tmp_path):
    """Anna is red, with a second photo that is orange; Ben is green."""
    save(tmp_path / "photos" / "anna" / "1.png", RED)
    save(tmp_path / "photos" / "anna" / "2.png", ORANGE)
    save(tmp_path / "photos" / "ben.png", GREEN)
    return tmp_path / "photos"


def protocol_of(seeds=(7,)):
    kinds = dict(zip(WORDS, ("clothes", "accessories"), strict=True))
    return dataclasses.replace(
        load_protocol(), prompts={SCENES: [[word] for word in WORDS for _ in seeds]}, kinds=kinds, comparisons=()
    )


def evaluation(photos, methods, out, painter=None, person_painters=None, **options):
    people = photographed_people(photos, WORDS, [7])
    return Evaluation(people, methods, protocol_of(), painter, person_painters or {}, INSTRUMENTS, out, **options)


def test_people_and_pictures_are_called_as_the_queue_calls_them(photos):
    people = photographed_people(photos, WORDS, [7, 9])
    queued = plan_jobs({}, Inputs([], [], []), read_people(photos, 1)[0], WORDS, [7, 9])
    assert [f"{person.name}_{tag}" for person in people for tag in person.tags] == [job.name for job in queued]
    jobs = [
        (prompt, seed) for person in people for prompt, seed in zip(person.prompts[SCENES], person.noise, strict=True)
    ]
    assert jobs == [(job.prompt, job.seed) for job in queued]
    anna, ben = people
    assert anna.photos[0].endswith("1.png") and anna.gallery.endswith("2.png") and ben.gallery is None
    assert photographed_people(photos.parent / "photos", WORDS, [7], bare={"bare": ("x",) * 4})[0].prompts["bare"] == (
        "x",
        "x",
    )
    with pytest.raises(HyperLoRAError, match=r"ben\.png in .* has 1 photos, but 2 are needed"):
        photographed_people(photos, WORDS, [7], photos=2)


def test_our_prompts_are_ten_in_the_papers_four_classes():
    prompts, kinds = read_prompts(PROMPTS), read_kinds()
    assert len(prompts) == len(set(prompts)) == 10 and set(prompts) == set(kinds)
    assert set(kinds.values()) == {"hair", "accessories", "clothes", "background"}


def test_pictures_are_found_by_their_names(tmp_path):
    for name in (
        "anna_p01_s7.png",
        "anna_p01_s7_v2.png",
        "p2_s7.jpg",
        "ben/p01_s7.png",
        "sheet.png",
        "anna_p01_s8.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = PictureFolder(tmp_path)
    assert folder.path("anna", "p01_s7").name == "anna_p01_s7_v2.png"
    assert folder.path("anna", "p02_s7").name == folder.path("carl", "p02_s7").name == "p2_s7.jpg"
    assert folder.path("ben", "p01_s7") == tmp_path / "ben" / "p01_s7.png"
    assert not folder.path("ben", "p03_s7").exists() and folder.seeds == {7}
    # several pictures of a job
    (tmp_path / "anna_p01_s9_2.png").touch()
    with pytest.raises(HyperLoRAError, match=r"one of several pictures of a job.*#1"):
        PictureFolder(tmp_path)
    assert PictureFolder(tmp_path, 2).path("anna", "p01_s9").name == "anna_p01_s9_2.png"
    assert not PictureFolder(tmp_path, 1).path("anna", "p01_s9").exists()
    assert seeds_of(given_methods([f"a={tmp_path}#2"])) == [7, 9]
    with pytest.raises(HyperLoRAError, match="holds no picture that is called PERSON_p01_s1"):
        PictureFolder(tmp_path / "ben" / "nothing")
    (one,) = given_methods(["mine=C:/pictures/#1 best"])
    assert (one.pictures, one.number) == ("C:/pictures/#1 best", None)


def test_pictures_whose_names_tell_other_prompts_are_refused(tmp_path):
    """A list of prompts was turned round: what was made keeps its name, and gets another number."""
    for number in (1, 2):
        (tmp_path / f"anna_p0{number}_s7.png").touch()
    rows = ["identity,prompt number,file", "anna,1,anna_p01_s7.png", "anna,2,anna_p02_s7.png"]
    (tmp_path / "index.csv").write_text("\n".join(rows))
    assert PictureFolder(tmp_path).seeds == {7}
    (tmp_path / "index.csv").write_text("\n".join([rows[0], rows[1].replace(",1,", ",2,")]))
    with pytest.raises(HyperLoRAError, match=r"anna_p01_s7.png is called after prompt 1, which is prompt 2 by now"):
        PictureFolder(tmp_path)


@pytest.fixture
def given(photos, tmp_path):
    """none: everybody's, red for the coat and black for the hat. mine: Anna once as her photo and once as her gallery,
    Ben once as his photo and once without a face."""
    save(tmp_path / "none" / "p01_s7.png", RED, stripes=0)
    save(tmp_path / "none" / "p02_s7.png", GREEN)
    save(tmp_path / "mine" / "anna_p01_s7.png", RED)
    save(tmp_path / "mine" / "anna_p02_s7.png", ORANGE)
    save(tmp_path / "mine" / "ben_p01_s7.png", GREEN, stripes=8)
    save(tmp_path / "mine" / "ben_p02_s7.png", BLACK)
    return given_methods([f"{name}={tmp_path / name}" for name in (NONE, "mine")])


def test_figures_and_report_of_given_pictures(photos, given, tmp_path):
    results = evaluation(photos, given, tmp_path / "out").run()
    table = write_report(tmp_path / "out", results, [("mine", NONE)], {"seeds": "7"})
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    mine = {name: of and of["value"] for name, of in report["figures"]["mine"].items()}
    assert mine["ID Sim"] == pytest.approx((1 + 0.8 + 1 + 0) / 4, abs=1e-3)
    assert mine["fidelity"] == pytest.approx((1 + 0.8 + 1 + 0) / 4, abs=1e-3)
    assert mine["faces"] == 0.75
    assert mine["CLIP-I"] == pytest.approx((1 + 0.6 + 0 + 1 / 3**0.5) / 4, abs=0.15)
    assert mine["CLIP-T, clothes"] == pytest.approx((1 + 0) / 2, abs=1e-3)  # Anna in red, Ben in green
    assert mine["cosine"] == pytest.approx((0.8 + 1 + 1 + 0) / 4, abs=1e-3)  # Ben has no other photo
    assert mine["copy-paste"] == pytest.approx(0, abs=0.01)  # Anna's: once the photo, once the gallery; Ben's: none
    assert mine["sharpness"] > report["figures"][NONE]["sharpness"]["value"] == 0
    assert report["figures"][NONE]["CLIP-I"]["value"] == pytest.approx(1)
    assert mine["prompt"] is None and "similarity" not in mine and "| edits kept" not in table
    assert report["seconds"] == {}
    # who measures, with a warning; theirs are marked
    assert "Warning: this is the network that HyperLoRA reads" in table and report["measured with"][0] in table
    assert "| HyperLoRA full (paper) | 0.853 | 0.678 | 0.710 | 0.243 |" in table and paper.ABOUT in table
    assert paper.ABOUT_SPEEDS not in table  # nothing was painted here
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = {(row["method"], row["person"], row["picture"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 * 2 * 2 and rows["mine", "ben", "p02_s7"]["face"] == "0"
    assert float(rows["mine", "anna", "p02_s7"]["id_sim"]) == pytest.approx(0.8, abs=1e-3)

    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!grid_)', page)  # opens offline: nothing but the grids beside it
    for file in re.findall(r'src="(grid_\d+\.png)"', page):
        assert Image.open(tmp_path / "out" / file).width == 160 * 3  # the photo and two methods
    assert page.count("<svg") >= 6 and "PuLID (paper)" in page and "nan" not in page


def test_who_lacks_pictures_is_left_out_everywhere(photos, given, tmp_path):
    save(photos / "carl.png", (0, 0, 255))
    results = evaluation(photos, given, tmp_path / "out").run()
    assert results.left_out == ["carl: mine has 0 of 2 pictures, not carl_p01_s7"]
    assert [person.name for person in results.people] == ["anna", "ben"]
    assert all(len(scores) == 2 for scores in results.scores.values())
    for path in (tmp_path / "mine").glob("*_p02_*"):
        path.unlink()
    with pytest.raises(HyperLoRAError, match=r"Nobody has all pictures.*anna: mine has 1 of 2 pictures"):
        evaluation(photos, given, tmp_path / "out").run()


class ToyPainter:
    """Paints the person's colour, which the toy LoRA carries; without one, blue."""

    settings = {"steps": 1}

    def __init__(self):
        self.jobs = []

    def paint(self, jobs, progress=None):
        self.jobs += jobs
        colours = [(0, 0, 255) if job.lora is None else job.lora["a.lora_up.weight"][:, 0].tolist() for job in jobs]
        return [np.full((64, 64, 3), np.clip(colour, 0, 255), np.uint8) for colour in colours]


class ToyEncoder:
    """A photo's colour as coefficients, and these as a LoRA."""

    def __init__(self):
        lora = lambda colour: {"a.lora_down.weight": torch.ones(1, 1), "a.lora_up.weight": colour[:, None]}  # noqa: E731
        self.hyper = SimpleNamespace(fingerprint="toy", has_base=False, lora=lora)
        self.faces, self.vision = SimpleNamespace(app=SimpleNamespace(models={})), None

    def encode(self, photos):
        colour = torch.tensor(np.asarray(Image.open(photos[0]))[0, 0].astype(np.float32))
        return SimpleNamespace(identity=SimpleNamespace(coefficients=colour))


def test_painted_pictures_are_timed_and_shared_and_follow_their_photos(photos, tmp_path):
    methods = [load_protocol().methods[name] for name in (NONE, ID_ONLY)]
    encoder, out = ToyEncoder(), tmp_path / "out"

    def painted():
        painter = ToyPainter()
        results = evaluation(photos, methods, out, painter, {"demo": HyperLoRAPainter(encoder, painter)}).run()
        return painter.jobs, results

    jobs, results = painted()
    # without a person the two prompts are painted once for both people
    assert len(jobs) == 2 + 4 and len(list((out / "pictures" / "none").glob("*.png"))) == 2
    assert jobs[0].prompt == WORDS[0] and jobs[2].prompt.endswith(WORDS[0]) and jobs[2].prompt != WORDS[0]
    assert {job.seed for job in jobs} == {7}
    assert (out / "pictures" / "ID_only" / "ben_p02_s7.png").exists()
    scores = results.scores[ID_ONLY]
    assert [score.id_sim for row in scores for score in row] == pytest.approx([1, 1, 1, 1], abs=1e-3)
    assert results.speeds[NONE].shape == (2, 2) and results.speeds[ID_ONLY].shape == (4, 2)
    assert (results.speeds[NONE][:, 0] == 0).all() and (results.speeds[ID_ONLY] > 0).all()
    table = write_report(out, results, [], {"seed": 0})
    assert (
        "| method | preprocessing | inference | total |" in table
        and "| HyperLoRA (paper) | 1143 | 4327 | 5470 |" in table
    )

    assert painted()[0] == []  # nothing twice, and the times are remembered
    assert np.array_equal(painted()[1].speeds[ID_ONLY], results.speeds[ID_ONLY])
    save(photos / "ben.png", (0, 250, 250), stripes=3)  # another photo: these two again
    assert [job.prompt.endswith(word) for job, word in zip(painted()[0], WORDS, strict=True)] == [True, True]


class WordlessPainter:
    """Paints the colour of the photo, whatever the prompt."""

    settings = {"steps": 25}
    follows_prompt = False

    def __init__(self):
        self.jobs = []

    def check(self, method):
        assert method.checkpoint == "weights"

    def encode(self, photos):
        return np.asarray(Image.open(photos[0]))[0, 0]

    def job(self, method, who, prompt, seed):
        return Job(prompt, seed, face=who)

    def paint(self, jobs, progress=None):
        self.jobs += jobs
        return [np.full((64, 64, 3), job.face, np.uint8) for job in jobs]


def test_a_method_that_follows_no_words_is_not_asked_for_them(photos, tmp_path):
    row = Method("Arc2Face", 1, 0.0, 0.0, False, ALONE, checkpoint="weights")
    alone = {ALONE: ("photo of a id person",)}
    protocol = protocol_of()
    protocol = dataclasses.replace(protocol, prompts={**protocol.prompts, ALONE: [list(alone[ALONE])]})

    def painted(methods, painter=None):
        wordless, people = WordlessPainter(), photographed_people(photos, WORDS, [7], bare=alone)
        results = Evaluation(
            people, methods, protocol, painter, {"weights": wordless}, INSTRUMENTS, tmp_path / "out"
        ).run()
        return wordless.jobs, results

    jobs, results = painted([load_protocol().methods[NONE], row], ToyPainter())
    assert [(job.lora, job.seed) for job in jobs] == [(None, 7)] * 2
    assert (tmp_path / "out" / "pictures" / "Arc2Face" / "ben_p01_s7.png").exists()
    scores = [score for of_person in results.scores["Arc2Face"] for score in of_person]
    assert [score.id_sim for score in scores] == pytest.approx([1, 1], abs=1e-3)
    assert all(np.isnan(score.clip_t) and np.isnan(score.clip_i) for score in scores)
    table = write_report(tmp_path / "out", results, [("Arc2Face", NONE)], {})
    assert results.speeds["Arc2Face"].shape == (2, 2) and "| Arc2Face | " in table
    # the base model's steps are not its own: with another painter nothing is painted again
    jobs, results = painted([row], SimpleNamespace(settings={"steps": 2}))
    assert jobs == [] and "| Arc2Face | " in write_report(tmp_path / "alone", results, [], {})


def test_a_workflow_is_run_before_its_pictures_are_measured(photos, given, tmp_path, monkeypatch, capsys):
    """By the queue's own command, for these people, prompts and seeds; "none" without photos."""
    (tmp_path / "prompts.txt").write_text("\n".join(WORDS))
    asked = []

    def run(arguments):
        asked.append(vars(arguments))
        folder = tmp_path / ("mine" if arguments.photos else NONE)
        for picture in folder.glob("*.png"):
            ending = "_2" if arguments.photos else ""
            save_as = Path(arguments.out) / f"{picture.stem}{ending}.png"
            save_as.parent.mkdir(parents=True, exist_ok=True)
            save_as.write_bytes(picture.read_bytes())
        return failing

    monkeypatch.setattr(evaluate.queue, "run", run)
    monkeypatch.setattr(evaluate, "_open", lambda *_: ({}, INSTRUMENTS))
    command = ["evaluate", "--out", str(tmp_path / "out"), "--photos", str(photos), "--seeds", "7"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--server", "http://a:1", "http://b:2"]
    for name in ("plain.json", "compare.json"):
        (tmp_path / name).write_text(name)
    plain, compare = str(tmp_path / "plain.json"), str(tmp_path / "compare.json")
    command += ["--workflow", f"none={plain}", "--workflow", f"method={compare}#2"]
    failing = 0
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["figures"]["method"]["ID Sim"]["value"] == pytest.approx((1 + 0.8 + 1 + 0) / 4, abs=1e-3)
    assert [(one["workflow"], one["photos"]) for one in asked] == [(plain, None), (compare, str(photos))]
    assert all(one["seeds"] == "7" and one["server"] == ["http://a:1", "http://b:2"] for one in asked)
    folders = [Path(one["out"]).name for one in asked]
    assert [folder.rpartition("-")[0] for folder in folders] == ["plain", "compare"]
    (tmp_path / "compare.json").write_text("changed")
    assert main(command) == 0
    assert Path(asked[2]["out"]).name == folders[0] and Path(asked[3]["out"]).name not in folders
    failing = 1
    capsys.readouterr()
    assert main(command) == 2
    assert_sentence(capsys.readouterr().err, ('Some pictures of "none" failed', "the same command"))


def test_mistakes(photos, tmp_path, capsys):
    save(tmp_path / "mine" / "anna_p01_s7.png", RED)
    for arguments, words in (
        (["--pictures", "a=b"], ("--photos FOLDER",)),
        (["--sd15", "x"], ("--photos FOLDER",)),
        (["--photos", str(photos), "--arc2face", "x"], ("--arc2face FOLDER and --sd15 FOLDER go together",)),
        (
            ["--photos", str(photos), "--arc2face", "x", "--sd15", "y", "--pictures", f"Arc2Face={tmp_path / 'mine'}"],
            ('"Arc2Face"',),
        ),
        (["--workflow", "a=b"], ("--photos FOLDER",)),
        (["--photos", str(photos), "--workflow", "a=b#x"], ("--workflow a=b#x isn't NAME=FILE",)),
        (["--photos", str(photos), "--workflow", "a=b"], ("b can't be read",)),
        (
            ["--photos", str(photos), "--workflow", f"a={__file__}", "--pictures", "a=c"],
            ('Two rows would be called "a"',),
        ),
        (["--photos", str(photos)], ("nothing to measure", "--pictures NAME=FOLDER", "--base FILE")),
        (["--photos", str(photos), "--pictures", "folder"], ("--pictures folder isn't NAME=FOLDER",)),
        (["--photos", str(photos), "--pictures", "a=x", "--pictures", "a=y"], ('Two rows would be called "a"',)),
        (["--photos", str(photos), "--pictures", f"a={tmp_path / 'no'}"], ("holds no picture", "PERSON_p01_s1.png")),
        (["--photos", str(photos), "--pictures", "a=x", "--methods", "full"], ("--checkpoint NAME=FOLDER",)),
        (["--photos", str(tmp_path / "no"), "--pictures", f"a={tmp_path / 'mine'}"], ("can't be read",)),
        (["--photos", str(photos), "--base", "x", "--pictures", f"fidelity={tmp_path / 'mine'}"], ('"fidelity"',)),
    ):
        assert main(["evaluate", "--out", str(tmp_path / "out"), *arguments]) == 2, arguments
        assert_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "out").exists()
