"""The demo's untrained models: formats that every loader takes, and one meaning in diffusers and in ComfyUI."""

import json
import subprocess
import sys

import pytest
import torch
from host.find import PACK, find_hosts
from safetensors import safe_open
from safetensors.torch import load_file

from hyperlora_core import VisionEncoder, load_hyperlora
from hyperlora_core.demo import hyperlora, models, sdxl, tokenizer
from hyperlora_core.lora import check_fits

diffusers = pytest.importorskip("diffusers")
open_clip = pytest.importorskip("open_clip")

PROMPT = "fcsks fxhks fhyks, portrait of a woman's face, red scarf"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    models.make_demo(folder)
    return folder


@pytest.mark.parametrize("text", [PROMPT, "it's 42!? (well-known)", "caf\u00e9 \u4f60\u597d"])
def test_tokenizers_give_clips_ids(text):
    first, second = tokenizer.sdxl_tokenizers()
    expected = open_clip.tokenize(text)[0]
    ids = second(text, padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    assert torch.equal(ids, expected)  # open_clip pads with 0, which is "!"
    ids = first(text, padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    length = int(expected.argmax()) + 1
    assert torch.equal(ids[:length], expected[:length]) and (ids[length:] == 49407).all()


def test_sdxl_modules_are_the_published_ones(tmp_path):
    modules = hyperlora.SDXL_MODULES()
    hyperlora.write_modules(tmp_path, modules)
    assert (tmp_path / "hyper_lora_modules.json").stat().st_size == 18_378
    values = sum(
        8 * (inputs + hidden)
        for hidden, context in modules.values()
        for inputs in (hidden, context or hidden, context or hidden, hidden)
    )
    assert len(modules) == 140 and values == 11_612_160


def test_published_sizes():
    sizes = {}
    for spec in hyperlora.specs(hyperlora.SDXL_MODULES(), hyperlora.HyperLoRASize()):
        sizes[spec.part] = sizes.get(spec.part, 0) + 2 * torch.Size(spec.shape).numel()
    assert sizes["hyper_lora_modules"] / 1e9 == pytest.approx(2.97, abs=0.005)
    assert sizes["resampler"] / 1e6 == pytest.approx(149.5, abs=0.05)
    assert sizes["id_projector"] / 1e6 == pytest.approx(16.8, abs=0.05)
    assert "base_resampler" not in sizes


def test_sdxl_base_is_sdxl_base():
    """Parameter counts of the published model's parts."""
    with torch.device("meta"):
        parts = sdxl.random_models(sdxl.SDXL_BASE)
    assert {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()} == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


def test_modules_of_the_demo_unet():
    config = sdxl.unet_config(sdxl.DEMO)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(config)
    found = {
        f"lora_unet_{path.replace('.', '_')}": (layer.to_q.out_features, layer.to_k.in_features)
        for path, layer in unet.named_modules()
        if path.endswith(("attn1", "attn2"))
    }
    described = {
        name: (hidden, context or hidden) for name, (hidden, context) in hyperlora.unet_modules(config).items()
    }
    assert described == found


def test_files_are_half_precision_and_small(demo):
    files = list(demo.rglob("*.safetensors"))
    assert len(files) == 9
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118
    assert sum(file.stat().st_size for file in (demo / "sdxl").rglob("*")) < 45e6


def test_all_that_ships_is_under_60_mb():
    files = [path for path in models.DEMO_FOLDER.rglob("*") if path.is_file()]
    assert (
        sum(path.suffix == ".safetensors" for path in files) >= 9 and sum(path.suffix == ".onnx" for path in files) == 5
    )
    assert sum(path.stat().st_size for path in files) < 60e6


def test_same_seed_same_files(demo, tmp_path):
    models.make_demo(tmp_path)
    for file in demo.rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / file.relative_to(demo)).read_bytes(), file.name


def test_stopping_leaves_no_halves(tmp_path):
    def stop(done, total, name):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.make_demo(tmp_path, progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"sdxl"}
    with pytest.raises(KeyboardInterrupt):
        hyperlora.write_random_checkpoint(
            tmp_path / "stopped", {"lora_unet_x": (8, None)}, hyperlora.DEMO, progress=lambda done, _: stop(1, 1, "")
        )
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["hyper_lora_modules.json"]


def test_clip_tower(demo):
    tower = VisionEncoder.load(demo / "clip_vision" / "model.safetensors")
    tokens = tower.encode(torch.zeros(2, 3, 224, 224))
    assert tokens.shape == (2, 50, hyperlora.DEMO.clip_width)


def test_hyperlora_of_the_demo_fits_its_unet(demo):
    hyper = load_hyperlora(demo / "hyper_lora")
    assert hyper.has_base
    unet = load_file(demo / "sdxl" / "unet" / sdxl.WEIGHT_FILES["unet"])
    layers = {f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": w.shape for name, w in unet.items()}
    clip_tokens, embeds = torch.randn(1, 50, 128), torch.nn.functional.normalize(torch.randn(1, 512))
    for branch, conditions in (("id", {"id_embeds": embeds}), ("base", {})):
        coefficients = hyper.coefficients(clip_tokens=clip_tokens, branch=branch, **conditions)
        lora = hyper.lora(coefficients, branch)
        assert coefficients.shape == (176, 16) and len(lora) == 3 * 88
        check_fits(lora, layers)
        # a layer's input of deviation 1 comes out of the LoRA, scaled by 0.5, with deviation near 0.5
        key = next(iter(hyper.module_names)) + "_to_q"
        delta = 0.5 * lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"] @ torch.randn(128, 256)
        assert 0.35 < float(delta.std()) < 0.65


def test_another_face_gives_other_coefficients(demo):
    hyper = load_hyperlora(demo / "hyper_lora")
    clip_tokens = torch.randn(1, 50, 128)
    faces = torch.nn.functional.normalize(torch.randn(2, 512))
    one, two = (hyper.coefficients(clip_tokens=clip_tokens, id_embeds=face[None]) for face in faces)
    assert float((one * two).sum(-1).mean()) < 0.99


def test_random_checkpoint_from_repeated_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(hyperlora, "NOISE_BLOCK", 4099)  # smaller than most tensors, so that they wrap around
    modules = {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2": (64, 128)}
    seen = []
    hyperlora.write_random_checkpoint(tmp_path, modules, hyperlora.DEMO, progress=lambda *at: seen.append(at))
    drawn = hyperlora.random_hyperlora(modules, hyperlora.DEMO)
    written = {path.stem: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert {part: {n: t.shape for n, t in tensors.items()} for part, tensors in written.items()} == {
        part: {n: t.shape for n, t in tensors.items()} for part, tensors in drawn.items()
    }
    basis = written["hyper_lora_modules"]
    down = basis["0.to_k.id_down_basis"]
    assert float(down.float().std()) == pytest.approx(128**-0.5, rel=0.05)
    assert not torch.equal(down, basis["0.to_v.id_down_basis"])
    assert (written["resampler"]["layers.0.norm_ff.weight"] == 1).all()
    assert seen[-1][0] == seen[-1][1]
    load_hyperlora(tmp_path)


@pytest.mark.parametrize("case", ["clip_arcface", "with_base"])
def test_layout_is_that_of_the_golden_checkpoints(case):
    golden = PACK / "tests" / "fixtures" / case
    described = json.loads((golden / "hyper_lora_modules.json").read_text())
    modules = {name: (module["hidden_size"], module["cross_attention_dim"]) for name, module in described.items()}
    expected = {
        path.stem: {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
        for path in golden.glob("*.safetensors")
        if path.stem != "expected"
    }
    resampler, basis = expected["resampler"], expected["hyper_lora_modules"]["0.to_q.id_down_basis"]
    clip_width = resampler["proj_in_2.weight"][1]
    size = hyperlora.HyperLoRASize(
        bases=basis[0],
        rank=basis[2],
        base_rank=basis[2] // 2 if case == "with_base" else 0,
        width=resampler["latents"][2],
        depth=len({name.split(".")[1] for name in resampler if name.startswith("layers.")}),
        heads=resampler["layers.0.attn1.to_q.weight"][0] // 64,
        clip_width=clip_width,
        id_tokens=expected["id_projector"]["0.weight"][0] // clip_width,
    )
    found: dict = {}
    for spec in hyperlora.specs(modules, size):
        found.setdefault(spec.part, {})[spec.name] = spec.shape
    assert found == expected


HOST_SCRIPT = """
import sys, types, importlib
pack, folder, out, prompt = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch, comfy.lora, comfy.utils
for name, path in (("pack", pack), ("pack.nodes", pack + "/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
host = importlib.import_module("pack.nodes.demo_host")
with torch.inference_mode():
    model, clip, vae = host.load_demo_checkpoint(folder)
    result = {"keys": sorted(key for key in comfy.lora.model_lora_keys_unet(model.model, {}) if isinstance(key, str))}
    tokens = clip.tokenize(prompt)
    result["text"], result["pooled"] = clip.encode_from_tokens(tokens, return_pooled=True)
    generator = torch.Generator().manual_seed(0)
    result["latent"] = torch.randn(2, 4, 16, 16, generator=generator)
    result["picture"] = torch.rand(1, 128, 128, 3, generator=generator)
    adm = model.model.encode_adm(pooled_output=result["pooled"], width=128, height=128).repeat(2, 1)
    steps = torch.tensor([801.0, 33.0])
    context = result["text"].repeat(2, 1, 1)
    result["noise"] = model.model.diffusion_model(result["latent"], steps, context=context, y=adm)
    scale = model.model.latent_format.scale_factor
    result["encoded"] = vae.encode(result["picture"]) * scale
    result["decoded"] = vae.decode(result["latent"][:1] / scale)
    result["reloaded"] = []
    for patcher in (model, clip.patcher, vae.patcher):
        again = patcher.cached_patcher_init[0](*patcher.cached_patcher_init[1], disable_dynamic=True).model.state_dict()
        # SDXL has no projection of its first encoder: the host leaves that memory as it found it
        names = [name for name in patcher.model.state_dict() if name != "clip_l.transformer.text_projection.weight"]
        result["reloaded"].append(all(torch.equal(again[name], patcher.model.state_dict()[name]) for name in names))
    torch.save(result, out)
"""


@pytest.mark.host
@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_comfyui_computes_what_diffusers_computes(host, demo, tmp_path):
    script, out, folder = tmp_path / "ask_host.py", tmp_path / "answers.pt", demo / "sdxl"
    script.write_text(HOST_SCRIPT)
    run = subprocess.run(
        [sys.executable, script, PACK, folder, out, PROMPT],
        cwd=host,
        env={"PYTHONPATH": str(host), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answers = torch.load(out)
    names = hyperlora.unet_modules(sdxl.unet_config(sdxl.DEMO))
    wanted = {f"{name}_{linear}" for name in names for linear in ("to_q", "to_k", "to_v", "to_out_0")}
    assert wanted <= set(answers["keys"])
    assert answers["reloaded"] == [True] * 3

    from hyperlora_core.pipeline import load_pipeline

    pipeline = load_pipeline(demo)
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
        conditions = {
            "text_embeds": pooled.repeat(2, 1),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2),
        }
        noise = pipeline.unet(
            answers["latent"],
            torch.tensor([801.0, 33.0]),
            encoder_hidden_states=text.repeat(2, 1, 1),
            added_cond_kwargs=conditions,
        ).sample
        encoded = pipeline.vae.encode(answers["picture"].movedim(-1, 1) * 2 - 1).latents
        decoded = (pipeline.vae.decode(answers["latent"][:1]).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    for name, ours in {"text": text, "pooled": pooled, "noise": noise, "encoded": encoded, "decoded": decoded}.items():
        torch.testing.assert_close(
            answers[name], ours, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
