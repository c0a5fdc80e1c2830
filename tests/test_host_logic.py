"""What regions, hooks, timed bypass, saving and moved LoRAs do with the host's objects, on stand-ins for these."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from bad_inputs import assert_sentence
from pack_without_host import PACK, our_pack
from safetensors import safe_open
from test_bypass import PATHS, Net, lora, merged

from hyperlora_core.precision import fast_half
from hyperlora_core.similarity import Similarity, mean_similarity


@pytest.fixture(scope="module")
def nodes():
    """The modules that know the host, loaded without it."""
    with our_pack():
        names = ("bypass", "folders", "hooks", "host", "region", "save", "similarity", "transfer")
        return SimpleNamespace(**{name: importlib.import_module(f"{PACK}.nodes.{name}") for name in names})


@pytest.mark.parametrize(
    ("on_cpu", "fast", "wanted"),
    [
        (True, True, torch.bfloat16),
        (True, False, torch.float32),
        (False, True, torch.float16),
        (False, False, torch.float32),
    ],
)
def test_automatic_precision_is_what_the_device_is_fast_in(nodes, monkeypatch, on_cpu, fast, wanted):
    management = SimpleNamespace(is_device_cpu=lambda _device: on_cpu, should_use_fp16=lambda _device: fast)
    monkeypatch.setattr(nodes.host.comfy, "model_management", management)
    monkeypatch.setattr("hyperlora_core.precision.cpu_is_fast_in", lambda dtype: fast and dtype == torch.bfloat16)
    monkeypatch.setattr(nodes.host, "fast_half", fast_half)
    assert nodes.host.automatic_precision(torch.device("cpu" if on_cpu else "meta")) == wanted


def test_what_has_no_room_on_the_device(nodes, monkeypatch):
    """The tower runs where it is; the basis is mixed there, tensor by tensor; what is no want of memory is raised."""
    device, host = torch.device("meta"), nodes.host
    detached, problem = [], [None]

    def load(patchers):
        if problem[0]:
            raise problem[0]

    management = SimpleNamespace(
        get_torch_device=lambda: device,
        unet_offload_device=lambda: torch.device("cpu"),
        load_models_gpu=load,
        is_oom=lambda error: isinstance(error, MemoryError),
        soft_empty_cache=lambda: None,
    )
    monkeypatch.setattr(host.comfy, "model_management", management)
    monkeypatch.setattr(host.WholePatcher, "detach", lambda self: detached.append(self.model), raising=False)
    tower, basis = torch.nn.PReLU(), host.Basis({"0.to_q.id_down_basis": torch.zeros(2, 3, 1)}, ["a"])
    owner = SimpleNamespace()
    host.hand_over(owner, [tower, basis])
    for problem[0] in (None, MemoryError("no room")):
        detached.clear()
        assert owner.bring(tower) == torch.device("cpu") and owner.bring(basis) == device
        assert detached == [tower, basis], "a part of it may have been moved"
    problem[0] = ValueError("something else")
    with pytest.raises(ValueError, match="something else"):
        owner.bring(tower)
    problem[0] = None
    basis.to(device)
    tower.to(device)
    detached.clear()
    assert owner.bring(tower) == owner.bring(basis) == device and not detached


def test_with_dynamic_vram_hooks_need_a_loader_that_loads_again(nodes):
    model = SimpleNamespace(
        is_dynamic=lambda: True,
        cached_patcher_init=None,
        get_non_dynamic_delegate=lambda: "a copy",
        clone=lambda: "a clone",
    )
    with pytest.raises(Exception, match="with dynamic VRAM: use mode bypass"):
        nodes.hooks.hookable(model)
    model.cached_patcher_init = "how to load"
    assert nodes.hooks.hookable(model) == "a copy"
    model.is_dynamic = lambda: False
    assert nodes.hooks.hookable(model) == "a clone"


def test_an_empty_lora_is_named(nodes):
    """What Generate LoRA gives as base_lora where the checkpoint has no base branch, on the wire of the ID-LoRA."""
    with pytest.raises(Exception, match=r"id_lora is empty: .* no base branch"):
        nodes.region.one_lora(None, 0.8, None, 0.4)


def test_a_clip_file_that_is_gone_hides_no_other(nodes, monkeypatch, tmp_path):
    """A link to nowhere, and a folder clip_vit that isn't the authors'."""
    there = tmp_path / "tower.safetensors"
    there.touch()
    files = {"clip_vision": {"gone.safetensors": None, "clip_vit/tower.safetensors": str(there)}, "hyper_lora": {}}
    host = SimpleNamespace(
        get_filename_list=lambda folder: list(files[folder]),
        get_full_path=lambda folder, name: files[folder].get(name),
        get_folder_paths=lambda folder: [],
    )
    monkeypatch.setattr(nodes.folders, "folder_paths", host)
    monkeypatch.setattr(nodes.folders, "is_clip_tower", lambda path, width: path == there)
    assert nodes.folders.find_clip_tower(1024) == there
    with pytest.raises(Exception, match=r"gone\.safetensors is gone"):
        nodes.folders.clip_tower_path("gone.safetensors")


@pytest.fixture
def region(nodes, monkeypatch):
    def set_conds_props(conds, strength, set_cond_area, mask, hooks):
        place = {"hooks": hooks} | ({} if mask is None else {"mask": mask})
        place |= {"bounds": True} if set_cond_area == "mask bounds" else {}
        return [[[tokens, settings | place] for tokens, settings in cond] for cond in conds]

    monkeypatch.setattr(nodes.region.comfy.hooks, "set_conds_props", set_conds_props, raising=False)
    return nodes.region


PICTURE, BAD, ANNA = (
    [["a park", {"pooled": 1, "control": "pose"}]],
    [["blurry", {"pooled": 2}]],
    [["Anna", {"pooled": 3}]],
)


def test_a_person_and_the_rest(region):
    positive, negative = region.add_person(PICTURE, BAD, ANNA, "left", "hooks")
    mark = {region.MARK: True, "mask": "left", "hooks": "hooks"}
    assert positive == [
        ["Anna", {"pooled": 3, "control": "pose"} | mark],
        ["a park", PICTURE[0][1] | {"default": True}],
    ]
    assert negative == [["blurry", {"pooled": 2} | mark], ["blurry", {"pooled": 2, "default": True}]]
    assert "default" not in PICTURE[0][1] and "mask" not in ANNA[0][1], "what came in was changed"


def test_guided_the_negative_prompt_has_no_person(region):
    positive, negative = region.add_person(PICTURE, BAD, ANNA, "left", "hooks", guide=True)
    assert positive[0][1]["hooks"] == "hooks" and negative[0][1]["hooks"] is None
    assert negative[0][1]["mask"] == "left"


def test_both_prompts_of_a_person_see_the_masks_box(region):
    """Else the sampler would take the one's prediction for a part from the other's for the whole."""
    positive, negative = region.add_person(PICTURE, BAD, ANNA, "left", "hooks", set_cond_area=region.BOUNDS)
    assert [settings.get("bounds") for _, settings in (*positive, *negative)] == [True, None, True, None]


def test_a_persons_own_controlnet_stays(region):
    anna = [["Anna", {"pooled": 3, "control": "of her own"}]]
    positive, _ = region.add_person(PICTURE, BAD, anna, "left", "hooks")
    assert [settings["control"] for _, settings in positive] == ["of her own", "pose"]


def test_one_after_another(region):
    first = region.add_person(PICTURE, BAD, ANNA, "left", "hooks of Anna")
    positive, negative = region.add_person(*first, None, "right", "hooks of Ben")
    assert [tokens for tokens, _ in positive] == ["Anna", "a park", "a park"]
    assert [settings.get("mask") for _, settings in positive] == ["left", "right", None]
    assert [settings.get("hooks") for _, settings in negative] == ["hooks of Anna", "hooks of Ben", None]
    assert [settings.get("default") for _, settings in positive] == [None, None, True]
    assert positive[1][1]["control"] == "pose"
    assert positive[0] is first[0][0]


def test_prompts_with_places_of_their_own_keep_them(region):
    drawn = [["a dog", {"mask": "below"}], *PICTURE]
    positive, _ = region.add_person(drawn, BAD, None, None, "hooks")
    people, rest = positive[:2], positive[2:]
    assert all("mask" not in settings and settings["hooks"] == "hooks" for _, settings in people)
    assert rest == [["a dog", {"mask": "below"}], ["a park", PICTURE[0][1] | {"default": True}]]


@pytest.mark.parametrize(("positive", "negative", "name"), [([], BAD, "positive"), (PICTURE, [], "negative")])
def test_no_prompt_of_the_whole_picture(region, positive, negative, name):
    with pytest.raises(region.HyperLoRAError) as error:
        region.add_person(positive, negative, ANNA, None, "hooks")
    assert_sentence(str(error.value), [f"{name} has no prompt", "CLIP Text Encode"])


def test_the_sampler_learns_that_a_lora_does_not_fit(region, monkeypatch):
    shapes = {key: SimpleNamespace(shape=(16, 16), path=path) for key, path in PATHS.items()}
    monkeypatch.setattr(region, "model_layers", lambda model: shapes)
    must_fit, model = region.MustFit(lora(1)), SimpleNamespace(model=Net())
    assert must_fit(None, model, {}, {}, None) is True
    del shapes["lora_unet_a"]
    with pytest.raises(region.HyperLoRAError) as error:
        must_fit(None, "model", {}, {}, None)
    assert_sentence(str(error.value), ["doesn't fit this model", "lora_unet_a"])


class Hooks:
    """Stands for core's HookGroup."""

    def __init__(self, *names, keyframes="used"):
        self.hooks = [SimpleNamespace(name=name, hook_keyframe=keyframes) for name in names]

    def clone(self):
        return Hooks(*(hook.name for hook in self.hooks))

    def set_keyframes_on_hooks(self, keyframes):
        for hook in self.hooks:
            hook.hook_keyframe = f"fresh copy of {keyframes}"

    def clone_and_combine(self, other):
        return Hooks(*(hook.name for hook in (*self.hooks, *other.hooks)))


