"""benchmarks.ablations: every row's configs fit together; a run trains each row once and measures all."""

import dataclasses

import pytest
from test_train_stage import SHORT, SIZE, sources  # noqa: F401

from benchmarks import ablations
from hyperlora_core.train import reader, stage
from hyperlora_core.train.config import config_path, load_config

STEPS = [(row, step) for row, steps in ablations.ROWS.items() for step in steps]


def config_of(row, step):
    module = ablations.MODULES[ablations.STAGES[step.stage][0]]
    return ablations.changed(load_config(config_path(step.stage, "cpu", "cpu"), module.Config), row, step)


@pytest.mark.parametrize(("row", "step"), STEPS, ids=[f"{row}-{step.stage}" for row, step in STEPS])
def test_every_config_fits(row, step):
    config = config_of(row, step)
    (reader if step.stage == "id-reader" else stage).check(config)
    assert config.loop.steps == step.steps and config.loop.warmup < step.steps / 2
    start = (config.reader if step.stage == "id-reader" else config.stage).start
    assert len(start) == len(step.after)
    earlier = [ablations.folder_of(row, other) for other in ablations.ROWS[row] if other.stage != step.stage]
    assert all(name in ablations.READ or name in earlier for name in start)


def test_compared_rows_take_as_many_steps():
    total = {row: sum(step.steps for step in steps) for row, steps in ablations.ROWS.items()}
    for group in ("reader of", "K ", "reader, then", ("three stages", "one stage")):
        assert len({steps for row, steps in total.items() if row.startswith(group)}) == 1, group


def test_rows_are_trained_once_and_measured(sources, tmp_path, monkeypatch):  # noqa: F811
    small = dict(SHORT, steps=2, warmup=1)

    def tiny(path, kind):
        config = load_config(path, kind)
        loop = dataclasses.replace(config.loop, **{key: small[key] for key in small if hasattr(config.loop, key)})
        return dataclasses.replace(config, loop=loop, hyperlora=SIZE)

    rows = {
        "short": (ablations.ONCE._replace(steps=2, changes={**ablations.ONCE.changes, "stage.spread": 0.0}, after=()),)
    }
    asked, kept = [], []
    monkeypatch.setattr(ablations, "load_config", tiny)
    monkeypatch.setattr(ablations, "ROWS", rows)
    monkeypatch.setattr(ablations, "Sources", lambda *_: sources)
    monkeypatch.setattr(ablations, "hyperlora", lambda argv: asked.append(argv) or 0)
    folder = sources.root / "ablations" / "short" / "id-embedding"
    for _ in range(2):
        assert ablations.main(["--out", str(tmp_path), "--people", "3", "--device", "cpu"]) == 0
        kept.append((folder / "losses.csv").read_text(encoding="utf-8"))  # with the seconds that each step took
    assert kept[0] == kept[1], "not trained again"
    assert asked[0] == asked[1] and asked[0][asked[0].index("--checkpoint") + 1] == f"short={folder / 'hyper_lora'}"
    assert (folder / "hyper_lora").is_dir()
