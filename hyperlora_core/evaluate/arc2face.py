"""Arc2Face (Papantoniou et al. 2024, arXiv 2403.11641) as a baseline, through diffusers.

Stable Diffusion 1.5 with a UNet and a text encoder of its own. The prompt is always the same; in place of the vector of one
of its words the encoder reads an ArcFace embedding, with zeros behind it. So the pictures show a person, but follow no words.
"""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..demo.tokenizer import POSITIONS, sdxl_tokenizers
from ..errors import HyperLoRAError
from ..face.analyzer import FaceAnalyzer
from ..face.pack import DETECTION
from ..fingerprint import fingerprint
from ..packages import require
from ..photo import PhotoSource, read_photo
from ..pipeline import quiet
from ..weights_check import check_safetensors
from .instruments import MeasuringNetwork
from .paint import Job
from .protocol import Method

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ARC2FACE = "Arc2Face"
PURPOSE = "Painting with Arc2Face"
PROMPT, PLACE = "photo of a id person", "id"  # the face stands at PLACE
WIDTH = 512  # of ArcFace's embeddings
STEPS, CFG = 25, 3.0  # as its authors use it, with DPM-Solver++
UNET, ENCODER, RECOGNITION = "arc2face", "encoder", "arcface.onnx"
REMEDY = "Download it from https://huggingface.co/FoivosPar/Arc2Face"
BASE_REMEDY = "Give --sd15 the diffusers folder of Stable Diffusion 1.5"


