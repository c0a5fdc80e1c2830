"""Files appear whole or not at all; and the endings of those that are photos."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import HyperLoRAError

if TYPE_CHECKING:
    from torch import Tensor

ASIDE = ".part"  # ending of files that are being written
# endings of photos; formats that can't be read everywhere are listed too, so that such files are reported, not passed over
PICTURES = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "heic", "heif")


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed to `path` when the block ends well, removed when it doesn't.

    Raises HyperLoRAError when the folder can't be written to or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=ASIDE, dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        # mkstemp makes files private; the finished file gets the permissions any new file would have
        aside.chmod(0o666 & ~_umask())
        os.replace(aside, path)
    except OSError as error:
        raise HyperLoRAError(
            f"Can't write {path}: {error.strerror or error}. Free some space or choose another folder; nothing was changed."
        ) from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def first_written(path: Path) -> Iterator[Path]:
    """As `written_aside`; but where another process was first its file stays, which others may have mapped by now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=ASIDE, dir=path.parent)) / path.name
    try:
        yield aside
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        except OSError:  # no links there
            if not path.exists():
                os.replace(aside, path)
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; renamed to `folder` when the block ends well, removed when it doesn't.

    Where another process was first, its folder stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=ASIDE, dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path, names: str) -> None:
    """Delete what `written_aside` left there, of files whose names match, when its process was killed."""
    for aside in folder.glob(f".{names}.*{ASIDE}"):
        aside.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """safetensors' save_file, with a full disk as the OSError that it is."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


@contextmanager
def free_name(names: Iterable[Path]) -> Iterator[Path]:
    """Yield the first of `names` that doesn't exist, to be written: an empty file keeps it from other processes.

    If the block fails that file goes. Raises HyperLoRAError when the folder can't be written to.
    """
    for path in names:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            path.open("x").close()
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            yield path
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return


def numbered(path: Path) -> Iterator[Path]:
    """`path`, then with _2, _3, ... behind the stem."""
    yield path
    for number in count(2):
        yield path.with_stem(f"{path.stem}_{number}")


def _cannot_write(path: Path, error: OSError) -> HyperLoRAError:
    return HyperLoRAError(f"Can't write {path}: {error.strerror or error}. Choose a folder that you may write to.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
