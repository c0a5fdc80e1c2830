"""Catalogued weights into a models folder: resumed after any interruption, verified, renamed into place when whole.

Plain HTTPS with Range requests, for the hub's files as for others: huggingface_hub 2 throws a partial file away when it
is interrupted, and 3 GB on a bad line then start again at 0. The hub tells size and SHA-256 of a file in the
headers of its redirect (X-Linked-Size, X-Linked-Etag).
"""

import hashlib
import http.client
import os
import re
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from .archive import unpack
from .catalog import CatalogFile, CatalogItem, pick, readable
from .errors import HyperLoRAError
from .folders import search_folders
from .weights_check import check_file

HUB = "https://huggingface.co"
BLOCK = 1 << 20
SECONDS_OF_SILENCE = 30

# (what is being done, bytes done, bytes in all or None); called after every block. Raising from it stops the download,
# which the next call goes on with.
Progress = Callable[[str, int, int | None], None]


class Fetched(NamedTuple):
    """Where a catalogued file lies now, and whether this call brought it."""

    file: CatalogFile
    path: Path
    fresh: bool


class _Published(NamedTuple):
    size: int | None
    sha256: str | None


class _ConnectionLost(Exception):
    pass


def download(item_names: Iterable[str], models_folder: str | Path, progress: Progress | None = None) -> list[Fetched]:
    """Bring the named catalogue items (none: those for the first picture) into ComfyUI's `models_folder`.

    What lies there whole already, also where the authors' pack keeps it, is left alone. Raises HyperLoRAError with the
    address and the folder, so that the file can be fetched by hand, when there is no connection, the disk is too
    small, or what arrives isn't the published file.
    """
    items = pick(item_names)
    models = Path(models_folder)
    if not models.is_dir():
        raise HyperLoRAError(f"There is no folder {models}. Make it first, or name ComfyUI's models folder.")
    folders = search_folders(models)
    wanted = [(item, *pair) for item in items for pair in zip(item.files, item.find(folders), strict=True)]
    for item, file, found in wanted:
        if not found and file.url is None:
            raise HyperLoRAError(
                f"{item.title} can only be fetched in a browser: download it from {item.page} and save it as "
                f"{models / file.path}."
            )
    missing = [file for _, file, found in wanted if not found]
    for folder, needed in by_disk(
        (_part(file, models), file.approximate_size - _size(_part(file, models))) for file in missing
    ).items():
        _require_space(folder, needed)
    return [
        Fetched(file, found or _fetch(item, file, models, progress), fresh=not found) for item, file, found in wanted
    ]


def _part(file: CatalogFile, models: Path) -> Path:
    # the ending keeps it out of ComfyUI's lists of models
    target = models / file.path
    return target.with_name(f".{target.name}{'.zip' if file.members else ''}.part")


def _fetch(item: CatalogItem, file: CatalogFile, models: Path, progress: Progress | None) -> Path:
    target, part = models / file.path, _part(file, models)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        published = _transfer_whole(item, file, target, part, progress)
        _verify(file, part, published, progress)
        if file.members:
            unpack(part, target)
            part.unlink()
            file.check(target)
        else:
            os.replace(part, target)
    except OSError as error:
        raise HyperLoRAError(
            f"Can't write {target}: {error.strerror or error}. Free some space or choose another folder; "
            "what has arrived is kept."
        ) from error
    return target


def _transfer_whole(
    item: CatalogItem, file: CatalogFile, target: Path, part: Path, progress: Progress | None
) -> _Published:
    while True:
        before = _size(part)
        try:
            return _transfer(file, part, progress)
        except _ConnectionLost as error:
            # as long as every attempt brings something it is worth going on
            if _size(part) > before:
                continue
            by_hand = f"unpack it into {target}" if file.members else f"save it as {target}"
            raise HyperLoRAError(
                f"Can't fetch {file.url} ({error}). Run the same command again, it goes on where it stopped; or fetch "
                f"it with a browser and {by_hand}. It belongs to {item.title}, {item.page}."
            ) from error


