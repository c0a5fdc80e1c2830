"""PuLID's losses: each against its formula, and a stage that trains with all three."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hyperlora_core import HyperLoRAError
from hyperlora_core.face.analyzer import FaceAnalyzer
from hyperlora_core.locate import DEMO_FACES, demo_folder
from hyperlora_core.train import pulid, stage
from hyperlora_core.train.data import pictures_to_model
from hyperlora_core.train.onnx_torch import OnnxNetwork

for package in ("insightface", "onnxruntime", "diffusers"):
    pytest.importorskip(package)

CPU = torch.device("cpu")
ALL = pulid.PuLIDConfig(semantic=0.6, layout=0.1, identity=1.0, pictures=2, steps=3, gradient_steps=1)


def save(path, nodes, weights, inputs=("x",)):
    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes, "g", [info(name, ["n", 3, 16, 16]) for name in inputs], [info("y", ["n", 512])], tensors
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), path)


def arcface(path):
    """The operations of glintr100 and w600k: convolutions, norms, PReLU, shortcuts, flatten, a linear layer, a norm."""
    rng, node = np.random.default_rng(0), helper.make_node
    weights = {"k1": rng.normal(size=(8, 3, 3, 3)), "b1": rng.normal(size=8), "slope": rng.normal(size=(8, 1, 1)),
               "k2": rng.normal(size=(8, 8, 3, 3)) / 9, "k3": rng.normal(size=(8, 8, 1, 1)),
               "w": rng.normal(size=(512, 512)) / 23, "c": rng.normal(size=512)}  # fmt: skip
    for name, width in (("n1", 8), ("n2", 512)):
        weights |= {f"{name}s": rng.normal(size=width), f"{name}b": rng.normal(size=width)}
        weights |= {f"{name}m": rng.normal(size=width), f"{name}v": rng.random(width) + 0.5}
    norms = {name: [f"{name}{part}" for part in "sbmv"] for name in ("n1", "n2")}
    nodes = [
        node("Conv", ["x", "k1", "b1"], ["h0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("PRelu", ["h0", "slope"], ["h1"]),
        node("BatchNormalization", ["h1", *norms["n1"]], ["h2"], epsilon=2e-5),
        node("Conv", ["h2", "k2"], ["h3"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Conv", ["h0", "k3"], ["h4"], kernel_shape=[1, 1], strides=[2, 2]),
        node("Add", ["h3", "h4"], ["h5"]),
        node("Flatten", ["h5"], ["h6"]),
        node("Gemm", ["h6", "w", "c"], ["h7"], transB=1),
        node("BatchNormalization", ["h7", *norms["n2"]], ["y"]),
    ]
    save(path, nodes, weights)


@pytest.mark.parametrize("which", ["demo", "arcface"])
def test_recognition_in_torch_is_the_packs(tmp_path, which):
    import onnxruntime

    path = demo_folder() / DEMO_FACES / "rec_demo.onnx" if which == "demo" else tmp_path / "net.onnx"
    if which == "arcface":
        arcface(path)
    x = torch.randn(2, 3, *((112, 112) if which == "demo" else (16, 16)), generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    network = OnnxNetwork(path)
    ours = network(x.requires_grad_())
    assert np.abs(ours.detach().numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    ours[:, 0].sum().backward()
    assert x.grad.abs().max() > 0 and not list(network.parameters())


def test_unknown_operations_are_refused(tmp_path):
    save(tmp_path / "net.onnx", [helper.make_node("Softsign", ["x"], ["y"])], {})
    with pytest.raises(HyperLoRAError, match=r"net\.onnx has the operation Softsign.*set pulid\.identity to 0"):
        OnnxNetwork(tmp_path / "net.onnx")
    save(tmp_path / "two.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], {}, ("x", "z"))
    with pytest.raises(HyperLoRAError, match="2 inputs and 1 outputs"):
        OnnxNetwork(tmp_path / "two.onnx")


class AsPainted(torch.nn.Module):
    """An autoencoder whose latents are the picture."""

    config, dtype = type("Config", (), {"scaling_factor": 1.0}), torch.float32

    def decode(self, latents):
        return type("Decoded", (), {"sample": latents})


@pytest.fixture(scope="module")
def faces():
    return FaceAnalyzer.load(demo_folder() / DEMO_FACES, "cpu")


def test_likeness_is_the_face_packs(faces):
    """With the whole way through detector, alignment and recognition, against insightface's own."""
    from hyperlora_core.demo.portraits import Scene, render, training_identity

    pictures = np.stack([render(training_identity(20_000), Scene(), 128).image, np.full((128, 128, 3), 90, np.uint8)])
    (detection,) = faces.detect(pictures[0], (256,))
    embedding = torch.from_numpy(faces.describe(pictures[0], detection).embedding)
    likeness = pulid.Likeness(AsPainted(), faces)
    latents = pictures_to_model(pictures, CPU).requires_grad_()
    distances, found = likeness(latents, torch.stack([embedding, embedding]))
    assert found.tolist() == [True, False] and distances[1] == 0  # nobody in the second
    assert float(distances[0].detach()) < 5e-3
    opposite, _ = likeness(latents, -torch.stack([embedding, embedding]))
    assert float(opposite[0].detach()) > 1.99
    # the gradient is the face's, and following it makes the face more another's
    other = torch.nn.functional.normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)))
    (before, _) = likeness(latents[:1], other)
    (gradient,) = torch.autograd.grad(before.sum(), latents)
    left, top, right, bottom = detection.box.round().astype(int)
    inside = gradient[0, :, max(0, top) : bottom, max(0, left) : right].abs().sum()
    assert inside > 0.7 * gradient.abs().sum() > 0 and not gradient[1].any()
    with torch.no_grad():
        moved = (latents - 0.02 * gradient.sign())[:1]
        assert float(likeness(moved, other)[0]) < float(before) - 0.01


