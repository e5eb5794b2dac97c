"""A hub on loopback: the part of the model hub's HTTP interface that a download uses, with faults on request.

Large files are answered as the hub answers git-lfs files: a redirect whose headers give SHA-256 and size, then the
content, in ranges. No storage but plain HTTP is offered. Nothing is simulated on the client's side.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "ByteDance/Q-Insight"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".pt", ".pkl", ".npz", ".bin", ".safetensors")


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        cut: Bytes after which a content connection is closed, per file name; once per entry of the list.
        damaged: File names of which one byte is changed on the way.
        missing: Paths that are listed, and answered with 404.
        repository: False for a hub that has no such repository.
        listed: False for paths that are not in the repository at all.
        status: An HTTP status for every request.
    """

    cut: dict[str, list[int]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    repository: bool = True
    unlisted: set[str] = field(default_factory=set)
    status: int | None = None


@dataclass
class Hub:
    """A running server.

    Attributes:
        url: For `HF_ENDPOINT`.
        files: Contents by path in the repository.
        faults: May be changed while it runs.
        requests: (method, path, Range header) of each request so far.
    """

    url: str
    files: dict[str, bytes]
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def contents(self, name: str) -> list[tuple[str, str, str | None]]:
        """The requests for a file's content."""
        return [request for request in self.requests if request[0] == "GET" and request[1].endswith(name)]


def describe(path: str, content: bytes) -> dict:
    """An entry of the repository's listing."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 135}
    return entry


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        resolve = [f"/{REPOSITORY}/resolve/{revision}/" for revision in (COMMIT, "main")]
        if hub.faults.status is not None:
            self.reply(hub.faults.status, b"{}")
        elif not hub.faults.repository:
            self.reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})  # fmt: skip
        elif path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/main", f"/api/models/{REPOSITORY}/revision/{COMMIT}"):  # fmt: skip
            self.reply(200, json.dumps({"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": [], "private": False, "tags": [], "downloads": 0, "likes": 0}).encode())  # fmt: skip
        elif path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            self.reply(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})  # fmt: skip
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/{COMMIT}"):
            prefix = path.removeprefix(f"/api/models/{REPOSITORY}/tree/{COMMIT}").strip("/")
            names = [name for name in hub.files if name.startswith(prefix) and name not in hub.faults.unlisted]
            self.reply(200, json.dumps([describe(name, hub.files[name]) for name in names]).encode())
        elif any(path.startswith(start) for start in resolve):
            self.resolve(next(path.removeprefix(start) for start in resolve if path.startswith(start)))
        elif path.startswith("/content/"):
            self.send_content(path.removeprefix("/content/"), {})
        else:
            self.reply(404, b'{"error": "not here"}')

    def resolve(self, name: str) -> None:
        hub = self.hub
        if name not in hub.files or name in hub.faults.missing:
            self.reply(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": COMMIT})  # fmt: skip
            return
        entry = describe(name, hub.files[name])
        headers = {"X-Repo-Commit": COMMIT}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(entry["size"])}
            # Another host, as the hub's contents are: the client follows redirects within one host by itself.
            headers["Location"] = f"{hub.url.replace('127.0.0.1', 'localhost')}/content/{name}"
            self.reply(302, b"", headers)
        else:
            self.send_content(name, {**headers, "ETag": f'"{entry["oid"]}"'})

    def send_content(self, name: str, headers: dict[str, str]) -> None:
        content = self.hub.files[name]
        if name in self.hub.faults.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, start = 200, 0
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        cuts = self.hub.faults.cut.get(name, []) if self.command == "GET" else []
        self.reply(status, content[start:], headers, cut=cuts.pop(0) if cuts else None)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body if cut is None else body[:cut])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut is not None:
            self.close_connection = True


@contextmanager
def serve(release: Path) -> Iterator[Hub]:
    """Serve a release as the official repository, and some of what else is in it."""
    files = {f"RALI/{path.relative_to(release).as_posix()}": path.read_bytes() for path in sorted(release.rglob("*")) if path.is_file()}  # fmt: skip
    files["README.md"] = b"the repository holds more than the release"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", files)
    server.RequestHandlerClass = type("BoundHandler", (Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
