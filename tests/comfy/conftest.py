"""A real ComfyUI with this pack installed as users install it, and a client that talks to it like the page does.

`.ci/comfy_setup` fetches ComfyUI. Where that was never run these tests are skipped; with RALI_COMFY set to its folder
(as CI does) they run or fail.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
NEW, OLD = "0.30.0", "0.16.3"
HELPERS = Path(__file__).with_name("packs")
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")


@pytest.fixture(scope="session")
def comfy_home() -> Path:
    """The folder made by `.ci/comfy_setup`."""
    named = os.environ.get("RALI_COMFY")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rali-comfy"
    home = Path(named) if named else cache
    if not (home / "venv" / "complete").is_file():
        if named:
            raise FileNotFoundError(f"RALI_COMFY={named} holds no finished set-up: run .ci/comfy_setup {named}")
        pytest.skip(f"no ComfyUI in {home}: run .ci/comfy_setup")
    return home


def list_files(*options: str) -> set[str]:
    """What `git ls-files` lists, in the repository."""
    done = subprocess.run(["git", "ls-files", *options], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def list_archive() -> set[str]:
    """The files of the registry's archive; .comfyignore is written as .gitignore is, and git reads it."""
    pattern = ("--ignored", "--exclude-from=.comfyignore")
    left_out = list_files("--cached", *pattern) | list_files("--others", *pattern)
    return list_files("--cached", "--others", "--exclude-standard") - left_out


def install_pack(custom_nodes: Path, name: str = "ComfyUI-RALI", *, tests: bool = False, archive: bool = False) -> Path:
    """Put what git tracks (and would track) into custom_nodes: what a clone is, but for the tests; or the archive."""
    listed = list_archive() if archive else list_files("--cached", "--others", "--exclude-standard")
    target = custom_nodes / name
    for file in sorted(listed):
        if (REPOSITORY / file).is_file() and (tests or not file.startswith("tests/")):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / file, target / file)
    return target


class Server:
    """A running ComfyUI.

    Args:
        home: The folder made by `.ci/comfy_setup`.
        version: Which ComfyUI.
        base: Its custom_nodes, models, input, output and user folders.
        more: Further arguments on its command line.
    """

    def __init__(self, home: Path, version: str, base: Path, more: tuple[str, ...] = ()) -> None:
        self.home, self.version, self.folder, self.more = home, version, base, more
        for name in ("custom_nodes", "models", "input", "output", "user", "temp"):
            (base / name).mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 1800) -> Server:
        """Start and wait until it answers."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        command = [
            self.home / "venv" / "bin" / "python", "main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.port,
            "--disable-auto-launch", "--disable-api-nodes", "--dont-print-server", "--base-directory", self.folder,
            "--database-url", f"sqlite:///{self.folder / 'user' / 'comfyui.db'}", *self.more,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], cwd=self.home / f"ComfyUI-{self.version}", stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "PYTHONUNBUFFERED": "1", "HF_HOME": str(self.folder / "hf")},
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at start:\n{self.text()[-4000:]}")
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise TimeoutError(f"ComfyUI did not answer in {timeout} s:\n{self.text()[-4000:]}")

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def memory(self) -> float:
        """Resident memory in MB."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def get(self, path: str) -> Any:
        """GET JSON."""
        with urllib.request.urlopen(self.url + path, timeout=300) as reply:
            return json.load(reply)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """POST JSON; status and answer."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as reply:
                text = reply.read()
                return reply.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def run(self, prompt: dict[str, Any], *, timeout: float = 900, on_message: Any = None, extra: Any = None) -> Run:
        """Queue a prompt and wait for its end."""
        client = uuid.uuid4().hex
        events = WebSocket(self.port, f"/ws?clientId={client}", timeout)
        try:
            body = {"prompt": prompt, "client_id": client, **({"extra_data": extra} if extra else {})}
            status, answer = self.post("/prompt", body)
            if status != 200:
                return Run(status, answer, [], {})
            messages: list[tuple[str, dict[str, Any]]] = []
            while not messages or messages[-1][0] not in ENDINGS or messages[-1][1]["prompt_id"] != answer["prompt_id"]:
                message = events.read()
                if message is not None:
                    messages.append((message["type"], message["data"]))
                    if on_message is not None:
                        on_message(self, *messages[-1])
        finally:
            events.close()
        for _ in range(600):  # the end is announced before the history is written
            history = self.get(f"/history/{answer['prompt_id']}")
            if history:
                break
            time.sleep(0.05)
        return Run(200, answer, messages, history[answer["prompt_id"]]["outputs"])

    def upload(self, name: str, image: Image.Image) -> str:
        """Put an image into the input folder; its name."""
        image.save(self.folder / "input" / name)
        return name


class Run:
    """What came of a prompt.

    Args:
        status: HTTP status of its queueing.
        answer: The server's answer to that.
        messages: The websocket messages, (type, data).
        outputs: The ui outputs by node id.
    """

    def __init__(self, status: int, answer: Any, messages: list[tuple[str, dict[str, Any]]], outputs: Any) -> None:
        self.status, self.answer, self.messages, self.outputs = status, answer, messages, outputs

    @property
    def ending(self) -> str:
        """Type of the last message."""
        return self.messages[-1][0] if self.messages else "refused"

    @property
    def error(self) -> str:
        """The exception's message, or what the validation said."""
        if self.status != 200:
            return json.dumps(self.answer, ensure_ascii=False)
        return str(self.messages[-1][1].get("exception_message", ""))

    @property
    def executed(self) -> set[str]:
        """Ids of the nodes that really ran."""
        return {data["node"] for kind, data in self.messages if kind == "executing" and data.get("node")}

    @property
    def finished(self) -> set[str]:
        """Ids of the nodes that have shown something; "executing" alone is announced for what is blocked too."""
        return {data["node"] for kind, data in self.messages if kind == "executed"}

    def check(self) -> Run:
        """Fail where it did not succeed."""
        assert self.ending == "execution_success", self.error
        return self

    def seen(self, node: str) -> dict[str, Any]:
        """What the probe node of the test pack saw."""
        result: dict[str, Any] = self.outputs[node]["probe"][0]
        return result

    def scores(self, node: str) -> list[float]:
        """The scores that a RALI node shows."""
        scores: list[float] = self.outputs[node]["rali"][0]["scores"]
        return scores