def test_crops_are_cv2s():
    import cv2

    picture = np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype(np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 2)
    affine = np.array([[1.3, -0.4, 5.0], [0.4, 1.3, -20.0]])
    wanted = cv2.warpAffine(picture, affine, (112, 112), borderValue=0.0)
    ours = pulid.aligned_faces(pictures_to_model(picture[None], CPU), torch.tensor(affine[None]).float())
    difference = (ours[0].movedim(0, -1).numpy() + 1) * 127.5 - wanted
    assert np.abs(difference).mean() < 0.6 and (wanted == 0).all(-1).mean() > 0.02  # cv2 counts in 1/32 pixels


def test_sampling_solves_what_it_can_and_differentiates_the_last_steps():
    signal, clean = torch.linspace(0.9999, 0.005, 1000), torch.randn(2, 4, 3, 3)
    scale, asked = torch.ones((), requires_grad=True), []

    def predict(noisy, steps):
        asked.append((int(steps[0]), torch.is_grad_enabled()))
        now = signal[steps].view(-1, 1, 1, 1)
        return scale * (noisy - now.sqrt() * clean) / (1 - now).sqrt()  # the noise, where `clean` is all there is

    out = pulid.sample(predict, torch.randn(2, 4, 3, 3), signal, steps=4, gradient_steps=2)
    assert torch.allclose(out, clean, atol=1e-4)
    assert asked == [(999, False), (749, False), (500, True), (250, True)]
    out.sum().backward()
    assert scale.grad.abs() > 0


