"""HyperLoRA checkpoints on disk: the published folder, or one `.safetensors` with all parts.

Folder: `hyper_lora_modules.json` (which layers, in which order) and a `.safetensors` for each part. Single file: the
same tensors behind the part's name (`resampler.proj_in.weight`, `hyper_lora_modules.0.to_q.id_down_basis`, ...), the
JSON as metadata `hyper_lora_modules`. Nothing else is asked of anybody: every size stands in a tensor's shape.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .basis import PROJECTIONS, VECTORS_PER_MODULE, Basis, scale_name
from .eight_bit import Progress, is_eight_bit, quantize_basis
from .errors import HyperLoRAError, cli
from .files import write_tensors, written_aside
from .hyperlora import HyperLoRA
from .resampler import HEAD_SIZE, IDProjector, Resampler, ResamplerConfig
from .weights_check import check_safetensors

MODULES = "hyper_lora_modules"
PARTS = (MODULES, "resampler", "id_projector", "base_resampler")  # the first two are in every checkpoint
CHECKPOINT_ID = "hyperlora.checkpoint_id"  # metadata that our own training writes into every part
# metadata of a basis in 8 bits: that of the checkpoint it was made from, whose identities stay valid
FINGERPRINT = "hyperlora.fingerprint"

Shapes = dict[str, tuple[int, ...]]


@dataclass
class Source:
    """Where a checkpoint's parts lie, known from the files' headers alone."""

    path: Path
    modules: dict[str, dict]
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)  # part -> file, prefix of its tensors there
    shapes: dict[str, Shapes] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The part's tensors, memory-mapped."""
        file, prefix = self.files[part]
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(prefix + name) for name in self.shapes[part]}


def load_hyperlora(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    operations=torch.nn,
    *,
    eight_bit: bool = False,
    progress: Progress | None = None,
) -> HyperLoRA:
    """Load a checkpoint from its folder or from a single `.safetensors`; fp16, bf16, fp32 and 8-bit files alike.

    `dtype` is the precision of the computation. The encoder is converted to it; the basis (the 3 GB) stays mapped from
    the file in the file's precision when `device` is the CPU. `operations` gives Linear and LayerNorm (torch.nn, or
    the host's, which casts weights as its memory management needs).
    `eight_bit`: hold the basis in 8 bits, in memory of its own (1.5 GB), unless the file has it so (`hyperlora quantize`),
    which stays mapped; `progress(tensors done, tensors)` meanwhile, which may raise to stop. Identities stay valid.
    Raises HyperLoRAError for anything that is missing, broken, mixed up or not a HyperLoRA checkpoint.
    """
    source = find_parts(Path(path))
    _check_consistency(source)
    parts = {part: source.tensors(part) for part in source.files}
    fingerprint = _fingerprint(list(source.modules), parts)
    if is_eight_bit(parts[MODULES]):
        _check_scales(source, parts[MODULES])
        fingerprint = source.metadata.get(FINGERPRINT, fingerprint)
    elif eight_bit:
        parts[MODULES] = quantize_basis(parts[MODULES], progress)
    return assemble(
        list(source.modules),
        parts,
        device,
        dtype,
        operations,
        name=source.path.stem if source.path.is_file() else source.path.name,
        fingerprint=fingerprint,
        metadata=source.metadata,
        files={part: file for part, (file, _) in source.files.items()},
    )


