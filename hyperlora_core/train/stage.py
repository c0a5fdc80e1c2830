"""HyperLoRA's training, stage by stage (arXiv 2503.16944, section 3.4; reference facts in docs/training.md).

    base-lora      the base branch, on pictures whose face is blurred; no ID branch
    id-clip        the ID branch on CLIP tokens, beside the frozen base branch; the face embedding bypassed
    id-embedding   the ID branch on the face embedding too, what reads CLIP tokens frozen

and, not in the paper, before a reader is fitted (reader.py):

    id-people      the ID branch's bases, with coefficients for each person that no photo is read for (people.py)
    id-words       coefficients of what passes, such as a smile, beside theirs (words.py)

All are one task: what is trained, what the ID branch reads and which stages came before stand in the config. The LoRAs
are computed beside the frozen UNet's layers (`inject`), another one for every picture of a batch.

While the ID branch trains, each picture draws one of three scenarios:

    (a) trigger words, ID and base: reconstruct the picture
    (b) no trigger words, ID alone: predict what the frozen model does
    (c) no trigger words, ID and base: predict what the frozen model does with the base alone

PuLID's losses (pulid.py) are added to (a) where the config has a section [pulid].
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..demo.hyperlora import HyperLoRASize, unet_modules
from ..errors import HyperLoRAError
from ..fingerprint import fingerprint
from ..inject import LowRank
from ..pipeline import load_pipeline
from ..prompt import with_trigger
from ..vision import VisionEncoder, wrong_tokens
from .config import LoopConfig
from .denoising import BesideUNet, DenoisingTask, spread
from .diffusion import check_weights
from .drawn import open_photos
from .features import FEATURES, RowCache, see, token_cache
from .loop import CHECKPOINT, Draw
from .network import GROUPS, Network, joined, spread_loss
from .people import CODES, PEOPLE, WORDS, FreeCoefficients, PeopleConfig, check_people
from .pulid import CrossAttentions, PuLID, PuLIDConfig, Seen, check_pulid, make_pulid
from .sheets import sheet
from .sources import Sources
from .trained import Trained
from .words import WordsConfig, check_words, leave_out, words_shown

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from .photos import Photos

RECONSTRUCT, ID_ALONE, BESIDE_BASE = range(3)  # the scenarios (a), (b), (c)
KINDS = (("embedding", "clip"), ("embedding",), ("clip",))  # what an ID branch may read, in its order
CENTRE_PHOTOS = 64  # for the mean of what a branch reads


@dataclass(frozen=True)
class StageConfig:
    """What a stage trains, and on what."""

    start: tuple[str, ...]  # folders of the stages that came before, in --out; their trained tensors are taken over
    trains: tuple[str, ...]  # groups, see network.py
    # what the ID branch reads: clip, embedding; "people": nothing, they have coefficients of their own; none: no ID branch
    conditions: tuple[str, ...]
    scenarios: tuple[float, float, float]  # chances of (a), (b), (c)
    base_off: float  # chance that (a) goes without the Base-LoRA, as pictures painted with the ID-LoRA alone do
    other_photo: float  # chance that the ID branch reads another photo of the person, where there is one
    caption_dropout: float  # chance that nothing but the trigger words, if any, is left of a caption
    bases_pace: float  # the bases learn at so many times the rate
    spread: float  # weight of network.spread_loss, while the ID branch trains; 0: as in the paper, without
    face_weight: float  # weight of the loss inside the face's box; 1: as everywhere
    weights: str  # of diffusion.WEIGHTS; the paper's loss is plain
    steps_drawn: tuple[float, ...]  # mean and deviation of the steps' logits (diffusion.py); empty: all alike, as there
    checkpointing: bool  # compute the UNet's activations twice instead of keeping them
    cache: bool  # keep latents and CLIP tokens on disk: for some ten thousand photos, without random crops
    sheet_guidance: float
    sheet_steps: int


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    hyperlora: HyperLoRASize
    stage: StageConfig
    pulid: PuLIDConfig | None = None
    people: PeopleConfig | None = None
    words: WordsConfig | None = None


class Stage(BesideUNet):
    """The network in training with the frozen UNet that its LoRAs are beside."""

    def __init__(self, network: Network, unet: nn.Module, config: StageConfig, pulid: PuLID | None = None,
                 people: FreeCoefficients | None = None):  # fmt: skip
        super().__init__(unet, network.basis.keys, config)
        self.network, self.pulid, self.people = network, pulid, people
        self.attentions = CrossAttentions(unet) if pulid is not None and pulid.aligns else None

    def train(self, mode: bool = True) -> "Stage":
        """As BesideUNet; PuLID's networks stay as they are."""
        super().train(mode)
        if self.pulid is not None:
            self.pulid.eval()
        return self

    def forward(
        self,
        noisy: Tensor,
        noise: Tensor,
        steps: Tensor,
        weights: Tensor,
        text: Tensor,
        pooled: Tensor,
        time_ids: Tensor,
        base_tokens: Tensor,
        base_weights: Tensor,
        scenarios: Tensor,
        tokens: Tensor | None = None,
        embeds: Tensor | None = None,
        faces: Tensor | None = None,
        who: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """noisy, noise [n, 4, h, w]; steps [n]; weights [n, 1, h, w] of the errors; text [n, t, c]; pooled [n, p];
        time_ids [n, 6]; base_tokens, tokens [n, t, c]; base_weights [n] of the Base-LoRAs; scenarios int [n];
        embeds [n, 512] that the ID branch reads, or who [n], the people's numbers, and shown [n, words], which words their
        coefficients tell of; faces [n, 512] that PuLID's loss asks for."""
        inputs = (noisy, steps, text, pooled, time_ids)
        base = self._base(base_tokens, base_weights * (scenarios != ID_ALONE))
        if not self.config.conditions:
            errors = self._errors(inputs, base, noise, weights)
            return {"reconstruct": errors.mean()}

        told = scenarios == RECONSTRUCT
        held = (~told).nonzero().flatten() if self.attentions is None else torch.arange(len(told), device=told.device)
        target = noise
        if len(held):
            with torch.no_grad(), self._watched() as without:
                kept = self._predict(*_rows(inputs, base, held)).to(noise)
                target = noise.index_put((held,), torch.where(told[held].view(-1, 1, 1, 1), noise[held], kept))
        coefficients = self.network.coefficients(embeds, tokens) if who is None else self.people(who, shown)
        person = self.network.low_rank(coefficients, "id", torch.ones(len(noisy), device=noisy.device))
        both = joined(person, base)
        with self._watched() as with_id:
            errors = self._errors(inputs, both, target, weights)
        names = {RECONSTRUCT: "reconstruct", ID_ALONE: "ID alone", BESIDE_BASE: "beside base"}
        losses = {name: (errors * (scenarios == scenario)).sum() / len(errors) for scenario, name in names.items()}
        if self.config.spread:
            losses["spread"] = self.config.spread * spread_loss(coefficients)
        if self.attentions is not None:
            losses |= self.pulid.alignment(*self.attentions.differences(without, with_id), told)
        if faces is not None:
            rows = told.nonzero().flatten()[: self.pulid.config.pictures]
            (_, _, *conditions), lora = _rows(inputs, both, rows)
            losses |= self.pulid.identity(
                lambda noisy, steps: self._predict((noisy, steps, *conditions), lora).float(), noise[rows], faces[rows]
            )
        return losses

    def _watched(self) -> AbstractContextManager[Seen]:
        return nullcontext({}) if self.attentions is None else self.attentions.watch()

    def _base(self, tokens: Tensor, weights: Tensor) -> dict[str, LowRank]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and "base" in self.config.trains):
            return self.network.low_rank(self.network.base_coefficients(tokens), "base", weights)