def test_hooks_on_every_conditioning(nodes):
    anna, ours = Hooks("anna"), Hooks("ours")
    conds = {"positive": [{"hooks": anna}, {}], "negative": [{"hooks": anna}, {"hooks": None}]}

    class Executor:
        class_obj = SimpleNamespace(conds=conds)

        def __call__(self, *args, **kwargs):
            return args, kwargs

    assert nodes.hooks.HooksOnEverything(ours)(Executor(), 1, x=2) == ((1,), {"x": 2})
    (with_anna, alone), (same, also_alone) = (
        [cond["hooks"] for cond in conds[side]] for side in ("positive", "negative")
    )
    assert with_anna is same and alone is also_alone, "conditionings of one batch were torn apart"
    assert [hook.name for hook in with_anna.hooks] == ["anna", "ours"]
    assert [hook.hook_keyframe for hook in alone.hooks] == ["fresh copy of used"]
    assert [hook.name for hook in anna.hooks] == ["anna"] and ours.hooks[0].hook_keyframe == "used"


def test_bypassed_for_a_while(nodes):
    """Two LoRAs, one of them for a part of sampling: also after the host took them off and put them back within a step."""
    bypass = nodes.bypass
    net, x = Net(), torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    net.model_sampling = SimpleNamespace(percent_to_sigma=lambda share: 10 * (1 - share))
    schedules = bypass.Schedule(), bypass.Schedule(0.3, 0.75)
    timed = [bypass.TimedLoRA(bypass.BypassLoRA(lora(seed), PATHS), when, False) for seed, when in enumerate(schedules)]
    injection, patcher = bypass.BypassInjection(timed), SimpleNamespace(model=net)
    both, first = merged(Net(), lora(0), lora(1))(x), merged(Net(), lora(0))(x)

    def paints(wanted) -> bool:
        return torch.allclose(net(x), wanted, atol=1e-5)

    injection.attach(patcher)
    for _run in range(2):
        for sigma, wanted in ((10.0, first), (7.0, both), (3.0, both), (2.5, first), (0.1, first)):
            injection.step(patcher, torch.tensor([sigma, sigma]), {})
            assert paints(wanted), sigma
            injection.eject(patcher)
            injection.attach(patcher)
            assert paints(wanted), f"{sigma}, put back"
        injection.release(patcher)
        assert paints(both), "a run's last step decides over the next one"
    injection.eject(patcher)
    assert paints(Net()(x))


