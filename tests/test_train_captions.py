"""Where captions come from, and BLIP-2."""

import shutil
from dataclasses import replace

import pytest
import torch
from bad_inputs import assert_sentence
from people import photo_of
from training_photos import CONFIG, report_of, run, save

from hyperlora_core import HyperLoRAError
from hyperlora_core.train.blip import Blip2
from hyperlora_core.train.photos import PreparedPhotos

for package in ("insightface", "onnxruntime", "cv2"):
    pytest.importorskip(package)


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
    describe = Blip2(blip2, "cpu")
    pictures = [photo_of(number) for number in range(3)]
    captions = describe(pictures)
    assert len(captions) == 3 and all("<" not in caption and "\n" not in caption for caption in captions)
    assert set(" ".join(captions).split()) <= {"a", "photo", "of", "woman", "man", "red", "blue"}
    assert any(captions) and describe(pictures) == captions


def test_blip2_that_is_not_there(blip2, tmp_path):
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
