"""Unpacking a zip from the internet: only plain files, only below the folder, only of a sane size."""

import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path

from .errors import HyperLoRAError

MOST_FILES = 1000
MOST_BYTES = 4 * 1024**3
# weights hardly compress: a member that grows more than this is a bomb
MOST_GROWTH = 100
BLOCK = 1 << 20


def unpack(archive: str | Path, folder: str | Path) -> list[Path]:
    """Unpack a zip into `folder`, which is made if need be; returns the files' paths.

    A leading folder that all members share is dropped, so that `antelopev2/antelopev2/x.onnx` becomes `x.onnx`.
    Everything is unpacked aside and then renamed, file by file. Raises HyperLoRAError, before anything is written,
    for a path that climbs out, an absolute path, a drive letter, a symbolic link, a device, an encrypted member or a
    zip bomb; and, leaving `folder` as it was, for a damaged archive or a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _refuse_bombs(archive, members)
            targets = _without_shared_folders([_safe_parts(archive, member) for member in members])
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as aside:
                for member, parts in zip(members, targets, strict=True):
                    target = Path(aside, *parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, BLOCK)
                finished = [folder.joinpath(*parts) for parts in targets]
                for parts, path in zip(targets, finished, strict=True):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(aside, *parts), path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise HyperLoRAError(f"{archive} is damaged ({error}). Delete it and download it again.") from error
    except OSError as error:
        raise HyperLoRAError(
            f"Can't unpack {archive} into {folder}: {error.strerror or error}. "
            "Free some space or choose another folder."
        ) from error
    return finished


def _refuse_bombs(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if not members:
        raise HyperLoRAError(f"{archive} holds no files. Delete it and download it again.")
    # zipfile never yields more than the size that a member declares, so the declared sizes can be relied on
    total = sum(member.file_size for member in members)
    if len(members) > MOST_FILES or total > MOST_BYTES or total > MOST_GROWTH * archive.stat().st_size:
        raise HyperLoRAError(
            f"{archive} would unpack to {len(members)} files and {total} bytes, which no face pack needs: refused. "
            "Delete it and download it from its published address."
        )


def _safe_parts(archive: Path, member: zipfile.ZipInfo) -> tuple[str, ...]:
    # zipfile turns the system's separator into "/"; a backslash separates on Windows only, so treat it so everywhere
    name = member.filename.replace("\\", "/")
    mode = member.external_attr >> 16
    special = stat.S_IFMT(mode) not in (0, stat.S_IFREG)
    parts = tuple(name.split("/"))
    if special or member.flag_bits & 1 or ":" in name or {"", ".", ".."} & set(parts) or re.search(r"[\0-\x1f]", name):
        raise HyperLoRAError(
            f"{archive} holds {member.filename!r}, which isn't a plain, unencrypted file inside the archive's own "
            "folder: refused. Delete it and download it from its published address."
        )
    return parts


def _without_shared_folders(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    while all(len(parts) > 1 for parts in paths) and len({parts[0] for parts in paths}) == 1:
        paths = [parts[1:] for parts in paths]
    return paths