class Arc2Face:
    """A `PersonPainter` for one photo of each person."""

    follows_prompt = False

    def __init__(
        self, pipeline: "StableDiffusionPipeline", recognition: MeasuringNetwork, steps: int = STEPS, cfg: float = CFG
    ):
        """`pipeline` holds Arc2Face's UNet and encoder; `recognition` is its ArcFace network."""
        self.pipeline, self.recognition, self.steps, self.cfg = pipeline, recognition, steps, cfg

    @classmethod
    def load(
        cls, folder: str | Path, base: str | Path, faces: FaceAnalyzer, device: str | torch.device | None = None
    ) -> "Arc2Face":
        """Read the published weights: arc2face/ (UNet), encoder/ and arcface.onnx in `folder`; vae/, scheduler/ and, where
        it is there, tokenizer/ of Stable Diffusion 1.5 in `base`. `faces` finds the faces.

        fp16 on a GPU, fp32 on the CPU. Raises HyperLoRAError for what is missing, damaged or doesn't fit together.
        """
        diffusers, transformers = require("diffusers", PURPOSE), require("transformers", PURPOSE)
        folder, base = Path(folder), Path(base)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # antelopev2/ is where the authors' instructions put it
        networks = [folder / RECOGNITION, folder / "antelopev2" / RECOGNITION]
        recognition = next((file for file in networks if file.is_file()), None)
        if recognition is None:
            raise HyperLoRAError(f"There is no {networks[0]}, the network that Arc2Face knows faces by. {REMEDY}.")
        if (base / "text_encoder_2").exists():
            raise HyperLoRAError(f"{base} is an SDXL model, and Arc2Face stands on an older one. {BASE_REMEDY}.")
        with quiet():
            unet = _load(diffusers.UNet2DConditionModel, folder / UNET, REMEDY)
            encoder = _load(transformers.CLIPTextModel, folder / ENCODER, REMEDY)
            vae = _load(diffusers.AutoencoderKL, base / "vae", BASE_REMEDY)
            scheduler = _scheduler(diffusers.DPMSolverMultistepScheduler, base / "scheduler")
            if (base / "tokenizer").is_dir():
                tokenizer = transformers.CLIPTokenizer.from_pretrained(
                    base / "tokenizer", model_max_length=POSITIONS, local_files_only=True
                )
            else:
                tokenizer = sdxl_tokenizers()[0]
            width, wanted = encoder.config.hidden_size, unet.config.cross_attention_dim
            if width != wanted or width < WIDTH:
                raise HyperLoRAError(
                    f"{folder / ENCODER} gives vectors of {width} numbers, its UNet reads {wanted}, and a face has {WIDTH}: "
                    f"these are not the parts of one Arc2Face. {REMEDY}."
                )
            if unet.config.in_channels != vae.config.latent_channels:
                raise HyperLoRAError(
                    f"{base / 'vae'} has {vae.config.latent_channels} channels, Arc2Face's UNet reads "
                    f"{unet.config.in_channels}. {BASE_REMEDY}."
                )
            pipeline = diffusers.StableDiffusionPipeline(
                vae=vae,
                text_encoder=encoder,
                tokenizer=tokenizer,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        ids = _ids(tokenizer, PROMPT)
        if int((ids == _place(tokenizer)).sum()) != 1 or int(ids.max()) >= encoder.config.vocab_size:
            raise HyperLoRAError(f"{base / 'tokenizer'} isn't CLIP's, which Arc2Face's encoder reads. {BASE_REMEDY}.")
        pipeline.set_progress_bar_config(disable=True)
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        return cls(pipeline.to(device, dtype), MeasuringNetwork(recognition, faces))

    @property
    def settings(self) -> dict[str, object]:
        """All that decides over a picture besides the photo and the seed."""
        digest = hashlib.sha256()
        for file in (self.recognition.file, Path(self.recognition.analyzer.app.models[DETECTION].model_file)):
            digest.update(file.read_bytes())
        pipeline = self.pipeline
        networks = {"unet": pipeline.unet, "encoder": pipeline.text_encoder, "vae": pipeline.vae}
        return {
            **{name: fingerprint(network) for name, network in networks.items()},
            "faces": digest.hexdigest()[:16],
            "steps": self.steps,
            "cfg": self.cfg,
        }

    def encode(self, photos: Sequence[PhotoSource]) -> np.ndarray:
        """The face of the first of `photos` as an embedding [512] of length 1. Raises HyperLoRAError without a face."""
        face = self.recognition.embed(read_photo(photos[0]))
        if face is None:
            name = photos[0] if isinstance(photos[0], str | Path) else "the photo"
            raise HyperLoRAError(f"No face was found in {name}, so Arc2Face can't paint it: use another photo.")
        if len(face) != WIDTH:
            raise HyperLoRAError(
                f"{self.recognition.file} gives {len(face)} numbers for a face, Arc2Face reads {WIDTH}. {REMEDY}."
            )
        return face

    def check(self, method: Method) -> None:
        """It has no weights that a method could ask for."""

    def job(self, method: Method, who: np.ndarray, prompt: str, seed: int) -> Job:
        """A picture of the face `who`, whatever the prompt."""
        return Job(prompt, seed, face=who)

    @torch.no_grad()
    def tokens(self, faces: np.ndarray) -> Tensor:
        """What the UNet reads of faces [n, 512]: [n, 77, c]."""
        encoder, tokenizer = self.pipeline.text_encoder, self.pipeline.tokenizer
        words = encoder.get_input_embeddings()
        ids = _ids(tokenizer, PROMPT).expand(len(faces), -1).to(encoder.device)
        given = torch.from_numpy(faces).to(encoder.device, encoder.dtype)
        given = functional.pad(given, (0, encoder.config.hidden_size - WIDTH))  # (n, c)

        def replaced(_layer: torch.nn.Module, _inputs: tuple, vectors: Tensor) -> Tensor:
            here = (ids == _place(tokenizer))[..., None]  # (n, 77, 1), once in each row
            return torch.where(here, given[:, None], vectors)

        hook = words.register_forward_hook(replaced)
        try:
            return encoder(ids).last_hidden_state
        finally:
            hook.remove()

    @torch.no_grad()
    def paint(self, jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
        """Paint the jobs' faces side by side, whatever their prompts: uint8 [h, w, 3] each, 512 px for the published model.

        `progress(steps done, steps)` may raise to stop.
        """

        def after_step(_pipeline: object, step: int, _timestep: object, tensors: dict) -> dict:
            if progress is not None:
                progress(step + 1, self.steps)
            return tensors

        encoder = self.pipeline.text_encoder
        empty = encoder(_ids(self.pipeline.tokenizer, "").to(encoder.device)).last_hidden_state
        pictures = self.pipeline(
            prompt_embeds=self.tokens(np.stack([job.face for job in jobs])),
            negative_prompt_embeds=empty.expand(len(jobs), -1, -1),
            num_inference_steps=self.steps,
            guidance_scale=self.cfg,
            generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
            callback_on_step_end=after_step,
        ).images
        return [np.asarray(picture) for picture in pictures]


def _ids(tokenizer: Any, text: str) -> Tensor:
    """[1, 77]."""
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    return tokenizer(text, return_tensors="pt", **options).input_ids


def _place(tokenizer: Any) -> int:
    return tokenizer.encode(PLACE, add_special_tokens=False)[0]


def _load(kind: Any, folder: Path, remedy: str) -> torch.nn.Module:
    """A network from a folder with config.json and weights; of pickled ones, as the encoder's are published, only tensors
    are read.
    """
    if not (folder / "config.json").is_file():
        raise HyperLoRAError(f"There is no {folder / 'config.json'}. {remedy}.")
    for file in folder.glob("*.safetensors"):
        check_safetensors(file)
    try:
        network, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".:")[:160]
        raise HyperLoRAError(f"{folder} can't be loaded ({reason}). {remedy}.") from error
    if missing := sorted(map(str, info["missing_keys"])):
        raise HyperLoRAError(f"{folder} is incomplete: it lacks {missing[0]} ({len(missing)} in all). {remedy}.")
    return network.eval()


def _scheduler(kind: Any, folder: Path) -> Any:
    if not (folder / "scheduler_config.json").is_file():
        raise HyperLoRAError(f"There is no {folder / 'scheduler_config.json'}. {BASE_REMEDY}.")
    return kind.from_pretrained(folder, local_files_only=True)
