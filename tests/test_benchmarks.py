"""`python -m benchmarks` at the demo's size: every row is there, positive, and its floor is what the ceilings give."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("onnx")

import benchmarks.__main__ as command
from benchmarks.speed import ceilings, generate, models, timing
from benchmarks.speed.apply import StandIn
from benchmarks.speed.bench import Bench, Budget
from benchmarks.speed.ceilings import Ceilings, Work
from benchmarks.speed.counting import flops_of
from benchmarks.speed.loras import id_and_base
from hyperlora_core import HyperLoRAError, VisionEncoder, load_hyperlora, merge_branches
from hyperlora_core.locate import DEMO_HYPER, demo_folder

PEOPLE = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(exit status, the JSON, the folder) of a whole run with one repetition."""
    out = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        # smaller ceilings: here they need to be consistent, not exact
        patch.setitem(ceilings.BUFFER, "cpu", 1 << 24)
        patch.setattr(ceilings, "SIDES", (256,))
        patch.setattr(ceilings, "BEST_OF", 2)
        patch.setattr(timing, "SHORTEST", 0.0)
        status = command.main(
            ["--device", "cpu", "--repetitions", "1", "--people", str(PEOPLE), "--latent", "8", "--out", str(out)]
        )
    return status, json.loads((out / "report.json").read_text(encoding="utf-8")), out


@pytest.fixture(scope="module")
def rows(results) -> dict[str, dict]:
    rows = {f"{row['group']}: {row['name']}": row for row in results[1]["rows"]}
    assert len(rows) == len(results[1]["rows"]), "two rows of one name"
    return rows


def test_every_group_is_measured_and_written(results, rows):
    status, content, out = results
    assert status == 0
    groups = {name.partition(":")[0] for name in rows}
    assert groups == {
        "load", "generate one LoRA", "many people", "faces", "apply", "sampling step", "change the person", "import",
    }  # fmt: skip
    assert content["machine"]["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert content["machine"]["date"] and content["shape"] == "demo"
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".*"))


def test_figures_are_positive(results, rows):
    assert all(rate > 0 for rate in results[1]["ceilings"]["multiplying"].values())
    for name, row in rows.items():
        assert row["value"] > 0, name
        assert all(sample > 0 for sample in row["samples"]), name
        assert row["floor"] is None or row["floor"] > 0, name


def test_floors_follow_from_the_ceilings(results, rows):
    """Recomputed from the rates and works in the JSON."""
    rates = results[1]["ceilings"]
    assert rates["memory"] == max(rates["copying"], rates["reading"])
    with_works = [row for row in rows.values() if row["works"]]
    assert len(with_works) >= 12
    for row in with_works:
        floor = sum(
            max(work["moved"] / rates["memory"], work["flops"] / rates["multiplying"][work["precision"]])
            for work in row["works"]
        )
        assert row["floor"] == pytest.approx(floor), row["name"]
    for row in rows.values():
        if row["floor"]:
            assert row["ratio"] == pytest.approx(row["value"] / row["floor"])


def test_generating_has_the_floors_of_its_parts(rows):
    parts = [rows[f"generate one LoRA: {part}, fp32"] for part in ("CLIP tower", "resampler", "mixing the basis")]
    whole = rows["generate one LoRA: picture to LoRA, fp32"]
    assert whole["floor"] == pytest.approx(sum(part["floor"] for part in parts))
    # nothing is faster than the machine: a floor counted twice, or in other units, would be
    assert whole["ratio"] > 0.5
    assert rows["sampling step: plain, 64 px, fp32"]["ratio"] > 0.5


def test_joined_is_one_patch_per_layer(rows):
    hyper = load_hyperlora(demo_folder() / DEMO_HYPER)
    layers = 4 * len(hyper.module_names)
    assert rows["apply: patches, joined"]["value"] == layers
    assert rows["apply: patches, as two LoRAs"]["value"] == 2 * layers
    assert rows["apply: patches, joined against two"]["value"] == 0.5


def test_one_after_the_other_counts_all_people(rows):
    at_once = rows[f"many people: {PEOPLE} LoRAs at once"]
    in_turn = rows[f"many people: {PEOPLE} LoRAs, one after the other"]
    assert len(at_once["works"]) == 1 and len(in_turn["works"]) == PEOPLE
    # the basis is read once, or once for each; the LoRAs are written either way
    assert sum(work["moved"] for work in in_turn["works"]) > 1.5 * at_once["works"][0]["moved"]
    assert sum(work["flops"] for work in in_turn["works"]) == at_once["works"][0]["flops"]


def test_faces_are_compared_with_five_networks(rows):
    assert "faces: two passes, 5 networks (insightface's FaceAnalysis)" in rows
    assert "faces: three networks, no spinning" in rows


