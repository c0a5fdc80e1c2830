"""The shipped training configs, their tables in docs/training.md, and what is estimated from them."""

import dataclasses
import re
from functools import cache
from typing import Any

import pytest
import torch
from places import ROOT
from torch.nn import functional

from hyperlora_core import HyperLoRAError
from hyperlora_core.cli import main
from hyperlora_core.cli.train import HYPERLORA, STAGES
from hyperlora_core.demo import sdxl
from hyperlora_core.demo.hyperlora import HyperLoRASize, unet_modules
from hyperlora_core.train import (
    config,
    demo_attributes,
    demo_clip,
    demo_face,
    demo_unet,
    demo_vae,
    estimate,
    finetune,
    pulid,
    reader,
    stage,
)
from hyperlora_core.train.data import DataConfig
from hyperlora_core.train.network import GROUPS, Network
from hyperlora_core.train.people import PeopleConfig
from hyperlora_core.train.words import WordsConfig

for package in ("accelerate", "diffusers", "transformers", "open_clip"):
    pytest.importorskip(package)

NETWORKS = [f"demo-{name}" for name in ("detector", "landmarks", "recognition", "measuring", "attributes")]
KINDS = {
    **dict.fromkeys(NETWORKS[:-1], demo_face.Config),
    "demo-attributes": demo_attributes.Config,
    "demo-data": DataConfig,
    "demo-vae": demo_vae.Config,
    "demo-clip": demo_clip.Config,
    "demo-unet": demo_unet.Config,
    "demo-style": demo_unet.Config,
    **dict.fromkeys((*HYPERLORA, "id-people", "id-words"), stage.Config),
    **dict.fromkeys(("id-reader", "id-words-reader"), reader.Config),
    "finetune": finetune.Config,
}
SHIPPED = sorted(path.relative_to(config.SHIPPED) for path in config.SHIPPED.glob("*/*.toml"))
DOCS = ROOT / "docs" / "training.md"

DEMO_KEYS = ["loop.seed", "loop.steps", "loop.batch", "loop.rate", "loop.warmup", "loop.cooldown", "loop.weight_decay",
             "loop.ema_decay", "loop.precision"]  # fmt: skip
NETWORK_KEYS = ["loop.seed", "loop.steps", "loop.batch", "loop.rate", "loop.warmup", "loop.restarts"]
UNET_KEYS = ["unet.start", "unet.style", "unet.caption_dropout", "unet.told", "unet.triggered", "unet.face_weight",
             "unet.weights", "unet.steps_drawn"]  # fmt: skip
STAGE_KEYS = ["stage.start", "stage.trains", "stage.conditions", "stage.scenarios", "loop.steps", "loop.batch",
              "loop.accumulation", "loop.rate", "loop.warmup", "loop.cooldown", "loop.ema_decay", "loop.precision",
              "stage.base_off", "stage.other_photo", "stage.caption_dropout", "stage.bases_pace", "stage.spread",
              "stage.face_weight", "stage.weights",
              "stage.steps_drawn", "stage.checkpointing", "stage.cache"]  # fmt: skip
PEOPLE_KEYS = ["stage.start", "stage.trains", "stage.conditions", "stage.scenarios", "loop.steps", "loop.batch", "loop.rate",
               "loop.ema_decay", "stage.base_off", "stage.bases_pace", "people.people", "people.code", "people.start",
               "people.pace"]  # fmt: skip
WORDS_KEYS = [
    "stage.start",
    "stage.trains",
    "loop.steps",
    "loop.ema_decay",
    "words.words",
    "words.untold",
    "words.pace",
]
READER_KEYS = ["reader.start", "reader.conditions", "reader.trains", "loop.steps", "loop.batch", "loop.rate", "loop.ema_decay",
               "reader.directions", "reader.tokens", "reader.ridge", "reader.gain"]  # fmt: skip
SIZE_KEYS = [f"hyperlora.{field.name}" for field in dataclasses.fields(HyperLoRASize)]
TUNE_KEYS = ["loop.steps", "loop.batch", "loop.rate", "loop.warmup", "loop.cooldown", "loop.weight_decay",
             "loop.precision", "tune.caption_dropout", "tune.face_weight", "tune.weights", "tune.steps_drawn",
             "tune.checkpointing"]  # fmt: skip


@cache
def shipped(profile: str, name: str) -> dict[str, Any]:
    return config.flat(config.load_config(config.SHIPPED / profile / f"{name}.toml", KINDS[name]))


def told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(told, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value) or "none"