def assemble(
    module_names: list[str],
    parts: Mapping[str, Mapping[str, Tensor]],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    operations=torch.nn,
    *,
    name: str = "HyperLoRA",
    fingerprint: str = "",
    metadata: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
) -> HyperLoRA:
    """A HyperLoRA from a checkpoint's tensors: part -> name -> tensor.

    `fingerprint`: by default the tensors' own. `files`: what errors call a part.
    """
    factory = {"device": "meta", "dtype": dtype}

    def filled(module: torch.nn.Module, part: str) -> torch.nn.Module:
        state = {name: tensor.to(device, dtype) for name, tensor in parts[part].items()}
        missing, surplus = module.load_state_dict(state, strict=False, assign=True)
        if missing or surplus:
            raise HyperLoRAError(
                f"{(files or {}).get(part, name)} doesn't have the tensors of a HyperLoRA {part}: "
                f"missing {missing[:3]}, unknown {surplus[:3]}. Download it again."
            )
        return module.eval().requires_grad_(False)

    def shapes(part: str) -> Shapes:
        return {name: tuple(tensor.shape) for name, tensor in parts[part].items()}

    def resampler(part: str) -> Resampler:
        return filled(Resampler(ResamplerConfig.from_tensors(shapes(part)), operations, **factory), part)

    return HyperLoRA(
        resampler("resampler"),
        Basis({name: tensor.to(device) for name, tensor in parts[MODULES].items()}, module_names),
        filled(IDProjector.from_tensors(shapes("id_projector"), operations, **factory), "id_projector")
        if "id_projector" in parts
        else None,
        resampler("base_resampler") if "base_resampler" in parts else None,
        name=name,
        fingerprint=fingerprint or _fingerprint(module_names, parts),
        dtype=dtype,
        metadata=metadata,
    )