def test_the_stand_in_patches_what_the_loras_say():
    """Joined and as two it comes to the same weights, and taking them out leaves the originals."""
    hyper = load_hyperlora(demo_folder() / DEMO_HYPER)
    id_lora, base_lora = id_and_base(hyper, 0)
    model = StandIn(id_lora, torch.device("cpu"))
    before = dict(model.weights)
    key = next(iter(before))
    down, up = id_lora[f"{key}.lora_down.weight"], id_lora[f"{key}.lora_up.weight"]

    model.add_patches(id_lora, 0.8)
    model.load()
    expected = before[key].float() + 0.8 * 0.5 * up @ down
    assert torch.allclose(model.weights[key].float(), expected, atol=1e-3)
    assert not torch.allclose(before[key].float(), expected, atol=1e-3)
    model.unload()
    model.add_patches(merge_branches(id_lora, base_lora, 0.8, 0.4), 1.0)
    model.load()
    joined = dict(model.weights)
    model.unload()
    assert all(model.weights[name] is weight for name, weight in before.items())
    model.add_patches(id_lora, 0.8)
    model.add_patches(base_lora, 0.4)
    model.load()
    for name, weight in joined.items():
        assert torch.allclose(model.weights[name].float(), weight.float(), atol=1e-3)


def test_multiplications_are_counted_inside_fused_attention():
    attention = torch.nn.MultiheadAttention(64, 2, batch_first=True).eval()
    x = torch.randn(1, 16, 64)
    projections, products = 4 * 2 * 16 * 64 * 64, 2 * 2 * 16 * 16 * 64
    with torch.no_grad():
        assert flops_of(lambda: attention(x, x, x, need_weights=False)) == projections + products
        q = torch.randn(1, 2, 16, 32)
        assert flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == products


def test_mixing_reads_the_id_branch_once():
    hyper = load_hyperlora(demo_folder() / DEMO_HYPER)
    values = sum(p.numel() for name, p in hyper.basis.named_parameters() if "id_" in name)
    lora = hyper.lora(torch.ones(8 * len(hyper.module_names), hyper.basis.size))
    written = sum(tensor.nbytes for name, tensor in lora.items() if "alpha" not in name)
    work = generate.mixing_work(hyper, "fp32")
    assert work == Work(2 * values + written, 2 * values, "fp32")  # the file is in fp16
    assert generate.mixing_work(hyper, "fp32", 16).flops == 16 * work.flops


def bench_with(value: float, budget: Budget, published: bool = True) -> bool | None:
    bench = Bench(
        torch.device("cpu"), ["fp32"], 1, published, *[demo_folder()] * 3, None, [16], 16, None,
        Ceilings(2e9, 1e9, {"fp32": 1e9}),
    )  # fmt: skip
    return bench.add("group", "row", value, works=[Work(moved=2e9, flops=5e8)], budget=budget).kept


def test_budgets():
    assert bench_with(1.1, Budget(1.2)) is True  # the floor is 1 s
    assert bench_with(1.3, Budget(1.2)) is False
    assert bench_with(1.3, Budget(2, of_floor=False)) is True
    assert bench_with(2.1, Budget(2, of_floor=False)) is False
    assert bench_with(9.9, Budget(1.2), published=False) is None


def test_a_missed_budget_is_the_exit_status(monkeypatch):
    for kept, failed, status in ((False, {}, 1), (True, {"apply": "No."}, 1), (True, {}, 0)):
        bench = SimpleNamespace(rows=[SimpleNamespace(kept=kept)], failed=failed)
        monkeypatch.setattr(command, "run", lambda _options, bench=bench: bench)
        assert command.main([]) == status


def test_a_group_that_fails_leaves_the_others_figures(monkeypatch, tmp_path, capsys):
    def fail(_bench):
        raise HyperLoRAError("No room.")

    monkeypatch.setattr(command, "measure_ceilings", lambda _device: Ceilings(1e9, 1e9))
    monkeypatch.setattr(command.apply, "measure", fail)
    monkeypatch.setattr(command.load, "measure", lambda bench: bench.add("load", "checkpoint", 0.5))
    assert command.main(["--only", "apply", "load", "--device", "cpu", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "apply failed: No room." in said.err and "checkpoint" in said.out and (tmp_path / "report.json").exists()


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (HyperLoRAError("No."), 2)])
def test_stopped_or_refused_nothing_is_written(monkeypatch, tmp_path, raised, status):
    def stop(_bench):
        raise raised

    monkeypatch.setattr(command, "measure_ceilings", lambda _device: Ceilings(1e9, 1e9))
    monkeypatch.setattr(command.apply, "measure", stop)
    assert command.main(["--only", "apply", "--device", "cpu", "--out", str(tmp_path / "out")]) == status
    assert not (tmp_path / "out").exists()


def test_published_models_are_written_once(monkeypatch, tmp_path):
    """In small: the CLIP tower is one that VisionEncoder reads, and a second run finds both."""
    monkeypatch.setattr(models, "CLIP_WIDTH", 64)
    monkeypatch.setattr(models, "CLIP_LAYERS", 2)
    monkeypatch.setattr(models, "NOISE", 1 << 12)
    written = []

    def write(folder, progress):
        written.append(folder)
        folder.mkdir(parents=True)
        for file in (demo_folder() / DEMO_HYPER).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(models, "write_random_checkpoint", write)
    checkpoint, clip = models.published_models(tmp_path)
    times = [file.stat().st_mtime_ns for file in (*checkpoint.iterdir(), clip)]
    assert models.published_models(tmp_path) == (checkpoint, clip)
    assert written == [checkpoint]
    assert times == [file.stat().st_mtime_ns for file in (*checkpoint.iterdir(), clip)]
    tokens = VisionEncoder.load(clip).encode(torch.zeros(1, 3, 224, 224))
    assert tokens.shape == (1, 257, 64) and torch.isfinite(tokens).all()
