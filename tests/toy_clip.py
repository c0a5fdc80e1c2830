"""A whole CLIP, untrained and tiny, in the form of OpenAI's files on the hub."""

from pathlib import Path

import torch

CONTEXT = 77


def toy_clip(folder: Path):
    """Write model.safetensors into `folder`; answers transformers' model of it."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "num_hidden_layers": 2}
    text |= {"vocab_size": 49408, "max_position_embeddings": CONTEXT, "hidden_act": "quick_gelu", "eos_token_id": 49407}
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision |= {"image_size": 64, "patch_size": 32, "hidden_act": "quick_gelu"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()
        for weight in model.parameters():  # biases, norms and positions of their own too, so that none can be mixed up
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model
