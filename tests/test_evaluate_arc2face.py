"""Arc2Face on random weights of the published layout, but narrow: what the encoder reads, what is painted, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from bad_inputs import assert_sentence, cut, edit, without

from hyperlora_core import FaceAnalyzer, HyperLoRAError
from hyperlora_core.demo.tokenizer import END, START
from hyperlora_core.evaluate.arc2face import CFG, PROMPT, STEPS, Arc2Face
from hyperlora_core.evaluate.paint import Job

for package in ("diffusers", "transformers", "onnx", "insightface"):
    pytest.importorskip(package)

from toy_face_pack import make_recognition, photo_with, write_face_pack  # noqa: E402

SIDE = 32  # px
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "id</w>", START, END]
PNDM = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_arc2face(folder, width=512):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
    ).save_pretrained(folder / "arc2face")
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=8,
        eos_token_id=len(VOCABULARY) - 1,
        bos_token_id=len(VOCABULARY) - 2,
    )
    encoder = folder / "encoder"
    config.save_pretrained(encoder)
    said = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(said | {"architectures": ["CLIPTextModelWrapper"]}))
    tensors = CLIPTextModel(config).state_dict()
    # published as a pickle, under the names that transformers gave them then
    torch.save({f"text_model.{name.removeprefix('text_model.')}": tensors[name] for name in tensors}, bin_of(folder))
    make_recognition(folder / "arcface.onnx")
    return folder


def bin_of(folder):
    return folder / "encoder" / "pytorch_model.bin"


def write_base(folder):
    from diffusers import AutoencoderKL

    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")
    for name, value in (
        ("scheduler/scheduler_config.json", PNDM),
        ("tokenizer/vocab.json", {token: number for number, token in enumerate(VOCABULARY)}),
    ):
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(value))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\ni d</w>\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    faces = FaceAnalyzer.load(write_face_pack(folder / "pack"), "cpu")
    return write_arc2face(folder / "arc2face"), write_base(folder / "sd15"), faces


@pytest.fixture(scope="module")
def arc2face(made):
    return Arc2Face.load(*made, device="cpu")


@pytest.fixture(scope="module")
def people(arc2face):
    """The faces of two photos."""
    photos = [photo_with((200, 200, 320, 320)) for _ in range(2)]
    photos[1][240:280, 240:260] = (60, 200, 120)
    return [arc2face.encode([photo]) for photo in photos]


def test_the_face_stands_in_the_place_of_its_word(arc2face, people):
    encoder, tokenizer = arc2face.pipeline.text_encoder, arc2face.pipeline.tokenizer
    options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    ids, place = tokenizer(PROMPT, **options).input_ids, VOCABULARY.index("id</w>")
    assert (ids == place).sum() == 1
    read = arc2face.tokens(np.stack(people))
    words = encoder.get_input_embeddings().weight
    before = words[place].clone()
    with torch.no_grad():
        for face, tokens in zip(people, read, strict=True):
            assert np.linalg.norm(face) == pytest.approx(1)
            words[place] = torch.from_numpy(face)
            assert torch.allclose(encoder(ids).last_hidden_state[0], tokens, atol=1e-5)
        words[place] = before
        assert not torch.allclose(encoder(ids).last_hidden_state[0], read[0], atol=1e-3)
    assert not torch.allclose(read[0], read[1], atol=1e-4)


def test_narrower_faces_are_filled_with_zeros(made, people, tmp_path):
    wide = Arc2Face.load(write_arc2face(tmp_path, 640), *made[1:], device="cpu")
    encoder, place = wide.pipeline.text_encoder, VOCABULARY.index("id</w>")
    (tokens,) = wide.tokens(people[0][None])
    with torch.no_grad():
        words = encoder.get_input_embeddings().weight
        words[place] = torch.cat([torch.from_numpy(people[0]).float(), torch.zeros(128)])
        ids = wide.pipeline.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert torch.allclose(encoder(ids).last_hidden_state[0], tokens, atol=1e-5)


def test_paints_faces_whatever_the_prompt(made, arc2face, people):
    from diffusers import DPMSolverMultistepScheduler

    assert isinstance(arc2face.pipeline.scheduler, DPMSolverMultistepScheduler)
    assert (arc2face.steps, arc2face.cfg) == (STEPS, CFG) == (25, 3.0)
    quick = Arc2Face(arc2face.pipeline, arc2face.recognition, steps=3)
    told = []
    jobs = [Job("a hat", 7, face=people[0]), Job("a coat", 7, face=people[1]), Job("a coat", 8, face=people[0])]
    pictures = quick.paint(jobs, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert all(picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8 for picture in pictures)
    (alone,) = quick.paint([Job("a coat", 7, face=people[0])])
    assert np.abs(alone.astype(int) - pictures[0]).max() <= 1
    assert (pictures[1] != pictures[0]).any() and np.abs(pictures[2].astype(int) - pictures[0]).mean() > 1
    settings = quick.settings
    assert settings["steps"] == 3 and settings == Arc2Face(arc2face.pipeline, arc2face.recognition, 3).settings


def test_no_face(arc2face):
    with pytest.raises(HyperLoRAError, match=r"No face was found.*another photo"):
        arc2face.encode([photo_with()])


class Code:
    def __reduce__(self):
        return print, ("ran",)


def spoil_unet_width(own, base):
    config = own / "arc2face" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": 768}))


SPOILED = {
    "nothing there": (lambda own, base: shutil.rmtree(own), ("There is no", "arcface.onnx", "FoivosPar/Arc2Face")),
    "no recognition": (lambda own, base: (own / "arcface.onnx").unlink(), ("There is no", "arcface.onnx")),
    "no unet": (lambda own, base: shutil.rmtree(own / "arc2face"), ("There is no", "arc2face", "config.json")),
    "no encoder weights": (lambda own, base: bin_of(own).unlink(), ("encoder", "can't be loaded", "FoivosPar")),
    "cut unet": (lambda own, base: cut(own / "arc2face" / WEIGHTS), (WEIGHTS, "incomplete")),
    "unet lacks a tensor": (
        lambda own, base: edit(own / "arc2face" / WEIGHTS, without("conv_in.weight")),
        ("arc2face", "conv_in.weight"),
    ),
    "another width": (spoil_unet_width, ("arc2face",)),
    "encoder of another width": (lambda own, base: write_arc2face(own, 256), ("256 numbers", "512")),
    "code in the pickle": (lambda own, base: torch.save({"x": Code()}, bin_of(own)), ("encoder", "can't be loaded")),
    "no vae": (lambda own, base: shutil.rmtree(base / "vae"), ("There is no", "vae", "Stable Diffusion 1.5")),
    "no scheduler": (lambda own, base: shutil.rmtree(base / "scheduler"), ("There is no", "scheduler_config.json")),
    "an SDXL base": (lambda own, base: (base / "text_encoder_2").mkdir(), ("is an SDXL model", "--sd15")),
}


@pytest.mark.parametrize("case", SPOILED)
def test_bad_weights(made, tmp_path, case, capsys):
    own, base = (shutil.copytree(folder, tmp_path / folder.name) for folder in made[:2])
    spoil, words = SPOILED[case]
    spoil(own, base)
    with pytest.raises(HyperLoRAError) as refused:
        Arc2Face.load(own, base, made[2], "cpu")
    assert_sentence(str(refused.value), words)
    assert "ran" not in capsys.readouterr().out


def test_another_recognition_network(made, tmp_path):
    own = shutil.copytree(made[0], tmp_path / "own")
    make_recognition(own / "arcface.onnx", width=256)
    with pytest.raises(HyperLoRAError, match=r"arcface\.onnx gives 256 numbers for a face, Arc2Face reads 512"):
        Arc2Face.load(own, made[1], made[2], "cpu").encode([photo_with((200, 200, 320, 320))])
    (own / "antelopev2").mkdir()
    shutil.move(own / "arcface.onnx", own / "antelopev2" / "arcface.onnx")
    assert Arc2Face.load(own, made[1], made[2], "cpu").recognition.file.parent.name == "antelopev2"