def test_guided_only_prompts_have_the_person(nodes):
    """Conditionings in any order and number in a batch, told apart by the guider's names for them; a second LoRA is for all."""
    bypass, net = nodes.bypass, Net()
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    timed = [bypass.TimedLoRA(bypass.BypassLoRA(lora(seed), PATHS), bypass.Schedule(), seed == 0) for seed in (0, 1)]
    injection, patcher = bypass.BypassInjection(timed), SimpleNamespace(model=net)
    net.current_patcher = patcher
    injection.attach(patcher)
    both, second = merged(Net(), lora(0), lora(1))(x), merged(Net(), lora(1))(x)

    def called(executor_of: object, wrapper, run, *args, **kwargs):
        class Executor:
            class_obj = executor_of

            def __call__(self, *args, **kwargs):
                return run(*args, **kwargs)

        return wrapper(Executor(), *args, **kwargs)

    def paints(wanted, *uuids) -> bool:
        options = {"uuids": list(uuids)} if uuids else {}
        as_kwarg = called(net, injection.leave_negatives, lambda x, **_: net(x), x, transformer_options=options)
        as_arg = called(net, injection.leave_negatives, lambda x, *_: net(x), x, None, options)
        return torch.equal(as_kwarg, as_arg) and torch.allclose(as_arg, wanted, atol=1e-5)

    def sampling(_guider):
        assert paints(torch.cat([both[:2], second[2:]]), "her", "no")
        assert paints(torch.cat([second[:2], both[2:]]), "no", "her")
        assert paints(torch.cat([second[:1], both[1:3], second[3:]]), "empty", "her", "him", "no")
        assert paints(second, "no") and paints(both, "her") and paints(both)
        with pytest.raises(ValueError, match="batch of 4 can't be divided into 3"):
            paints(both, "no", "her", "him")
        return "sampled"

    conds = {"positive": ["her", "him"], "negative": ["no"], "empty_negative_prompt": ["empty"]}
    guider = SimpleNamespace(conds={name: [{"uuid": uuid} for uuid in uuids] for name, uuids in conds.items()})
    assert called("a sampler", injection.note_negatives, sampling, guider) == "sampled"
    assert paints(both, "no"), "a run's negatives decide over the next one"


