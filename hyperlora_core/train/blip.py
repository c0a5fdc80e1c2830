"""Captions by BLIP-2 (arXiv 2301.12597), as the paper captions its photos; through transformers, from local files."""

from pathlib import Path

import torch
from PIL import Image

from .. import packages
from ..errors import HyperLoRAError
from ..weights_check import check_safetensors

PURPOSE = "Captions by BLIP-2"
LONGEST = 40  # tokens
REMEDY = (
    "Give a folder with all files of a BLIP-2 as safetensors: "
    "hf download Salesforce/blip2-opt-2.7b --local-dir FOLDER, or use captions from files."
)


class Blip2:
    """A BLIP-2 from a folder as transformers saves it. `device`: auto, cpu, cuda, mps; half precision on a GPU.

    Raises HyperLoRAError when the folder isn't one, or lacks weights; MissingPackageError without transformers.
    """

    def __init__(self, folder: str | Path, device: str = "auto"):
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise HyperLoRAError(f"{folder} holds no config.json, so it isn't a BLIP-2. {REMEDY}")
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise HyperLoRAError(f"{folder} holds no weights (*.safetensors). {REMEDY}")
        for file in files:
            check_safetensors(file)
        transformers = packages.require("transformers", PURPOSE)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = device.partition(":")[0]
        if kind != "cpu" and not (kind in ("cuda", "mps", "xpu") and getattr(torch, kind).is_available()):
            raise HyperLoRAError(
                f"BLIP-2 was asked for on {device}, which PyTorch doesn't find here: use --device auto."
            )
        self.device, self.dtype = torch.device(device), torch.float32 if kind == "cpu" else torch.float16
        try:
            self.processor = transformers.Blip2Processor.from_pretrained(folder, local_files_only=True)
            self.model, loading = transformers.Blip2ForConditionalGeneration.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=self.dtype,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # as various as broken folders are
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise HyperLoRAError(f"{folder} can't be loaded as BLIP-2 ({reason}). {REMEDY}") from error
        if loading["missing_keys"]:
            raise HyperLoRAError(
                f"{folder} lacks weights of BLIP-2 ({sorted(loading['missing_keys'])[0]} and "
                f"{len(loading['missing_keys']) - 1} more). {REMEDY}"
            )
        self.model.to(self.device).eval()

    @torch.no_grad()
    def __call__(self, pictures: list[Image.Image]) -> list[str]:
        """A caption for each picture, on one line; the surest words, so that a second run says the same."""
        inputs = self.processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device, self.dtype)  # (n, 3, 224, 224)
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=LONGEST, do_sample=False)
        return [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
