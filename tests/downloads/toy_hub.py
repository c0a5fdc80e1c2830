"""A hub on this machine, what it serves, and what a download of it does."""

import hashlib
import os
import time
from http.server import BaseHTTPRequestHandler

from test_catalog import safetensors_bytes

from hyperlora_core.catalog import CatalogFile

SIZE = 4 << 20
WEIGHTS = safetensors_bytes({"a": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}, os.urandom(SIZE))


class Hub(BaseHTTPRequestHandler):
    """The hub's two steps: /resolve/ redirects to storage and tells size and SHA-256; storage serves ranges."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if "/resolve/" in self.path:
            name = self.path.rpartition("/")[2]
            self.send_response(302)
            self.send_header("Location", f"/storage/{name}")
            self.send_header("X-Linked-Size", str(len(server.files[name])))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(server.files[name]).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = server.files.get(self.path.rpartition("/")[2])
        if body is None:
            self.send_error(404)
            return
        body = server.served or body
        start = int(self.headers["Range"][6:-1]) if server.knows_ranges and "Range" in self.headers else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if server.breaks_at and server.breaks_at > start:
            self.wfile.write(body[start : server.breaks_at])
            server.breaks_at = server.breaks_next
            self.close_connection = True
            return
        for at in range(start, len(body), 1 << 18):
            time.sleep(server.pause)
            try:
                self.wfile.write(body[at : at + (1 << 18)])
            except ConnectionError:
                return

    def log_message(self, *_):
        pass


def hub_file(**changes):
    values = {"path": "clip_vision/ours.safetensors", "size": None, "about": "4 MB", "sha256": None}
    values["url"] = "https://huggingface.co/org/repo/resolve/main/model.safetensors"
    return CatalogFile(**{**values, **changes})


class Stop(BaseException):
    pass


def stop_after(share):
    def progress(what, done, total):
        if done >= share * total:
            raise Stop

    return progress


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