def test_weights_that_a_model_samples_with(nodes, monkeypatch):
    """As the host stored them before its patches went in, and with the patches of this very MODEL."""
    module = nodes.transfer
    stored = torch.full((2, 4), 3.0, dtype=torch.float16)
    tuned, plain = "diffusion_model.a.weight", "diffusion_model.b.weight"
    patches = {tuned: [(stored, lambda weight, inplace: weight + 1), "patch"], plain: [(stored, lambda w, inplace: w)]}
    model = SimpleNamespace(
        get_key_patches=lambda prefix: {key: patches[key] for key in patches if key.startswith(prefix)}
    )
    attention = "mid_block_attentions_0_transformer_blocks_0_attn1_{}"
    layers = {
        f"lora_unet_{attention.format('to_q')}": SimpleNamespace(path="diffusion_model.a", shape=(2, 4)),
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": SimpleNamespace(
            path="diffusion_model.a", shape=(2, 4)
        ),
        f"lora_unet_{attention.format('to_out_0')}": SimpleNamespace(path="diffusion_model.b", shape=(2, 4)),
        "lora_unet_conv_in": SimpleNamespace(path="diffusion_model.c", shape=(8, 4, 3, 3)),
    }
    monkeypatch.setattr(module, "model_layers", lambda model: layers)
    monkeypatch.setattr(
        module.comfy.model_management,
        "cast_to_device",
        lambda weight, device, dtype, copy: weight.to(dtype, copy=copy),
        raising=False,
    )
    monkeypatch.setattr(
        module.comfy.lora, "calculate_weight", lambda found, weight, key: weight * 10 * len(found), raising=False
    )
    read = module.HostLayers(model)
    to_q, to_out = (f"mid_block.attentions.0.transformer_blocks.0.attn1.{end}" for end in ("to_q", "to_out.0"))
    assert read.shapes == {to_q: (2, 4), to_out: (2, 4)}
    assert read.weight(to_q).eq(40).all() and read.weight(to_out).eq(3).all() and stored.eq(3).all()


def test_what_was_found_out_is_kept_for_the_last_two_models(nodes):
    between = nodes.transfer.bridge_between
    sdxl, small = (SimpleNamespace(model=torch.nn.Identity(), patches_uuid=number) for number in (1, 2))
    bridge = between(sdxl, small, 0.5)
    clone = SimpleNamespace(model=sdxl.model, patches_uuid=1)
    assert between(clone, small, 0.5) is bridge
    assert between(sdxl, small, 0.6).directions == 0.6
    patched = SimpleNamespace(model=small.model, patches_uuid=3)
    assert between(sdxl, patched, 0.6) is not between(sdxl, small, 0.6)
    assert between(small, sdxl, 0.6) is not between(sdxl, small, 0.6)
    assert len(nodes.transfer._known) == 1, "memory of several pairs"
    del sdxl, clone
    assert len(nodes.transfer._known) == 0, "memory of a model that is gone"