def _transfer(file: CatalogFile, part: Path, progress: Progress | None) -> _Published:
    done = _size(part)
    if file.size is not None and done >= file.size:
        return _Published(file.size, file.sha256)
    headers = {"User-Agent": "hyperlora", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    redirects = _LinkedHeaders()
    request = urllib.request.Request(_address(file.url), headers=headers)
    try:
        with urllib.request.build_opener(redirects).open(request, timeout=SECONDS_OF_SILENCE) as response:
            published = _published(redirects, response, done)
            _refuse_other(file, response, published)
            if response.status != http.client.PARTIAL_CONTENT:
                # the server sends the whole file whatever was asked
                done = 0
            _require_space(part.parent, (published.size or 0) - done)
            with part.open("r+b" if done else "wb") as out:
                out.seek(done)
                while block := _read(response):
                    out.write(block)
                    done += len(block)
                    if progress:
                        progress(part.name[1:-5], done, published.size)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _after_the_end(file, part, error, redirects, progress)
        raise _ConnectionLost(f"the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _ConnectionLost(str(getattr(error, "reason", error) or type(error).__name__)) from error
    if published.size is not None and done < published.size:
        raise _ConnectionLost(f"the connection ended after {done} of {published.size} bytes")
    return published


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK)
    except OSError as error:  # whatever it says: the disk has no part in it
        raise _ConnectionLost(error.strerror or str(error) or type(error).__name__) from error


class _LinkedHeaders(urllib.request.HTTPRedirectHandler):
    """Follows redirects and remembers what the hub says of the file that it redirects to."""

    def __init__(self) -> None:
        self.size: str | None = None
        self.etag: str | None = None

    def remember(self, headers: http.client.HTTPMessage) -> None:
        self.size = headers.get("X-Linked-Size", self.size)
        self.etag = headers.get("X-Linked-Etag", self.etag)

    def redirect_request(self, request, response, code, message, headers, address):
        """Called by urllib for every redirect."""
        self.remember(headers)
        return super().redirect_request(request, response, code, message, headers, address)


def _published(redirects: _LinkedHeaders, response: http.client.HTTPResponse, done: int) -> _Published:
    redirects.remember(response.headers)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status == http.client.PARTIAL_CONTENT and (span is None or int(span[1]) != done):
        raise _ConnectionLost("the server sends another part of the file than the one asked for")
    length = response.headers.get("Content-Length")
    size = redirects.size or (span[2] if span else length)
    return _Published(int(size) if size else None, _sha256(redirects.etag))


def _after_the_end(
    file: CatalogFile,
    part: Path,
    error: urllib.error.HTTPError,
    redirects: _LinkedHeaders,
    progress: Progress | None,
) -> _Published:
    """Nothing is left to send: the part is whole, or it is longer than the file and began as another one."""
    redirects.remember(error.headers)
    if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
        return _Published(int(redirects.size or _size(part)), _sha256(redirects.etag))
    part.unlink()
    return _transfer(file, part, progress)


def _refuse_other(file: CatalogFile, response: http.client.HTTPResponse, published: _Published) -> None:
    if response.headers.get_content_type() == "text/html":
        raise HyperLoRAError(
            f"{file.url} answers with a web page, not with the file. Open it in a browser to see why: a sign-in of "
            "your network, or a file that has moved."
        )
    for known, told in ((file.size, published.size), (file.sha256, published.sha256)):
        if known is not None and told is not None and known != told:
            raise HyperLoRAError(
                f"{file.url} isn't the published file any more: {told} instead of {known}. Update the pack, which "
                "brings a newer catalogue."
            )


def _verify(file: CatalogFile, part: Path, published: _Published, progress: Progress | None) -> None:
    size, sha256 = file.size or published.size, file.sha256 or published.sha256
    problem = None
    if size is not None and _size(part) != size:
        problem = f"{_size(part)} bytes arrived instead of {size}."
    elif sha256 and _digest(part, progress) != sha256:
        problem = "its SHA-256 isn't the published one."
    elif not file.members:
        try:
            check_file(part, kind=Path(file.path).suffix)
        except HyperLoRAError as error:
            problem = str(error)
    if problem:
        part.unlink()
        raise HyperLoRAError(f"{file.url} arrived damaged: {problem} It was deleted; run the same command again.")


def _digest(path: Path, progress: Progress | None) -> str:
    digest, done, size = hashlib.sha256(), 0, _size(path)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            if progress:
                progress(f"checking {path.name[1:-5]}", done, size)
    return digest.hexdigest()


def by_disk(files: Iterable[tuple[Path, int]]) -> dict[Path, int]:
    """A folder on each disk -> bytes that are to come there, of files (path, bytes): folders of models are often links."""
    folders: dict[int, Path] = {}
    needed: dict[Path, int] = {}
    for path, size in files:
        there = next(parent for parent in path.absolute().parents if parent.is_dir())
        folder = folders.setdefault(there.stat().st_dev, there)
        needed[folder] = needed.get(folder, 0) + size
    return needed


def _require_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise HyperLoRAError(
            f"{folder} has {readable(free)} free, {readable(wanted)} are needed. "
            "Free some space or choose another folder."
        )


def _address(url: str) -> str:
    """The hub's mirror where HF_ENDPOINT names one, as huggingface_hub does."""
    endpoint = os.environ.get("HF_ENDPOINT")
    return endpoint.rstrip("/") + url.removeprefix(HUB) if endpoint and url.startswith(HUB) else url


def _sha256(etag: str | None) -> str | None:
    found = re.fullmatch(r'(?:W/)?"?([0-9a-f]{64})"?', etag or "")
    return found and found[1]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
