"""A real ComfyUI for tests: found on this machine, started on the CPU with this pack installed, spoken to over HTTP."""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

PACK = Path(__file__).parents[2]
START_TIMEOUT = 300
RUN_TIMEOUT = 300
CONTROLNET = Path(__file__).with_name("tiny_controlnet.py")


class ComfyUI:
    """A server with its own base directory, so that nothing of the user's is touched."""

    def __init__(self, host: Path, base: Path, arguments: tuple[str, ...] = (), python_path: str = ""):
        self.host, self.base, self.python_path = host, base, python_path
        for folder in ("models", "custom_nodes", "input", "output", "temp", "user"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "hyperlora-zero-shot").symlink_to(PACK)
        (base / "custom_nodes" / CONTROLNET.name).symlink_to(CONTROLNET)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = base / "server.log"
        self.command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        self.command += [
            "--base-directory",
            str(base),
            "--database-url",
            "sqlite:///:memory:",
            "--disable-auto-launch",
            *arguments,
        ]
        self.start()

    def start(self) -> None:
        """Also after `stop`, at the same address."""
        # the pack under test is the checkout, not an installed copy that PYTHONPATH may name
        environment = {**os.environ, "PYTHONPATH": self.python_path}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.host, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at its start:\n{self.tail()}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI didn't come up in {START_TIMEOUT} s:\n{self.tail()}")

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise RefusedError(json.loads(error.read())) from error

    def upload(self, picture: Image.Image | bytes, name: str) -> str:
        """Upload as the browser does; answers the name for LoadImage."""
        if isinstance(picture, Image.Image):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            picture = buffer.getvalue()
        boundary = uuid.uuid4().hex
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        body += picture + f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue'.encode()
        body += f"\r\n--{boundary}--\r\n".encode()
        request = urllib.request.Request(
            f"{self.url}/upload/image",
            body,
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["name"]

    def run_and_watch(self, workflow: dict) -> tuple["Result", set[str]]:
        """As `run`, and the nodes that ran, those that nodes expanded to included, as the front end is told of them."""
        return asyncio.run(self._watched(workflow))

    async def _watched(self, workflow: dict) -> tuple["Result", set[str]]:
        client, ran = uuid.uuid4().hex, set()
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.url}/ws?clientId={client}") as socket:
            running = asyncio.create_task(asyncio.to_thread(self.run, workflow, client))
            while True:
                message = await asyncio.wait_for(socket.receive(), RUN_TIMEOUT)
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue  # previews
                event = message.json()
                if event["type"] == "executing" and event["data"]["node"] is None:
                    return await running, ran
                if event["type"] == "executing":
                    ran.add(event["data"]["node"])

    def run(self, workflow: dict, client: str | None = None) -> "Result":
        """Queue an API-format workflow and wait for its end."""
        given = {"prompt": workflow, "client_id": client or uuid.uuid4().hex}
        prompt_id = self.post("/prompt", given)["prompt_id"]
        end = time.monotonic() + RUN_TIMEOUT
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history and history[prompt_id]["status"]["completed"] is not None:
                entry = history[prompt_id]
                if entry["status"]["status_str"] in ("success", "error"):
                    return Result(self, entry)
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI died:\n{self.tail()}")
            time.sleep(0.1)
        raise RuntimeError(f"The workflow didn't end in {RUN_TIMEOUT} s:\n{self.tail()}")


class RefusedError(Exception):
    """The server didn't accept the workflow."""

    def __init__(self, answer: dict):
        super().__init__(json.dumps(answer, indent=1))
        self.answer = answer


class Result:
    """A finished workflow."""

    def __init__(self, server: ComfyUI, entry: dict):
        self.server, self.outputs, self.status = server, entry["outputs"], entry["status"]

    @property
    def messages(self) -> dict[str, dict]:
        return dict(self.status["messages"])

    @property
    def error(self) -> str | None:
        """The exception's text, as the front end shows it."""
        problem = self.messages.get("execution_error")
        return problem and problem["exception_message"].strip()

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes that weren't run again."""
        return set(self.messages["execution_cached"]["nodes"])

    def picture(self, node: str | None = None) -> np.ndarray:
        """The first picture of a node (or of the only one that has pictures): uint8 [h, w, 3]."""
        return self.pictures(node)[0]

    def pictures(self, node: str | None = None) -> list[np.ndarray]:
        """All pictures of a node (or of the only one that has pictures): uint8 [h, w, 3] each."""
        assert self.error is None, self.error
        found = next(out["images"] for name, out in self.outputs.items() if node in (None, name) and "images" in out)
        return [self._fetch(image) for image in found]

    def _fetch(self, image: dict) -> np.ndarray:
        query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
        with urllib.request.urlopen(f"{self.server.url}/view?{query}", timeout=60) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))

    def text(self, node: str) -> str:
        assert self.error is None, self.error
        return "".join(self.outputs[node]["text"])