@pytest.mark.parametrize(("base_weight", "rank"), [(0.0, 4), (0.4, 8)])
def test_a_base_without_weight_is_left_out_of_the_file(nodes, monkeypatch, tmp_path, base_weight, rank):
    folders = SimpleNamespace(
        get_output_directory=lambda: str(tmp_path),
        get_save_image_path=lambda prefix, folder: (folder, prefix, 1, "", prefix),
    )
    monkeypatch.setattr(nodes.save, "folder_paths", folders)
    (path,) = nodes.save.HyperLoRASaveLoRA.execute("x", lora(0), base_lora=lora(1), base_weight=base_weight)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == str(rank)
    assert metadata.get("hyperlora.base_weight") == ("0.4" if base_weight else None)


@pytest.mark.parametrize("threshold", [0.0, -0.5])
def test_the_gate_removes_pictures_without_a_face_at_any_threshold(nodes, threshold):
    results = [Similarity(0.4, 1), Similarity(None, 0), Similarity(0.1, 2)]
    passed, said = nodes.similarity.through_gate(torch.arange(3), results, 0.2, nodes.similarity.REMOVE, threshold)
    assert passed.tolist() == [0, 2] and said.startswith("2 of 3 pictures")


BLOCKED = "blocked"


def gated(nodes, monkeypatch, gate: str, threshold: float, *cosines: float | None):
    """What passes of pictures with these cosines, by number, and the sentence."""
    monkeypatch.setattr(nodes.similarity, "ExecutionBlocker", lambda _message: BLOCKED)
    results = [Similarity(cosine, cosine is not None) for cosine in cosines]
    pictures = torch.arange(len(cosines))
    passed, said = nodes.similarity.through_gate(pictures, results, mean_similarity(results), gate, threshold)
    return (passed if passed is BLOCKED else passed.tolist()), said


@pytest.mark.parametrize("gate", ["remove", "stop", "error"])
def test_a_threshold_that_is_no_number_is_refused(nodes, monkeypatch, gate):
    with pytest.raises(nodes.similarity.HyperLoRAError, match="the threshold nan"):
        gated(nodes, monkeypatch, gate, float("nan"), 0.5)
    assert gated(nodes, monkeypatch, "off", float("nan"), 0.5)[0] == [0]


@pytest.mark.parametrize("threshold", [1.0, 0.4, 0.0, -1.0])
def test_a_gate_that_is_off_passes_everything(nodes, monkeypatch, threshold):
    assert gated(nodes, monkeypatch, "off", threshold, 0.1, None) == ([0, 1], "")
    assert gated(nodes, monkeypatch, "off", threshold, None) == ([0], "")


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_no_gate_passes_pictures_of_nobody(nodes, monkeypatch, threshold):
    """Though they count 0 in the mean."""
    for gate in ("remove", "stop"):
        passed, said = gated(nodes, monkeypatch, gate, threshold, None, None)
        assert passed is BLOCKED and said.startswith(("0 of 2 pictures", "No picture shows a face: nothing"))
    with pytest.raises(nodes.similarity.HyperLoRAError, match=r"^No picture shows a face: .* no face, no face"):
        gated(nodes, monkeypatch, "error", threshold, None, None)
    assert gated(nodes, monkeypatch, "stop", threshold, 0.0, None) == ([0, 1], "")


@pytest.mark.parametrize(("cosine", "threshold"), [(0.39996, 0.4), (0.99999994, 1.0), (-1.0000001, -1.0), (0.0, 0.0)])
def test_what_shows_the_threshold_s_digits_reaches_it(nodes, monkeypatch, cosine, threshold):
    for gate in ("remove", "stop", "error"):
        assert gated(nodes, monkeypatch, gate, threshold, cosine)[0] == [0]


def test_what_is_below_the_threshold(nodes, monkeypatch):
    assert gated(nodes, monkeypatch, "remove", 0.4, 0.39, 0.4) == ([1], "1 of 2 pictures passed the threshold 0.40")
    assert gated(nodes, monkeypatch, "remove", 0.4, 0.39)[0] is BLOCKED
    passed, said = gated(nodes, monkeypatch, "stop", 0.4, 0.39, 0.402)
    assert passed == [0, 1] and said == "", "the mean is 0.396, shown as 0.40"
    passed, said = gated(nodes, monkeypatch, "stop", 0.4, 0.39, 0.39)
    assert passed is BLOCKED and "0.39 is below the threshold 0.40: nothing behind" in said
    with pytest.raises(
        nodes.similarity.HyperLoRAError, match=r"0\.20 is below the threshold 0\.40: .* By picture: 0\.40, no face\."
    ):
        gated(nodes, monkeypatch, "error", 0.4, 0.4, None)