def save_hyperlora(hyper: HyperLoRA, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write `hyper` as one `.safetensors` (when `path` ends so) or as the published folder form, in its precision.

    `metadata` goes into every file, beside an id that tells parts of two checkpoints apart.
    """
    path = Path(path)
    modules = {
        name: {
            "hidden_size": hyper.basis.tensor(i, "to_q", "id", "down").shape[1],
            "cross_attention_dim": hyper.basis.tensor(i, "to_k", "id", "down").shape[1]
            if name.endswith("attn2")
            else None,
        }
        for i, name in enumerate(hyper.module_names)
    }
    parts = {MODULES: {name.replace("/", "."): tensor.data for name, tensor in hyper.basis.named_parameters()}}
    parts |= {part: module.state_dict() for part, module in hyper.encoder.items()}
    parts = {part: {name: t.contiguous() for name, t in tensors.items()} for part, tensors in parts.items()}
    metadata = {**hyper.metadata, **(metadata or {}), CHECKPOINT_ID: _fingerprint(list(modules), parts)}
    if hyper.basis.eight_bit:
        metadata[FINGERPRINT] = hyper.fingerprint
    _write(path, modules, parts, metadata)


def write_eight_bit(path: str | Path, target: str | Path, progress: Progress | None = None) -> None:
    """Write the checkpoint at `path` to `target` with its basis in 8 bits, in either form, the rest as it is.

    `progress(tensors done, tensors)` may raise to stop. Raises HyperLoRAError as `load_hyperlora`, for a checkpoint that is
    in 8 bits already, and for one that would be replaced by itself.
    """
    path, target = Path(path), Path(target)
    source = find_parts(path)
    _check_consistency(source)
    if path.resolve() == target.resolve():
        raise HyperLoRAError(f"{target} is the checkpoint itself, which stays: choose another name.")
    parts = {part: source.tensors(part) for part in source.files}
    if is_eight_bit(parts[MODULES]):
        raise HyperLoRAError(f"{path} has its basis in 8 bits already: use it as it is.")
    names = list(source.modules)
    fingerprint = _fingerprint(names, parts)
    parts[MODULES] = quantize_basis(parts[MODULES], progress)
    metadata = {**source.metadata, FINGERPRINT: fingerprint, CHECKPOINT_ID: _fingerprint(names, parts)}
    _write(target, source.modules, parts, metadata)


def _write(path: Path, modules: dict[str, dict], parts: dict[str, dict[str, Tensor]], metadata: dict[str, str]) -> None:
    """One file, when `path` ends so, or a folder."""
    if path.suffix == ".safetensors":
        merged = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        with written_aside(path) as aside:
            write_tensors(aside, merged, {**metadata, MODULES: json.dumps(modules)})
        return
    with ExitStack() as stack:  # renamed together, after the last is whole
        aside = stack.enter_context(written_aside(path / f"{MODULES}.json"))
        aside.write_text(json.dumps(modules, indent=2), encoding="utf-8")
        for part, tensors in parts.items():
            write_tensors(stack.enter_context(written_aside(path / f"{part}.safetensors")), tensors, metadata)


def find_parts(path: Path) -> Source:
    """Read the headers only: which parts are there, and their shapes. Raises HyperLoRAError as `load_hyperlora`."""
    if path.is_dir():
        return _find_in_folder(path)
    if not path.exists():
        raise HyperLoRAError(f"{path} doesn't exist. Choose a HyperLoRA folder, or run: {cli('download')}")
    if path.stem in PARTS and path.suffix in (".safetensors", ".json"):
        raise HyperLoRAError(f"{path} is one part of a HyperLoRA checkpoint: choose its folder, {path.parent}.")
    header = check_safetensors(path)
    if MODULES not in header.metadata:
        raise HyperLoRAError(
            f"{path} is not a HyperLoRA checkpoint: its metadata has no {MODULES}. "
            "Choose the folder of a published checkpoint, or a file written by save_hyperlora."
        )
    source = Source(path, _parse_modules(header.metadata[MODULES], path), metadata=header.metadata)
    for part in PARTS:
        shapes = {n.removeprefix(f"{part}."): s for n, (_, s) in header.tensors.items() if n.startswith(f"{part}.")}
        if shapes:
            source.files[part], source.shapes[part] = (path, f"{part}."), shapes
    for part in PARTS[:2]:
        if part not in source.files:
            raise HyperLoRAError(
                f"{path} has no tensors of the part {part}: it isn't whole. Download or save it again."
            )
    return source


def _find_in_folder(folder: Path) -> Source:
    listing = folder / f"{MODULES}.json"
    if not listing.exists():
        deeper = sorted(p.parent for p in folder.glob(f"*/{MODULES}.json"))
        remedy = f"It is one level deeper: choose {deeper[0]}." if deeper else f"Run: {cli('download')}"
        raise HyperLoRAError(f"{folder} is not a HyperLoRA checkpoint: it has no {MODULES}.json. {remedy}")
    try:
        text = listing.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HyperLoRAError(f"{listing} can't be read ({error}). Download it again.") from error
    source = Source(folder, _parse_modules(text, listing))
    ids = {}
    for part in PARTS:
        file = folder / f"{part}.safetensors"
        if not file.exists():
            if part in PARTS[:2]:
                raise HyperLoRAError(f"{folder} has no {file.name}: the checkpoint isn't whole. Run: {cli('download')}")
            continue
        header = check_safetensors(file)
        source.files[part] = (file, "")
        source.shapes[part] = {name: shape for name, (_, shape) in header.tensors.items()}
        source.metadata |= header.metadata
        ids[header.metadata.get(CHECKPOINT_ID)] = file.name
    if len(ids) > 1:
        raise HyperLoRAError(
            f"{folder} mixes parts of different checkpoints: {' and '.join(sorted(ids.values()))} "
            "don't belong together. Put the files of one checkpoint there."
        )
    return source


def _parse_modules(text: str, origin: Path) -> dict[str, dict]:
    try:
        modules = json.loads(text)
        names = [(name, spec["hidden_size"], spec["cross_attention_dim"]) for name, spec in modules.items()]
    except (json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
        raise HyperLoRAError(
            f"{origin} doesn't list attention modules (name, hidden_size, cross_attention_dim). Download it again."
        ) from error
    if not names:
        raise HyperLoRAError(f"{origin} lists no attention modules. Download it again.")
    return modules


def _check_consistency(source: Source) -> None:
    """Every number that two parts share must agree, or parts of two checkpoints are mixed."""
    basis, resampler = source.shapes[MODULES], source.shapes["resampler"]
    branches = ("id", "base") if "base_resampler" in source.files else ("id",)
    size = None
    for name, expected in _basis_shapes(source, branches):
        shape = basis.get(name)
        if shape is None:
            raise _mixed(source, MODULES, f"it has no {name}, which {MODULES}.json asks for")
        size = size or shape[0]
        if shape[0] != size or any(
            want is not None and want != have for want, have in zip(expected, shape[1:], strict=True)
        ):
            raise _mixed(source, MODULES, f"{name} is {list(shape)}, which doesn't fit {MODULES}.json")
    for part in ("resampler", "base_resampler"):
        if part not in source.files:
            continue
        try:
            config = ResamplerConfig.from_tensors(source.shapes[part])
        except (KeyError, IndexError, ValueError) as error:
            raise HyperLoRAError(
                f"{source.files[part][0]} is not a HyperLoRA resampler: {error}. Download it again."
            ) from error
        latents = VECTORS_PER_MODULE * len(source.modules)
        if config.latents != latents:
            raise _mixed(
                source, part, f"it makes {config.latents} vectors, but {len(source.modules)} modules need {latents}"
            )
        if config.out != size:
            raise _mixed(source, part, f"it makes {config.out} coefficients, but the basis has {size} matrices")
        if config.inner % HEAD_SIZE:
            raise HyperLoRAError(
                f"{source.files[part][0]} has {config.inner} attention channels, not a multiple of {HEAD_SIZE}."
            )
    two_conditions = "proj_in_2.weight" in resampler
    if two_conditions and "id_projector" not in source.files:
        raise HyperLoRAError(
            f"{source.path} has no id_projector.safetensors, but its resampler reads two conditions: "
            f"the checkpoint isn't whole. Run: {cli('download')}"
        )
    if "id_projector" in source.files:
        shapes = source.shapes["id_projector"]
        width = resampler["proj_in.weight"][1]
        if "2.weight" not in shapes or "0.weight" not in shapes or shapes["2.weight"] != (width,):
            raise _mixed(source, "id_projector", f"its tokens don't have the {width} channels that the resampler reads")


def _basis_shapes(source: Source, branches: tuple[str, ...]) -> Iterator[tuple[str, tuple[int | None, int | None]]]:
    """Each basis tensor that must be there with its last two sizes; None: the rank, which only the tensor knows."""
    for i, spec in enumerate(source.modules.values()):
        hidden, context = spec["hidden_size"], spec["cross_attention_dim"] or spec["hidden_size"]
        for projection in PROJECTIONS:
            wide = context if projection in ("to_k", "to_v") else hidden
            for branch in branches:
                yield f"{i}.{projection}.{branch}_down_basis", (wide, None)
                yield f"{i}.{projection}.{branch}_up_basis", (None, hidden)


def _check_scales(source: Source, basis: Mapping[str, Tensor]) -> None:
    """In 8 bits all of the basis, and each with its scale, or it is no basis of ours."""
    for name, tensor in basis.items():
        if name.endswith("_basis"):
            scale = basis.get(scale_name(name))
            if tensor.dtype != torch.int8 or scale is None or scale.shape != tensor.shape[1:]:
                raise HyperLoRAError(
                    f"{source.files[MODULES][0]} has a basis in 8 bits, but {scale_name(name)} doesn't fit {name}. "
                    f"Write it again: {cli('quantize')}"
                )


def _mixed(source: Source, part: str, why: str) -> HyperLoRAError:
    return HyperLoRAError(
        f"{source.files[part][0]} doesn't fit the other parts of {source.path}: {why}. "
        "Parts of two checkpoints are mixed; download one of them whole."
    )


def _fingerprint(module_names: list[str], parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """16 hex digits that tell checkpoints apart without reading 3 GB: names, shapes, and a few values of every tensor."""
    digest = hashlib.sha256(json.dumps(module_names).encode())
    for part in PARTS:
        for name in sorted(parts.get(part, ())):
            tensor = parts[part][name]
            sample = tensor.flatten()[: 4 * 64].float().cpu()  # within one page of the mapped file
            digest.update(f"{part}.{name}{list(tensor.shape)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
