"""A stand-in for a ComfyUI server, as far as a queue of jobs meets it: its HTTP and websocket API, without any model.

Written after server.py and execution.py of ComfyUI 0.33: a queue by number, one job at a time, messages only to the client
that sent the job, history and cache in memory, uploads and pictures on disk. So a restart forgets the first two.
"""

import asyncio
import hashlib
import heapq
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import web
from places import ROOT

DEMO = json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))
CLASSES = {spec["class_type"] for spec in DEMO.values()} | {"HyperLoRASimilarity"}


class JobError(Exception):
    """What a node raises: (exception type, message)."""


class FakeComfyUI:
    """Runs in a thread of its own; the same folder and port after a restart."""

    def __init__(self, folder: Path, seconds: float = 0.0):
        self.folder, self.seconds = folder, seconds
        for name in ("input", "output"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.fail: Callable[[dict, int], Exception | None] = lambda prompt, time: None
        self.refuse: Callable[[dict], str | None] = lambda prompt: None
        self.ignore: Callable[[dict], dict] = lambda prompt: {}  # node_errors of a prompt that is accepted
        self.hesitate = 0.0  # s before a websocket opens
        self.ran: Counter[str] = Counter()  # content -> times, cached runs not counted
        self.order: list[dict] = []  # prompts that ran
        self.uploads: list[str] = []  # names
        self.too_large: Callable[[str], bool] | None = None  # whether it doesn't take a photo of this name
        self.interrupted: list[str] = []
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def kill(self) -> None:
        """At once, as by a power failure: no farewell on any connection."""
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(10)

    def call(self, function: Callable):
        """In the server's thread."""

        async def wrapped():
            return function()

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(10)

    def ids(self) -> list[str]:
        """Prompts that run or wait."""
        return self.call(lambda: [item[1] for item in [*self.running, *self.queue]])

    async def _serve(self, ready: threading.Event) -> None:
        self.loop, self.stopping, self.wake = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self.queue: list[tuple] = []
        self.running: list[tuple] = []
        self.history: dict[str, dict] = {}
        self.cache: dict[str, dict] = {}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.connections: set[asyncio.Transport] = set()
        self.number, self.interrupt = 0, False
        app = web.Application(client_max_size=100 * 2**20)
        app.add_routes(
            [
                web.get("/ws", self.ws),
                web.get("/queue", self.get_queue),
                web.post("/queue", self.post_queue),
                web.get("/history/{id}", self.get_history),
                web.post("/prompt", self.post_prompt),
                web.post("/interrupt", self.post_interrupt),
                web.post("/upload/image", self.upload),
                web.get("/view", self.view),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        worker = asyncio.ensure_future(self._work())
        ready.set()
        await self.stopping.wait()
        worker.cancel()
        for transport in self.connections:
            transport.abort()
        await runner.cleanup()

    async def send(self, kind: str, data: dict | str, client: str | None = None) -> None:
        for name, socket in list(self.sockets.items()):
            if client in (None, name) and not socket.closed:
                with suppress(ConnectionError):  # the client was killed just now
                    await socket.send_json({"type": kind, "data": data})

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        await asyncio.sleep(self.hesitate)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connections.add(request.transport)
        name = request.query.get("clientId") or uuid.uuid4().hex
        self.sockets[name] = socket
        await self.send("status", {"status": {"exec_info": {"queue_remaining": len(self.queue)}}, "sid": name}, name)
        async for _ in socket:
            pass
        if self.sockets.get(name) is socket:
            del self.sockets[name]
        return socket

    async def get_queue(self, _) -> web.Response:
        return web.json_response({"queue_running": self.running, "queue_pending": self.queue})

    async def post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.queue = [item for item in self.queue if item[1] not in body.get("delete", ()) and not body.get("clear")]
        heapq.heapify(self.queue)
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        return web.json_response({name: self.history[name]} if name in self.history else {})

    async def post_interrupt(self, request: web.Request) -> web.Response:
        wanted = (await request.json()).get("prompt_id")
        if wanted is None or any(item[1] == wanted for item in self.running):
            self.interrupt = True
            self.interrupted.append(wanted)
        return web.Response()

    async def post_prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompt_id = body.get("prompt_id") or str(uuid.uuid4())
        if str(uuid.UUID(prompt_id)) != prompt_id:
            return web.json_response({"error": {"message": "prompt_id must be a valid UUID"}}, status=400)
        prompt = body["prompt"]
        for node, spec in prompt.items():
            if spec["class_type"] not in CLASSES:
                error = {
                    "type": "missing_node_type",
                    "message": f"Node '{spec['class_type']}' not found.",
                    "details": node,
                }
                return web.json_response({"error": error, "node_errors": {}}, status=400)
        problem = self.refuse(prompt)
        for spec in prompt.values():
            if spec["class_type"] == "LoadImage" and not (self.folder / "input" / spec["inputs"]["image"]).is_file():
                problem = f"image - Invalid image file: {spec['inputs']['image']}"
        if problem:
            error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
            reasons = [{"message": "Custom validation failed for node", "details": problem}]
            errors = {"4": {"class_type": "LoadImage", "errors": reasons, "dependent_outputs": ["14"]}}
            return web.json_response({"error": error, "node_errors": errors}, status=400)
        extra = body.get("extra_data", {}) | {
            "client_id": body.get("client_id"),
            "create_time": int(time.time() * 1000),
        }
        heapq.heappush(self.queue, (self.number, prompt_id, prompt, extra, ["14"]))
        self.number += 1
        self.wake.set()
        return web.json_response(
            {"prompt_id": prompt_id, "number": self.number - 1, "node_errors": self.ignore(prompt)}
        )

    async def upload(self, request: web.Request) -> web.Response:
        post = await request.post()
        name, subfolder, content = post["image"].filename, post.get("subfolder", ""), post["image"].file.read()
        if self.too_large is not None and self.too_large(name):
            return web.Response(status=413, text="Maximum request body size exceeded")
        folder = self.folder / "input" / subfolder
        folder.mkdir(exist_ok=True)
        stem, path, number = Path(name), folder / name, 1
        if post.get("overwrite") not in ("true", "1"):
            while path.exists() and path.read_bytes() != content:
                path = folder / f"{stem.stem} ({number}){stem.suffix}"
                number += 1
        path.write_bytes(content)
        self.uploads.append(path.name)
        return web.json_response({"name": path.name, "subfolder": subfolder, "type": "input"})

    async def view(self, request: web.Request) -> web.Response:
        path = self.folder / request.query["type"] / request.query["subfolder"] / request.query["filename"]
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def _work(self) -> None:
        while True:
            while not self.queue:
                self.wake.clear()
                await self.wake.wait()
            item = heapq.heappop(self.queue)
            self.running = [item]
            _, prompt_id, prompt, extra, _ = item
            client, self.interrupt = extra["client_id"], False
            messages = []

            async def note(kind: str, client=client, prompt_id=prompt_id, messages=messages, **data) -> None:
                messages.append((kind, data | {"prompt_id": prompt_id, "timestamp": int(time.time() * 1000)}))
                await self.send(kind, messages[-1][1], client)

            await note("execution_start")
            await self.send("pack.news", "not a dict")  # as packs with a front end of their own do, to all clients
            outputs: dict = {}
            try:
                outputs = await self._execute(prompt_id, prompt, client)
                await note("execution_success")
            except InterruptedError:
                await note("execution_interrupted", node_id="12", node_type="KSampler")
            except JobError as error:
                kind, message = error.args
                await note("execution_error", node_id="12", exception_type=kind, exception_message=f"{message}\n")
            ended = messages[-1][0] == "execution_success"
            self.history[prompt_id] = {
                "prompt": item,
                "outputs": outputs,
                "status": {"status_str": "success" if ended else "error", "completed": ended, "messages": messages},
            }
            self.running = []
            await self.send("executing", {"node": None, "prompt_id": prompt_id}, client)

    async def _execute(self, prompt_id: str, prompt: dict, client: str) -> dict:
        plain = {node: [spec["class_type"], spec["inputs"]] for node, spec in prompt.items()}
        content = json.dumps(plain, sort_keys=True)
        if content in self.cache:
            return self.cache[content]
        await self.send("executing", {"node": "12", "prompt_id": prompt_id}, client)
        for step in range(4):
            node = {"value": step, "max": 4, "state": "running", "node_id": "12", "display_node_id": "12"}
            await self.send("progress_state", {"prompt_id": prompt_id, "nodes": {"12": node}}, client)
            await asyncio.sleep(self.seconds / 4)
            if self.interrupt:
                raise InterruptedError
        self.ran[content] += 1
        self.order.append(prompt)
        if error := self.fail(prompt, self.ran[content]):
            raise error
        outputs = {}
        for node, (kind, inputs) in plain.items():
            if kind == "SaveImage":
                number = len(list((self.folder / "output").iterdir())) + 1
                name = f"{inputs['filename_prefix']}_{number:05}_.png"
                (self.folder / "output" / name).write_bytes(hashlib.sha256(content.encode()).digest())
                outputs[node] = {"images": [{"filename": name, "subfolder": "", "type": "output"}]}
            if kind == "HyperLoRASimilarity":
                outputs[node] = {"text": ["Picture 1: similarity 0.63\nMean 0.63"]}
        self.cache[content] = outputs
        return outputs
