"""What a queue does before it meets a server: the workflow's inputs, the jobs, the journal; and reading a history."""

import json

import pytest
from PIL import Image
from places import ROOT

from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.queue.jobs import Inputs, Photo, parse_seeds, plan_jobs, read_people, read_prompts
from hyperlora_core.queue.journal import Journal
from hyperlora_core.queue.results import read_outcome, refusal
from hyperlora_core.queue.workflow import PHOTO, PROMPT, SEED, Input, find_inputs, read_workflow

API = ROOT / "workflows" / "api"


def assert_sentence(text: str, words: tuple[str, ...]) -> None:
    """As in bad_inputs, without torch."""
    assert all(word in text for word in words), text
    assert "Traceback" not in text and "\n" not in text, text


def node(kind: str, title: str = "", **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}


def core() -> dict:
    """Without a node of ours: the positive prompt is found by way of a ControlNet."""
    return {
        "1": node("LoadImage", "Pose", image="pose.png"),
        "2": node("CLIPTextEncode", "Positive", text="a portrait"),
        "3": node("CLIPTextEncode", "Negative", text="blurry"),
        "4": node("ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], image=["1", 0]),
        "5": node("KSampler", positive=["4", 0], negative=["4", 1], seed=1, steps=20),
        "6": node("SaveImage", images=["5", 0], filename_prefix="x"),
    }


def error_of(function, *arguments) -> str:
    with pytest.raises(HyperLoRAError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("file", sorted(API.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_workflows_have_evident_inputs(file):
    """Those with one photo, one prompt and one sampler; others name their candidates."""
    workflow = read_workflow(file)
    for role in (PHOTO, PROMPT, SEED):
        try:
            (place,) = find_inputs(workflow, role)
        except HyperLoRAError as error:
            assert_sentence(str(error), (role.option,))
            continue
        assert isinstance(workflow[place.node]["inputs"][place.name], role.kind)


def test_evident_inputs():
    demo = read_workflow(API / "demo.json")
    assert find_inputs(demo, PHOTO) == [Input("4", "image")]
    assert find_inputs(demo, PROMPT) == [Input("8", "prompt")]
    assert find_inputs(demo, SEED) == [Input("12", "seed")]
    assert [find_inputs(core(), role) for role in (PHOTO, PROMPT, SEED)] == [
        [Input("1", "image")],
        [Input("2", "text")],
        [Input("5", "seed")],
    ]


@pytest.mark.parametrize("name", ["21_compare_with_instantid", "24_compare_all"])
def test_one_seed_for_all_samplers(name):
    workflow = read_workflow(API / f"{name}.json")
    (seed,) = find_inputs(workflow, SEED)
    assert workflow[seed.node]["class_type"] == "PrimitiveInt" and seed.name == "value"
    samplers = [spec for spec in workflow.values() if spec["class_type"] == "KSampler"]
    assert len(samplers) > 1 and all(spec["inputs"]["seed"] == [seed.node, 0] for spec in samplers)
    workflow["99"] = node("KSampler", "Another", seed=3)
    assert_sentence(
        error_of(find_inputs, workflow, SEED), ("several places for the seed", f"{seed.node}.value", "99.seed")
    )


def test_the_person_is_told_from_the_pose():
    demo = read_workflow(API / "demo.json")
    demo["20"] = node("LoadImage", "Pose", image="pose.png")
    assert find_inputs(demo, PHOTO) == [Input("4", "image")]
    demo["5"]["inputs"]["photos_2"] = ["20", 0]
    said = error_of(find_inputs, demo, PHOTO)
    assert_sentence(
        said, ("several places for the photo", "--photo-input", '4.image ("Load Image")', '20.image ("Pose")')
    )
    assert find_inputs(demo, PHOTO, ["pose", "4.image"]) == [Input("20", "image"), Input("4", "image")]


def test_prompt_through_a_guider():
    workflow = {
        "1": node("CLIPTextEncode", text="a portrait"),
        "2": node("FluxGuidance", conditioning=["1", 0], guidance=3.5),
        "3": node("BasicGuider", conditioning=["2", 0], model=["9", 0]),
        "4": node("RandomNoise", noise_seed=7),
        "5": node("SamplerCustomAdvanced", guider=["3", 0], noise=["4", 0]),
    }
    assert find_inputs(workflow, PROMPT) == [Input("1", "text")]
    assert find_inputs(workflow, SEED) == [Input("4", "noise_seed")]


def test_a_detailer_does_not_hide_the_sampler():
    workflow = core()
    workflow["7"] = node("FaceDetailer", seed=5)
    assert find_inputs(workflow, SEED) == [Input("5", "seed")]
    workflow["8"] = node("KSampler", "Second pass", seed=6)
    said = error_of(find_inputs, workflow, SEED)
    assert_sentence(said, ("several places for the seed", "5.seed", "8.seed", "Second pass"))
    assert find_inputs(workflow, SEED, ["5.seed", "Second pass.seed"]) == [Input("5", "seed"), Input("8", "seed")]


@pytest.mark.parametrize("text", ["8.prompt", "8", "Trigger Prompt.prompt", "trigger prompt", "HyperLoRATriggerPrompt"])
def test_names(text):
    assert find_inputs(read_workflow(API / "demo.json"), PROMPT, [text]) == [Input("8", "prompt")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Nobody.text", ("no such node", "Positive prompt (9)")),
        ("8.text", ("has no such input", "It has: prompt")),
        ("Positive prompt", ("is connected to Trigger Prompt (8)",)),
        ("CLIPTextEncode", ("several nodes are called so", "Positive prompt (9), Negative prompt (10)")),
        ("12.steps", ("holds 12", "a prompt is a text")),
    ],
)
def test_wrong_names(text, words):
    said = error_of(find_inputs, read_workflow(API / "demo.json"), PROMPT, [text])
    assert_sentence(said, (f'--prompt-input "{text}"', *words))


def test_nothing_evident():
    workflow = {"1": node("Custom", caption="x", seed="later"), "2": node("SaveImage", images=["1", 0])}
    assert_sentence(error_of(find_inputs, workflow, PROMPT), ("no evident place for the prompt", "none of its inputs"))
    workflow["3"] = node("Text", text="x")
    assert_sentence(error_of(find_inputs, workflow, PROMPT), ("--prompt-input", '3.text ("Text")'))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<html>", ("isn't JSON",)),
        ('{"nodes": [], "links": []}', ("the graph editor", "Export (API)")),
        ("[1, 2]", ("isn't a workflow in API format",)),
        ("{}", ("isn't a workflow in API format",)),
        ('{"1": {"inputs": {}}}', ("isn't a workflow in API format",)),
        (None, ("can't be read", "No such file")),
    ],
)
def test_other_files(tmp_path, content, words):
    path = tmp_path / "w.json"
    if content is not None:
        path.write_text(content)
    assert_sentence(error_of(read_workflow, path), ("w.json", *words))


def test_the_body_of_a_request_is_a_workflow_too(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({"prompt": core(), "client_id": "x"}))
    assert read_workflow(tmp_path / "w.json") == core()


def test_seeds():
    assert parse_seeds("1-4") == [1, 2, 3, 4]
    assert parse_seeds("7, 1-2,2") == [7, 1, 2]
    for text in ("", "a", "4-1", "-1", "1-", str(2**64), "0-9999999"):
        assert_sentence(error_of(parse_seeds, text), (f'"{text}"',))


def test_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeff# ours\na portrait\n\n  in a forest \n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ["a portrait", "in a forest"]
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    assert_sentence(error_of(read_prompts, tmp_path / "p.txt"), ("p.txt", "UTF-8"))
    (tmp_path / "p.txt").write_text("# nothing\n")
    assert_sentence(error_of(read_prompts, tmp_path / "p.txt"), ("p.txt", "is empty"))


def test_people(tmp_path):
    for name in ("anna/1.png", "anna/2.png", "ben.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    people, notes = read_people(tmp_path, 1)
    assert [(name, len(photos)) for name, photos in people] == [("anna", 1), ("ben", 1)]
    assert people[0][1][0].path.endswith("1.png")
    assert_sentence(notes[0], ("anna", "1 of 2 photos"))
    assert_sentence(error_of(read_people, tmp_path, 2), ("ben", "1 photos", "takes 2", "--photo-input"))


PEOPLE = [("anna", (Photo("a.png", "a" * 64),)), ("ben", (Photo("b.png", "b" * 64),))]
INPUTS = Inputs([Input("1", "image")], [Input("2", "text")], [Input("5", "seed")])


def ids(workflow=None, people=PEOPLE, prompts=("x", "y"), seeds=(1, 2)) -> list[str]:
    return [job.id for job in plan_jobs(workflow or core(), INPUTS, people, prompts, seeds)]


def test_jobs_are_told_apart_by_their_content():
    jobs = plan_jobs(core(), INPUTS, PEOPLE, ["x", "y", "x"], [1, 2])
    assert [job.name for job in jobs][:4] == ["anna_p01_s1", "anna_p01_s2", "anna_p02_s1", "anna_p02_s2"]
    assert len(jobs) == 8  # the prompt that stands there twice is done once
    same = dict(reversed(core().items()))
    same["5"]["_meta"]["title"] = "Renamed"
    same["5"]["inputs"] |= {"seed": 99}  # varies anyway
    assert ids(same) == ids()
    other = core()
    other["5"]["inputs"]["steps"] = 21
    moved = [("anna", (Photo("elsewhere/a.png", "a" * 64),)), PEOPLE[1]]
    assert ids(people=moved) == ids()
    renamed = [("carl", PEOPLE[0][1]), ("dora", PEOPLE[1][1])]
    retaken = [(name, (Photo("a.png", "c" * 64),)) for name, _ in PEOPLE]
    for different in (ids(other), ids(people=renamed), ids(people=retaken), ids(seeds=(3, 4)), ids(prompts=("z",))):
        assert not set(different) & set(ids())
    assert len({job.prompt_id for job in jobs}) == 8
    before = jobs[0].prompt_id
    jobs[0].attempt += 1
    assert jobs[0].prompt_id != before


def test_build():
    workflow = core()
    job = plan_jobs(workflow, INPUTS, PEOPLE, ["x"], [3])[1]
    built = job.build(workflow, INPUTS, {"b" * 64: "folder/b.png"})
    assert built["1"]["inputs"]["image"] == "folder/b.png"
    assert built["2"]["inputs"]["text"] == "x"
    assert built["5"]["inputs"]["seed"] == 3
    assert workflow == core()
    (plain,) = plan_jobs(workflow, Inputs([], [], [Input("5", "seed")]), seeds=[8])
    assert plain.name == "s8"
    assert plain.build(workflow, Inputs([], [], [Input("5", "seed")]), {})["5"]["inputs"]["seed"] == 8


def finish(journal: Journal, job, content: bytes = b"picture") -> None:
    (journal.out / f"{job.name}.png").write_bytes(content)
    journal.done(job, {f"{job.name}.png": len(content)}, 0.5, 1.0)


def test_journal(tmp_path):
    def jobs():
        return plan_jobs(core(), INPUTS, PEOPLE, ["x"], [1, 2])

    with Journal(tmp_path) as journal:
        todo = journal.begin(jobs())
        assert len(todo) == 4
        finish(journal, todo[0])
        journal.sent(todo[1], "http://a")
        journal.failed(todo[2], "no face")
        client = journal.client_id
        assert_sentence(error_of(Journal, tmp_path), ("Another queue", str(tmp_path)))
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"job": "half')
    (tmp_path / ".anna.png.x.part").write_text("half a picture")
    with Journal(tmp_path) as journal:
        assert journal.client_id == client
        todo = journal.begin(jobs())
        assert [job.name for job in todo] == ["anna_p01_s2", "ben_p01_s1", "ben_p01_s2"]
        assert [journal.records[job.id].server for job in todo] == ["http://a", "", ""]
        finish(journal, todo[0])
        assert not (tmp_path / ".anna.png.x.part").exists()
    (tmp_path / "anna_p01_s1.png").unlink()
    with Journal(tmp_path) as journal:
        assert [job.name for job in journal.begin(jobs())] == ["anna_p01_s1", "ben_p01_s1", "ben_p01_s2"]
    rows = (tmp_path / "index.csv").read_text().splitlines()
    assert rows[0] == "identity,prompt number,prompt,seed,file,similarity,seconds,status,message"
    assert rows[2] == "anna,1,x,2,anna_p01_s2.png,0.5,1.0,done,"
    assert rows[3] == "ben,1,x,1,,,,waiting,"


def test_what_somebody_edited_is_theirs_and_what_is_broken_is_made_again(tmp_path):
    made = plan_jobs(core(), INPUTS, PEOPLE[:1], ["x"], [1, 2])
    with Journal(tmp_path) as journal:
        for job in journal.begin(made):
            finish(journal, job)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "anna_p01_s1.png")
    (tmp_path / "anna_p01_s2.png").write_bytes(b"half")
    with Journal(tmp_path) as journal:
        assert [job.name for job in journal.begin(made)] == ["anna_p01_s2"]


def test_an_index_that_a_spreadsheet_holds_stops_nothing(tmp_path, monkeypatch):
    def held(path):
        raise HyperLoRAError(f"Can't write {path}: Permission denied.")

    made = plan_jobs(core(), INPUTS, PEOPLE[:1], ["x"], [1])
    monkeypatch.setattr("hyperlora_core.queue.journal.INDEX_EVERY", -1)
    monkeypatch.setattr("hyperlora_core.queue.journal.written_aside", held)
    with Journal(tmp_path) as journal:
        for job in journal.begin(made):
            finish(journal, job)
        assert "index.csv: Permission denied" in journal.write_index()
    monkeypatch.undo()
    with Journal(tmp_path) as journal:
        assert journal.begin(made) == []
    assert "anna_p01_s1.png" in (tmp_path / "index.csv").read_text()


def test_jobs_for_another_folder_are_other_jobs_for_servers(tmp_path):
    ids = set()
    for name in ("a", "b", "a"):
        with Journal(tmp_path / name) as journal:
            ids |= {job.prompt_id for job in journal.begin(plan_jobs(core(), INPUTS, PEOPLE[:1], ["x"], [1]))}
    assert len(ids) == 2


def test_the_journal_is_read_when_nobody_else_writes(tmp_path, monkeypatch):
    """Another process ends between our opening the file and our having it for ourselves."""
    with Journal(tmp_path) as journal:
        (job,) = journal.begin(plan_jobs(core(), INPUTS, PEOPLE[:1], ["x"], [1]))
    lines = (tmp_path / "journal.jsonl").read_bytes()

    def lock(file) -> bool:
        event = {"job": job.id, "person": "anna", "prompt_number": 1, "prompt": "x", "seed": 1, "name": job.name}
        (tmp_path / "journal.jsonl").write_bytes(lines + json.dumps(event).encode() + b"\n")
        return True

    monkeypatch.setattr("hyperlora_core.queue.journal._lock", lock)
    with Journal(tmp_path) as journal:
        assert list(journal.records) == [job.id]


def test_a_changed_workflow_overwrites_nothing(tmp_path):
    with Journal(tmp_path) as journal:
        for job in journal.begin(plan_jobs(core(), INPUTS, PEOPLE[:1], ["x"], [1])):
            finish(journal, job)
    other = core()
    other["5"]["inputs"]["steps"] = 21
    with Journal(tmp_path) as journal:
        (job,) = journal.begin(plan_jobs(other, INPUTS, PEOPLE[:1], ["x"], [1]))
        assert job.name == "anna_p01_s1_v2"
        finish(journal, job)
        journal.write_index()
    files = [row.split(",")[4] for row in (tmp_path / "index.csv").read_text().splitlines()[1:]]
    assert files == ["anna_p01_s1_v2.png", "anna_p01_s1.png"]


def history(*messages, outputs=None, status="error") -> dict:
    return {"outputs": outputs or {}, "status": {"status_str": status, "messages": list(messages)}}


SAVED = {"6": {"images": [{"filename": "x.png", "subfolder": "s", "type": "output"}], "animated": [False]}}


def test_outcomes():
    failed = {"node_id": "5", "exception_type": "torch.OutOfMemoryError", "exception_message": "out of memory\n\nTIPS"}
    outcome = read_outcome(core(), history(["execution_error", failed]))
    assert (outcome.error, outcome.final) == ("KSampler (5): out of memory TIPS", False)
    failed["exception_type"] = "pack.hyperlora_core.errors.NoFaceError"
    assert read_outcome(core(), history(["execution_error", failed])).final
    outcome = read_outcome(core(), history(["execution_interrupted", {"node_id": "5"}]))
    assert "KSampler (5)" in outcome.error and not outcome.final
    # a cached run leaves the status of the run before: what the messages say counts
    assert read_outcome(core(), history(["execution_error", failed], outputs=SAVED, status="success")).error
    assert "Save Image" in read_outcome(core(), history(status="success")).error
    times = [[f"execution_{word}", {"timestamp": 1000 * n}] for n, word in ((1, "start"), (4, "success"))]
    outcome = read_outcome(core(), history(*times, outputs=SAVED, status="success"))
    assert outcome.error is None and outcome.seconds == 3 and outcome.similarity is None
    assert outcome.files[0]._asdict() == {"filename": "x.png", "subfolder": "s", "type": "output"}
    preview = {"7": {"images": [{"filename": "p.png", "subfolder": "", "type": "temp"}]}}
    assert [file.filename for file in read_outcome(core(), history(outputs=preview | SAVED, status="")).files] == [
        "x.png"
    ]
    assert [file.filename for file in read_outcome(core(), history(outputs=preview, status="")).files] == ["p.png"]


def test_similarity():
    workflow = core() | {"7": node("HyperLoRASimilarity", images=["5", 0])}
    report = {"7": {"text": ["Picture 1: similarity 0.63\nMean 0.63"]}}
    assert read_outcome(workflow, history(outputs=SAVED | report, status="success")).similarity == 0.63
    workflow["8"] = node("PreviewAny", source=["7", 0])
    report["8"] = {"text": ["0.6312"]}
    assert read_outcome(workflow, history(outputs=SAVED | report, status="success")).similarity == 0.6312
    report["8"] = {"text": ["Picture 1: similarity 0.63\nMean -0.10\nThe mean is below"]}
    report["7"] = report["8"]
    assert read_outcome(workflow, history(outputs=SAVED | report, status="success")).similarity == -0.1


def test_a_closed_gate():
    """Its words are the reason, and a preview of a step before it isn't the picture."""
    workflow = core() | {"7": node("HyperLoRASimilarity", images=["5", 0], gate="stop"), "8": node("PreviewImage")}
    preview = {"8": {"images": [{"filename": "crop.png", "subfolder": "", "type": "temp"}]}}
    closed = {
        "7": {"text": ["Picture 1: similarity 0.21\nMean 0.21\nThe mean similarity 0.21 is below 0.40: stopped."]}
    }
    outcome = read_outcome(workflow, history(outputs=preview | closed, status="success"))
    assert outcome.final and not outcome.files and outcome.similarity == 0.21
    assert_sentence(outcome.error, ("HyperLoRASimilarity (7)", "similarity 0.21 is below 0.40", "lower the threshold"))
    opened = {"7": {"text": ["Picture 1: similarity 0.61\nMean 0.61"]}}
    assert "Save Image" in read_outcome(workflow, history(outputs=preview | opened, status="success")).error
    assert read_outcome(workflow, history(outputs=SAVED | preview | opened, status="success")).error is None


def test_lists_that_are_no_links():
    workflow = core()
    workflow["5"]["inputs"] |= {"tags": [], "prompt": [[0, 1], [2, 3]]}
    assert find_inputs(workflow, PROMPT) == [Input("2", "text")]
    assert read_outcome(workflow, history(outputs=SAVED, status="success")).similarity is None
    assert_sentence(error_of(find_inputs, workflow, PROMPT, ["5.tags"]), ("holds []", "a prompt is a text"))


def test_refusal():
    answer = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {"4": {"class_type": "LoadImage", "errors": [{"message": "Bad", "details": "image: x.png"}]}},
    }
    assert refusal(answer) == "Prompt outputs failed validation; LoadImage (4): Bad: image: x.png"