def test_alignment_is_its_formula():
    from hyperlora_core.demo import sdxl

    unet = sdxl.random_models(SMALL)["unet"]
    attentions = pulid.CrossAttentions(unet)
    name, heads = next(iter(attentions.heads.items()))
    attentions.heads = {name: heads}
    q, q_id, k = torch.randn(2, 9, 32), torch.randn(2, 9, 32), torch.randn(2, 5, 32)
    semantic, layout = attentions.differences({(name, "to_q"): q, (name, "to_k"): k}, {(name, "to_q"): q_id})
    d = 32 // heads

    def answer(queries):
        rows = []
        for head in range(heads):
            ours, keys = queries[..., head * d : (head + 1) * d], k[..., head * d : (head + 1) * d]
            rows.append(torch.softmax(keys @ ours.mT / d**0.5, -1) @ ours)
        return torch.cat(rows, -1)

    assert torch.allclose(layout, (q_id - q).square().mean((1, 2)))
    assert torch.allclose(semantic, (answer(q_id) - answer(q)).square().mean((1, 2)), atol=1e-6)
    assert torch.equal(
        attentions.differences({(name, "to_q"): q, (name, "to_k"): k}, {(name, "to_q"): q})[1], torch.zeros(2)
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_stage_with_all_three(checkpointing):
    """Gradients of every term reach the network, also through blocks computed twice; the terms are (a)'s alone."""
    module, batch = small_stage(checkpointing)
    module.train()
    batch["scenarios"] = torch.tensor([0, 0, 1])
    losses = module(**batch)
    assert set(losses) == {
        "reconstruct",
        "ID alone",
        "beside base",
        "semantic",
        "layout",
        "identity",
        "no face",
    }
    basis = module.network.basis.get_parameter("0/to_q/id_up_basis")
    gradients = {}
    for name in ("semantic", "layout", "identity", "reconstruct"):
        (gradients[name],) = torch.autograd.grad(losses[name], basis, retain_graph=True)
        assert gradients[name].abs().max() > 0, name
    assert not losses["no face"].requires_grad
    KEPT.setdefault("gradients", gradients)
    for name, gradient in gradients.items():  # the same with checkpointing and without
        assert torch.allclose(gradient, KEPT["gradients"][name], rtol=1e-3, atol=1e-6), name
    batch["scenarios"] = torch.tensor([1, 2, 2])
    losses = module(**batch)
    assert all(float(losses[name]) == 0 for name in ("reconstruct", "semantic", "layout", "identity", "no face"))


@pytest.mark.parametrize(
    ("changes", "conditions", "said"),
    [
        ({"layout": -0.1}, ("clip",), "give 0 or more"),
        ({"gradient_steps": 5}, ("clip",), "steps not fewer"),
        ({"pictures": 0}, ("clip",), "at least 1"),
        ({}, (), r"leave out \[pulid\]"),
    ],
)
def test_senseless_numbers_are_refused(changes, conditions, said):
    with pytest.raises(HyperLoRAError, match=said):
        pulid.check_pulid(dataclasses.replace(ALL, **changes), conditions)


KEPT = {}


class Recognised(torch.nn.Module):
    """In place of the face networks: the latents' first 512 numbers are the face, and the last has none."""

    def forward(self, latents, references):
        found = torch.arange(len(latents)) < len(latents) - 1
        distances = 1 - torch.nn.functional.cosine_similarity(latents.flatten(1)[:, :512], references)
        return distances * found, found


def small_stage(checkpointing):
    from hyperlora_core.demo import sdxl
    from hyperlora_core.demo.hyperlora import HyperLoRASize, unet_modules
    from hyperlora_core.train import config
    from hyperlora_core.train.network import Network

    unet = sdxl.random_models(SMALL)["unet"]
    size = HyperLoRASize(
        bases=4, rank=2, base_rank=2, width=64, depth=1, heads=1, clip_width=64, id_tokens=2, effect=0.5
    )
    network = Network(unet_modules(unet.config), size, seed=0)
    own = config.load_config(config.config_path("id-embedding", "cpu", "cpu"), stage.Config).stage
    network.choose(own.trains)
    losses = pulid.PuLID(ALL, Recognised(), torch.linspace(0.999, 0.005, 1000))
    module = stage.Stage(network, unet, dataclasses.replace(own, spread=0.0, checkpointing=checkpointing), losses)
    if checkpointing:
        unet.enable_gradient_checkpointing(module.injection.repeat)
    given = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=given)

    batch = {"noisy": noise(3, 4, 16, 16), "noise": noise(3, 4, 16, 16), "steps": torch.tensor([5, 300, 900]),
             "weights": torch.ones(3, 1, 16, 16), "text": noise(3, 7, 96), "pooled": noise(3, 64),
             "time_ids": torch.full((3, 6), 128.0), "base_tokens": noise(3, 5, 64),
             "base_weights": torch.ones(3), "tokens": noise(3, 5, 64)}  # fmt: skip
    faces = torch.nn.functional.normalize(noise(3, 512))
    return module, batch | {"embeds": faces, "faces": faces}


def _small():
    from hyperlora_core.demo import sdxl

    text = (sdxl.TextSize(32, 1, 1, "quick_gelu"), sdxl.TextSize(64, 1, 1, "gelu"))
    return dataclasses.replace(sdxl.DEMO, channels=(32, 32, 32), res_blocks=1, text=text)


SMALL = _small()