def cell(profiles: list[str], name: str, key: str) -> str:
    """The profiles' values, one where all are alike."""
    values = [told(shipped(profile, name)[key]) for profile in profiles]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def rows(profiles: list[str], names: list[str], keys: list[str]) -> list[str]:
    """The table's rows as docs/training.md must have them."""
    return [
        f"| `{key.partition('.')[2]}` | {' | '.join(cell(profiles, name, key) for name in names)} |" for key in keys
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_every_shipped_config_loads(path):
    loaded = config.load_config(config.SHIPPED / path, KINDS[path.stem])
    assert path.parent.name in config.PROFILES and config.config_path(path.stem, path.parent.name, "cpu").exists()
    if path.stem in HYPERLORA:
        assert set(loaded.stage.trains) <= set(GROUPS) and sum(loaded.stage.scenarios) == pytest.approx(1)
        assert set(loaded.stage.conditions) <= set(loaded.hyperlora.conditions)
        assert list(loaded.stage.start) == list(HYPERLORA[: HYPERLORA.index(path.stem)])


def test_every_command_that_reads_a_config_has_one():
    assert set(STAGES) - set(KINDS) == {"demo-faces"}
    given = {(path.parent.name, path.stem) for path in SHIPPED}
    assert given == {(p, name) for p in ("gpu", "cpu") for name in KINDS} | {
        ("sdxl", name) for name in (*HYPERLORA, "finetune")
    }


def test_a_config_that_isnt_shipped_is_told():
    with pytest.raises(HyperLoRAError, match="No config sdxl is shipped for id-people, only gpu, cpu"):
        config.config_path("id-people", "sdxl", "cpu")


@pytest.mark.parametrize("profile", config.PROFILES)
def test_stages_train_one_network(profile):
    names = HYPERLORA if profile == "sdxl" else (*HYPERLORA, "id-people", "id-reader", "id-words", "id-words-reader")
    networks = [{k: v for k, v in shipped(profile, name).items() if k.startswith("hyperlora.")} for name in names]
    assert all(network == networks[0] for network in networks)


def test_sdxl_has_the_papers_numbers():
    published = config.flat(HyperLoRASize(base_rank=4))
    for name, steps in zip(HYPERLORA, (20_000, 15_000, 55_000), strict=True):
        values = shipped("sdxl", name)
        assert values["loop.steps"] == steps and values["loop.accumulation"] == 8
        assert {k: values[f"hyperlora.{k}"] for k in published if k != "effect"} == {
            k: v for k, v in published.items() if k != "effect"
        }
        assert values["stage.scenarios"] == ([1.0, 0.0, 0.0] if name == "base-lora" else [0.9, 0.05, 0.05])
        assert (values["stage.face_weight"], values["stage.weights"], values["stage.other_photo"]) == (
            1.0,
            "plain",
            0.0,
        )
        assert not values["stage.steps_drawn"] and values["stage.bases_pace"] == 1 and not values["stage.spread"]


@pytest.mark.parametrize(
    "row",
    [
        *rows(["gpu", "cpu"], ["demo-vae", "demo-clip", "demo-unet", "demo-style"], DEMO_KEYS),
        *rows(["gpu", "cpu"], NETWORKS, NETWORK_KEYS),
        *rows(["gpu", "cpu"], ["demo-unet", "demo-style"], UNET_KEYS),
        *rows(["gpu", "cpu", "sdxl"], list(HYPERLORA), STAGE_KEYS),
        *rows(["gpu", "cpu"], ["id-people"], PEOPLE_KEYS),
        *rows(["gpu", "cpu"], ["id-words"], WORDS_KEYS),
        *rows(["gpu", "cpu"], ["id-reader"], READER_KEYS),
        *rows(["gpu", "cpu", "sdxl"], ["id-embedding"], SIZE_KEYS),
        *rows(["gpu", "cpu", "sdxl"], ["finetune"], TUNE_KEYS),
    ],
)
def test_docs_tell_what_the_configs_say(row):
    assert row in DOCS.read_text(encoding="utf-8").splitlines(), f"docs/training.md lacks the row: {row}"


def test_docs_explain_keys_that_exist():
    levers = DOCS.read_text(encoding="utf-8").partition("\n## Levers\n")[2].partition("\n## ")[0]
    told = {key for row in re.findall(r"^\| (`.+?) \|", levers, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    kinds = (config.LoopConfig, HyperLoRASize, stage.StageConfig, pulid.PuLIDConfig, PeopleConfig, WordsConfig,
             reader.ReaderConfig)  # fmt: skip
    assert told <= {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert told >= {field.name for field in dataclasses.fields(pulid.PuLIDConfig)}


def test_docs_name_every_stage_in_order():
    commands = re.findall(r"^hyperlora train (\S+)", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert list(dict.fromkeys(commands)) == list(STAGES)


def test_meter_counts_what_is_alive():
    weight, x = torch.randn(50, 30, requires_grad=True), torch.randn(20, 30)
    with estimate.Meter() as meter:
        y = functional.linear(x, weight)  # 20 x 50 floats
        assert meter.live == meter.peak == 4000
        z = y.view(-1) * 2
        assert meter.live == 8000  # a view costs nothing
        del y
        assert meter.live == 4000  # a product with a number remembers nothing of y
        z.sum().backward()
        del z
        assert meter.live == weight.nbytes  # its gradient
    assert meter.peak > 8000
    assert meter.flops == {"fp32": 2 * (2 * 20 * 30 * 50)}  # forward, and the weight's gradient


def test_meter_tells_precisions_apart():
    kernel, x, q = torch.randn(8, 4, 3, 3), torch.randn(1, 4, 10, 10), torch.randn(1, 2, 16, 64)
    with estimate.Meter() as meter:
        functional.conv2d(x, kernel, padding=1)
        functional.conv2d(x.bfloat16(), kernel.bfloat16(), padding=1)
        functional.scaled_dot_product_attention(q, q, q)
    convolution = 2 * 8 * 4 * 9 * 100
    assert meter.flops == {"tf32": convolution, "bf16": convolution, "fp32": 2 * (2 * 2 * 16 * 16 * 64)}


SMALL = dataclasses.replace(
    sdxl.DEMO,
    channels=(32, 32, 32),
    res_blocks=1,
    text=(sdxl.TextSize(32, 1, 1, "quick_gelu"), sdxl.TextSize(64, 1, 1, "gelu")),
)
SIZE = HyperLoRASize(bases=4, base_rank=4, width=64, depth=1, heads=1, clip_width=64, id_tokens=2)


def small(name: str, **changes: Any) -> stage.Config:
    """A shipped config of SDXL with the small network; `changes` of loop and stage."""
    given = config.load_config(config.config_path(name, "sdxl", "cpu"), stage.Config)
    loop, own = (
        dataclasses.replace(part, **{k: v for k, v in changes.items() if hasattr(part, k)})
        for part in (given.loop, given.stage)
    )
    return stage.Config(loop, SIZE, own)


def test_estimate_counts_the_true_network_and_scales_with_the_batch():
    two, four = (estimate.estimate(small("id-embedding", batch=n), [64], SMALL)[0] for n in (2, 4))
    models = sdxl.random_models(SMALL)
    network = Network(unet_modules(models["unet"].config), SIZE, 0)
    network.choose(two.config.stage.trains)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert two.trained == four.trained == trained
    weights = 4 * trained
    assert {name: size for name, size in two.lasting.items() if name != "frozen models"} == {
        "trained weights": weights, "gradients": weights, "AdamW": 2 * weights, "moving average": weights
    }  # fmt: skip
    others = [*models.values(), network]
    known = sum(p.numel() for module in others for p in module.parameters()) - trained
    assert two.frozen > known  # and the CLIP tower
    assert two.lasting["frozen models"] == 4 * two.frozen
    assert two.memory() == sum(two.lasting.values()) + two.passing and two.memory(2) == two.memory() + weights
    for precision, flops in two.flops.items():
        assert four.flops[precision] == pytest.approx(2 * flops, rel=0.05)
    assert four.seconds(estimate.A100) == pytest.approx(2 * two.seconds(estimate.A100), rel=0.05)
    assert "| 64 |" in estimate.report([two]) and f"{trained:,} parameters" in estimate.report([two])


def test_checkpointing_costs_flops_and_saves_memory():
    # a UNet whose activations are larger than the autoencoder's
    unet = dataclasses.replace(SMALL, channels=(64, 128, 128), res_blocks=6)
    kept, again = (estimate.estimate(small("base-lora", checkpointing=on), [256], unet)[0] for on in (False, True))
    assert again.flops["bf16"] > 1.2 * kept.flops["bf16"]
    assert again.passing < 0.9 * kept.passing
    assert again.lasting == kept.lasting


def test_the_other_scenarios_cost_a_forward_pass():
    plain, paper = (
        estimate.estimate(small("id-clip", scenarios=chances), [64], SMALL)[0].flops
        for chances in ((1.0, 0.0, 0.0), (0.9, 0.05, 0.05))
    )
    assert 1.02 < paper["bf16"] / plain["bf16"] < 1.05  # a tenth of one pass in three or four
    assert paper["fp32"] == plain["fp32"]


def test_pulid_is_not_estimated():
    given = dataclasses.replace(small("id-clip"), pulid=pulid.PuLIDConfig(0.6, 0.1, 1.0, 1, 4, 1))
    with pytest.raises(HyperLoRAError, match="PuLID"):
        estimate.estimate(given, [64], SMALL)


@pytest.mark.parametrize(
    "arguments", [["demo-vae", "--estimate"], ["id-clip", "--estimate", "100"], ["id-clip", "--estimate", "0"]]
)
def test_impossible_estimates_are_refused(arguments, capsys):
    assert main(["train", *arguments]) == 2
    assert "--estimate" in capsys.readouterr().err


def test_what_a_config_lacks_is_named(tmp_path):
    text = config.config_path("id-clip", "sdxl", "cpu").read_text(encoding="utf-8")
    for old, new, message in (
        ("face_weight", "face_wait", "unknown key stage.face_wait"),
        ("cache = ", "# cache = ", "lacks the key stage.cache"),
        ("batch = 4", "batch = 4.5", "loop.batch must be int"),
    ):
        path = tmp_path / "changed.toml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(HyperLoRAError, match=re.escape(message)):
            config.load_config(path, stage.Config)