class WebSocket:
    """As much of RFC 6455 as listening to ComfyUI needs."""

    def __init__(self, port: int, path: str, timeout: float) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.stream = self.socket.makefile("rb")
        if b"101" not in self.stream.readline():
            raise ConnectionError("ComfyUI did not open the websocket")
        while self.stream.readline().strip():
            pass

    def read(self) -> dict[str, Any] | None:
        """The next message; None for one that is not JSON (previews, pings)."""
        first, second = self.stream.read(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.stream.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.stream.read(8))
        data = self.stream.read(length)
        return json.loads(data) if first & 0x0F == 1 else None

    def close(self) -> None:
        """Hang up."""
        self.stream.close()
        self.socket.close()


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture
def judge(server: Any, tiny_file: Path) -> Iterator[str]:
    """A tiny model's name in RALI Load Model: what these tests ask does not depend on who scores."""
    file = server.folder / "models" / "rali" / "judge.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(tiny_file.read_bytes())
    yield file.name
    file.unlink()


@pytest.fixture
def teller(server: Any, probing_file: Path) -> Iterator[str]:
    """The name in RALI Load Model of a tiny model that tells attributes."""
    file = server.folder / "models" / "rali" / "teller.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(probing_file.read_bytes())
    yield file.name
    file.unlink()


def degrade(image: Image.Image, level: int, seed: int = 0) -> Image.Image:
    """A damaged copy: blur, noise and coarse quantisation that grow with `level`."""
    from PIL import ImageFilter

    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8 * level)), dtype=np.float32)
    noisy = blurred + np.random.default_rng(seed).normal(0.0, 4.0 * level, blurred.shape)
    return Image.fromarray((noisy / (4 * level)).round().__mul__(4 * level).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def tools() -> dict[str, Any]:
    """The helpers of this file, for tests that need their own server."""
    return {
        "Server": Server,
        "install_pack": install_pack,
        "list_archive": list_archive,
        "node": node,
        "degrade": degrade,
        "HELPERS": HELPERS,
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All tests on a shared server run on the newer ComfyUI, those marked `both_versions` on the oldest one as well."""
    if "server" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("both_versions")
        metafunc.parametrize("server", [NEW, OLD] if both else [NEW], indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, comfy_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """ComfyUI with this pack, the probe nodes and tiny random diffusion models; one for all tests of its version."""
    base = tmp_path_factory.mktemp(f"comfy-{request.param}")
    running = Server(comfy_home, request.param, base)
    install_pack(base / "custom_nodes", archive=True)  # users of the registry have no more
    shutil.copytree(HELPERS / "probe", base / "custom_nodes" / "probe")
    try:
        yield running.start()
    finally:
        running.stop()