def _rows(
    inputs: tuple[Tensor, ...], lora: Mapping[str, LowRank], rows: Tensor
) -> tuple[tuple[Tensor, ...], dict[str, LowRank]]:
    """Some pictures of a batch: `Stage._predict`'s arguments for them."""
    return tuple(x[rows] for x in inputs), {key: LowRank(pair.down[rows], pair.up[rows]) for key, pair in lora.items()}


class StageTask(DenoisingTask):
    """Photos with their captions, noisy, and what the branches read of the same people."""

    def __init__(self, config: Config, photos: "Photos", pipeline: "StableDiffusionXLPipeline", vision: VisionEncoder,
                 network: Network, cache: Path, pulid: PuLID | None = None, known: Mapping[str, Tensor] | None = None):  # fmt: skip
        """`known`: what the stages before it learned of people."""
        network.choose(config.stage.trains)
        self.rows, people = np.arange(len(photos)), None
        self.paces = {"network.basis.": config.stage.bases_pace}
        if PEOPLE in config.stage.conditions:
            words = len(config.words.words) if config.words else 0
            people = FreeCoefficients(network, config.people, photos, config.loop.seed, words)
            if words:
                people.take_over(known or {}, " and ".join(config.stage.start))
                self.paces[WORDS] = config.words.pace
            self.rows = people.rows(photos.people)
            self.paces[CODES] = config.people.pace
        super().__init__(config.stage, photos, pipeline, Stage(network, pipeline.unet, config.stage, pulid, people))
        self.vision, self.words = vision, config.words
        self.others = _other_rows(photos.people)
        self.caches = self._caches(cache) if config.stage.cache else None
        self._centre(network)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rng, n, device, config = draw.rng, draw.batch, draw.device, self.config
        rows = self.rows[rng.integers(len(self.rows), size=n)]
        scenarios = rng.choice(3, size=n, p=config.scenarios)
        triggered = (scenarios == RECONSTRUCT) & bool(config.conditions)
        captions, shown = self._told(rows, draw)
        batch = self._noisy(rows, captions, triggered, draw) | {
            "base_tokens": self._tokens("base", rows, device),
            "base_weights": torch.from_numpy(self._base_weights(scenarios, rng)).to(device),
            "scenarios": torch.from_numpy(scenarios).to(device),
        }
        references = self._references(rows, rng)
        if self.module.pulid is not None and self.module.pulid.likeness is not None:
            batch["faces"] = self._faces(references, device)
        return batch | self._person(references, device) | shown

    def _told(self, rows: np.ndarray, draw: Draw) -> tuple[list[str], dict[str, Tensor]]:
        """What captions say of the photos `rows` [n], and what the words' coefficients do instead."""
        captions = self.photos.captions(rows)
        if self.words is None:
            return captions, {}
        shown = words_shown(captions, self.words.words)
        shown *= torch.from_numpy(draw.rng.random(shown.shape) < self.words.untold)
        return leave_out(captions, self.words.words, shown), {"shown": shown.to(draw.device)}

    def _base_weights(self, scenarios: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Where the Base-LoRA is beside the ID-LoRA in (a); (b) leaves it out anyhow, and (c) is about it."""
        off = (scenarios == RECONSTRUCT) & (rng.random(len(scenarios)) < self.config.base_off)
        return (~off).astype(np.float32)

    def _centre(self, network: Network) -> None:
        """Tell the branches that begin here what their conditions are like on average."""
        rows = np.unique(np.linspace(0, len(self.photos) - 1, CENTRE_PHOTOS).astype(int))
        cpu = torch.device("cpu")
        conditions = {
            "base": lambda: self._tokens("base", rows, cpu),
            "clip": lambda: self._tokens("identity", rows, cpu),
            "embedding": lambda: self._faces(rows, cpu),
        }
        for group in conditions.keys() & set(self.config.trains):
            network.centre(group, conditions[group]())

    def _references(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The photos that the ID branch reads: the pictures' own, or others of the same people."""
        other = rng.random(len(rows)) < self.config.other_photo
        return np.array(
            [rng.choice(self.others[row]) if swap and row in self.others else row
             for row, swap in zip(rows.tolist(), other, strict=True)]
        )  # fmt: skip

    def _person(self, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """What the ID branch reads in this stage."""
        person = {}
        if PEOPLE in self.config.conditions:
            person["who"] = self.module.people.numbers(self.photos.people[rows]).to(device)
        if "clip" in self.config.conditions:
            person["tokens"] = self._tokens("identity", rows, device)
        if "embedding" in self.config.conditions:
            person["embeds"] = self._faces(rows, device)
        return person

    def _faces(self, rows: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(self.photos.embeddings(rows)).to(device)

    def _latents(self, rows: np.ndarray, rng: np.random.Generator, device: torch.device) -> tuple[Tensor, np.ndarray]:
        if self.caches:
            return torch.from_numpy(self.caches["latents"].get(rows)).to(device), self.caches["boxes"].get(rows)
        return super()._latents(rows, rng, device)

    def _tokens(self, kind: str, rows: np.ndarray, device: torch.device) -> Tensor:
        if self.caches:
            return torch.from_numpy(self.caches[kind].get(rows)).to(device)
        return self._see(kind, rows, device)

    def _see(self, kind: str, rows: np.ndarray, device: torch.device) -> Tensor:
        return see(self.photos, self.vision, kind, rows, device)

    def _caches(self, folder: Path) -> dict[str, RowCache]:
        n, side = len(self.photos), self.photos.size // 8

        def device() -> torch.device:
            return self.module.unet.device  # of that moment: the loop has moved it by then

        return {
            "latents": RowCache(
                folder / f"latents_{fingerprint(self.pipeline.vae)}",
                n,
                (4, side, side),
                lambda rows: self._encode(self.photos.pictures(rows)[0], device()).cpu().numpy(),
            ),
            "boxes": RowCache(folder / "boxes", n, (4,), lambda rows: self.photos.pictures(rows)[1] / self.photos.size),
            "identity": token_cache(self.photos, self.vision, "identity", folder, device),
            "base": token_cache(self.photos, self.vision, "base", folder, device),
        }

    def sheet(self) -> Image.Image:
        """Photos, and below each what the model paints of its caption: as it is, with the LoRA alone, with base."""
        rows = spread(self.rows)
        network, device = self.module.network, self.module.unet.device
        captions, ones = self.photos.captions(rows), torch.ones(len(rows), device=device)
        base = network.low_rank(network.base_coefficients(self._tokens("base", rows, device)), "base", ones)
        ways = {"without": (captions, {})}
        if self.config.conditions:
            person = self._person(rows, device)
            if "who" in person:
                coefficients = self.module.people(person["who"])
            else:
                coefficients = network.coefficients(person.get("embeds"), person.get("tokens"))
            lora = network.low_rank(coefficients, "id", ones)
            triggered = [with_trigger(caption) for caption in captions]
            ways |= {"id": (triggered, lora), "both": (triggered, joined(lora, base))}
        else:
            ways["base"] = (captions, base)
        return sheet([self.photos.pictures(rows)[0], *(self._paint(*way) for way in ways.values())])


def make_task(config: Config, sources: Sources, name: str) -> StageTask:
    """The stage on prepared photos (drawn ones, or of `hyperlora prepare`), the base model and the CLIP tower."""
    photos, vision = open_photos(sources.data), VisionEncoder.load(sources.clip)
    if vision.width != config.hyperlora.clip_width:
        raise HyperLoRAError(
            f"The CLIP image tower {sources.clip} makes tokens of {vision.width} channels, but hyperlora.clip_width is "
            f"{config.hyperlora.clip_width}: choose the other tower (--clip) or change the config."
        )
    if wrong_tokens(vision.width, vision.tokens):
        raise HyperLoRAError(
            f"The CLIP image tower {sources.clip} makes {vision.tokens} tokens of a picture, which no loader would take: "
            "choose the ViT-L/14 for 224 pixels (--clip), not the one for 336."
        )
    pipeline = load_pipeline(sources.base, device="cpu")
    network = make_network(config, pipeline.unet, sources.root)
    pulid = make_pulid(config.pulid, pipeline.vae, sources, photos.recognition) if config.pulid is not None else None
    known = people_known(sources.root, config.stage.start) if config.words else None
    return StageTask(config, photos, pipeline, vision, network, sources.data / FEATURES, pulid, known)


def make_network(config: Config, unet: nn.Module, root: Path) -> Network:
    """The network as this stage begins: untrained, or with what the stages before it trained."""
    check(config)
    return start_network(config.hyperlora, config.loop.seed, unet, root, config.stage.start)


def start_network(size: HyperLoRASize, seed: int, unet: nn.Module, root: Path, start: Sequence[str]) -> Network:
    """A network beside `unet` that begins with what the stages `start` (folders in `root`) trained."""
    network = Network(unet_modules(unet.config), size, seed)
    for name in start:
        take_over(network, root / name / CHECKPOINT)
    return network


def people_known(root: Path, start: Sequence[str]) -> dict[str, Tensor]:
    """What the stages `start` (folders in `root`) learned of people and words, by name."""
    values = {}
    for name in start:
        values |= Trained(root / name / CHECKPOINT).values
    return {name: value for name, value in values.items() if name.startswith(f"{PEOPLE}.")}


def check(config: Config) -> None:
    """Raise HyperLoRAError for a config whose parts don't fit together."""
    size, stage = config.hyperlora, config.stage
    if size.conditions not in KINDS or not size.base_rank:
        kinds = " or ".join(str(list(kind)) for kind in KINDS)
        raise HyperLoRAError(f"hyperlora.conditions must be {kinds}, and hyperlora.base_rank at least 1.")
    unknown = [group for group in stage.trains if group not in GROUPS]
    if unknown or not (stage.trains or config.words):
        raise HyperLoRAError(f"stage.trains names {(unknown or ['nothing'])[0]}. Known groups: {', '.join(GROUPS)}.")
    if config.words is not None:
        check_words(config.words, stage.trains)
    if PEOPLE in stage.conditions or config.words is not None:
        check_people(config.people, stage.conditions)
    strange = [condition for condition in stage.conditions if condition not in (*size.conditions, PEOPLE)]
    if strange:
        raise HyperLoRAError(f"stage.conditions names {strange[0]}, which isn't among hyperlora.conditions.")
    read = [condition for condition in stage.conditions if condition != PEOPLE]
    used = {"base", *read, *(("bases",) if stage.conditions else ()), *(("trunk",) if read else ())}
    idle = [group for group in stage.trains if group not in used]
    if idle:
        raise HyperLoRAError(
            f"stage.trains names {idle[0]}, which nothing goes through with stage.conditions {list(stage.conditions)}."
        )
    check_weights(stage.weights, "stage")
    if stage.spread and config.loop.batch <= size.bases:
        raise HyperLoRAError(
            f"stage.spread looks at how people differ in hyperlora.bases = {size.bases} directions, which loop.batch = "
            f"{config.loop.batch} pictures can't show: take more pictures than bases, or spread = 0.0."
        )
    if config.pulid is not None:
        check_pulid(config.pulid, stage.conditions)
    if min(stage.scenarios) < 0 or abs(sum(stage.scenarios) - 1) > 1e-6:
        raise HyperLoRAError(f"stage.scenarios are chances and must sum to 1, not {list(stage.scenarios)}.")


def take_over(network: Network, checkpoint: Path) -> None:
    """Copy what a stage trained (its moving average, where it kept one) into `network`."""
    own = dict(network.named_parameters(prefix="network"))
    for name, value in Trained(checkpoint).values.items():
        if name.startswith(f"{PEOPLE}."):
            continue  # nobody's but the training people's
        if name not in own or own[name].shape != value.shape:
            raise HyperLoRAError(
                f"{checkpoint} was trained with other sizes ({name} differs): give all stages the same [hyperlora]."
            )
        own[name].data.copy_(value)


def export(sources: Sources, name: str, folder: Path) -> Path:
    """Write the checkpoint folder of the stage `name` and of those before it; returns it."""
    checkpoint = sources.root / name / CHECKPOINT
    config = Trained(checkpoint).config(Config)
    if PEOPLE in config.stage.conditions:
        raise HyperLoRAError(
            f"{checkpoint} reads no photos: fit a reader to it (hyperlora train id-reader) and export that."
        )
    network = make_network(config, load_pipeline(sources.base, device="cpu").unet, sources.root)
    take_over(network, checkpoint)
    for condition in set(config.hyperlora.conditions) - set(config.stage.conditions):
        network.silence(condition)
    network.save(folder, open_photos(sources.data).recognition)
    return folder


def _other_rows(people: np.ndarray) -> dict[int, np.ndarray]:
    """Row -> the person's other rows, for people of whom there are several."""
    order = np.argsort(people, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(people[order])) + 1)
    return {int(row): group[group != row] for group in groups if len(group) > 1 for row in group}
