"""One ComfyUI server over HTTP and WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import HyperLoRAError
from ..packages import require
from .results import RemoteFile, refusal
from .workflow import Workflow

aiohttp = require("aiohttp", "Talking to a ComfyUI server")

FOLDER = "hyperlora_queue"  # for our photos, in the server's input folder
_GATEWAY = (502, 503, 504)  # a proxy answers for a server that is away
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=15, sock_read=120)  # s; a server that loads a model answers late


class AwayError(Exception):
    """The server doesn't answer now; it may come back."""


class RefusedError(Exception):
    """The server doesn't accept this workflow or photo; its own words."""


class UnfitError(Exception):
    """The server can't be used for this queue: a sentence."""


class GoneError(Exception):
    """The server answers, but no longer has the file."""


@asynccontextmanager
async def open_session() -> AsyncIterator["aiohttp.ClientSession"]:
    """What all clients share."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        yield session


def server_url(text: str) -> str:
    """The address as people write it, completed. Raises HyperLoRAError."""
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in url
    except ValueError:  # the port
        fits = False
    if not fits:
        raise HyperLoRAError(f'"{text}" isn\'t the address of a server: write it like http://127.0.0.1:8188.')
    return url


class Client:
    """The API of a server, as far as a queue needs it. Methods raise AwayError, or UnfitError if it is no ComfyUI."""

    def __init__(self, url: str, session: "aiohttp.ClientSession", client_id: str):
        self.url, self.client_id, self._session = url, client_id, session

    async def queue(self) -> tuple[dict[str, str], dict[str, str]]:
        """What runs and what waits: prompt id -> client id."""
        answer = await self._json("GET", "/queue")
        running, pending = (
            {item[1]: item[3].get("client_id", "") for item in answer[part]}
            for part in ("queue_running", "queue_pending")
        )
        return running, pending

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The entry of a prompt that has ended."""
        return (await self._json("GET", f"/history/{prompt_id}")).get(prompt_id)

    async def send(self, workflow: Workflow, prompt_id: str) -> None:
        """Queue a workflow. Raises RefusedError."""
        body = {
            "prompt": workflow,
            "prompt_id": prompt_id,
            "client_id": self.client_id,
            "extra_data": {"preview_method": "none"},  # nobody looks at previews
        }
        answer = await self._json("POST", "/prompt", json=body)
        if answer.get("node_errors"):  # it was accepted without some of its outputs
            await self.cancel([prompt_id])
            raise RefusedError(refusal(answer))

    async def upload(self, path: str, name: str) -> str:
        """Upload a photo; answers what Load Image calls it.

        The server keeps what it has: the same picture under the same name is stored once, and another one gets another name.
        Raises OSError when the photo can't be read, RefusedError when the server doesn't take it.
        """
        form = aiohttp.FormData()
        form.add_field("image", Path(path).read_bytes(), filename=name, content_type="application/octet-stream")
        form.add_field("subfolder", FOLDER)
        form.add_field("type", "input")
        try:
            answer = await self._json("POST", "/upload/image", data=form)
        except RefusedError as error:
            raise RefusedError(
                f"{path} isn't taken by {self.url} ({error}): give a smaller file, or let the server take larger ones "
                "(ComfyUI's --max-upload-size, or the proxy's limit)."
            ) from error
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    async def view(self, file: RemoteFile) -> bytes:
        """A file's content. Raises GoneError."""
        return await self._request("GET", "/view", params=file._asdict())

    async def cancel(self, prompt_ids: list[str]) -> None:
        """Take prompts from the queue, and stop the one that runs; nobody else's."""
        await self._request("POST", "/queue", json={"delete": prompt_ids})
        running, _ = await self.queue()
        for prompt_id in running.keys() & set(prompt_ids):
            await self._request("POST", "/interrupt", json={"prompt_id": prompt_id})

    async def clear(self) -> int:
        """Cancel everything of this client's, also of an earlier process; returns how many prompts that were."""
        cancelled: set[str] = set()
        while True:  # what waited may have begun to run meanwhile
            running, pending = await self.queue()
            ours = {prompt for prompt, client in (running | pending).items() if client == self.client_id}
            if ours <= cancelled and not ours & pending.keys():
                return len(cancelled)
            await self.cancel(list(ours - cancelled | ours & pending.keys()))
            cancelled |= ours

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The server's messages to this client, until it goes away."""
        address = f"{self.url}/ws?clientId={self.client_id}"
        try:
            socket = await self._session.ws_connect(address, heartbeat=30, max_msg_size=0)
        except aiohttp.WSServerHandshakeError as error:
            if error.status in _GATEWAY:
                raise AwayError(f"HTTP {error.status}") from error
            raise UnfitError(
                f"{self.url} opens no websocket (HTTP {error.status}): is it a ComfyUI server? A proxy must let /ws through."
            ) from error
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise AwayError(_why(error)) from error
        async with socket:
            yield _messages(socket)

    async def _json(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        content = await self._request(method, path, **body)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UnfitError(f"{self.url}{path} doesn't answer like a ComfyUI server: check the address.")
        return answer

    async def _request(self, method: str, path: str, **body: Any) -> bytes:
        try:
            async with self._session.request(method, self.url + path, **body) as answer:
                content, status = await answer.read(), answer.status
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise AwayError(_why(error)) from error
        if status < 400:
            return content
        if status in _GATEWAY:
            raise AwayError(f"HTTP {status}")
        if path == "/prompt" and status in (400, 500):
            raise RefusedError(_refusal(content, status))
        if path == "/view":
            raise GoneError(f"HTTP {status}")
        said = content.decode(errors="replace").strip()[:200]
        if path == "/upload/image" and status in (400, 413):  # this photo; the server may take others
            raise RefusedError(f"HTTP {status}: {said}")
        raise UnfitError(
            f"{self.url}{path} answers with HTTP {status} ({said}): check the address and the server's log."
        )


async def _messages(socket: "aiohttp.ClientWebSocketResponse") -> AsyncIterator[dict[str, Any]]:
    async for message in socket:
        if message.type == aiohttp.WSMsgType.TEXT:  # binary ones are previews
            yield json.loads(message.data)


def _refusal(content: bytes, status: int) -> str:
    try:
        return refusal(json.loads(content))
    except (ValueError, AttributeError):
        return f"HTTP {status}: {content.decode(errors='replace').strip()[:200]}"


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
