"""`rali download official` in separate processes, with the real client, against a server on loopback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rali_core import read_metadata

REPOSITORY_CACHE = "hub/models--ByteDance--Q-Insight"
MAIN = "import sys; from rali_core.cli import main; sys.exit(main())"
Rali = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def server() -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("official_hub_server", Path(__file__).with_name("hub_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(server: ModuleType, release: Path) -> Iterator[object]:
    with server.serve(release) as running:
        yield running


@pytest.fixture
def settings(environment: dict[str, str], hub: object, tmp_path: Path) -> dict[str, str]:
    """Environment of the commands: the server on loopback, a cache of the test's own, no proxy, no login."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("HF_", "HUGGING", "XDG_")) and not name.lower().endswith("_proxy")
    }
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}  # type: ignore[attr-defined]


@pytest.fixture
def rali(settings: dict[str, str]) -> Rali:
    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", MAIN, *arguments]
        return subprocess.run(words, env={**settings, **more}, capture_output=True, text=True, timeout=300)

    return run


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".partial", ".incomplete")]


def holds_model(folder: Path) -> bool:
    return any(folder.rglob("*.safetensors"))


def test_the_official_model_is_downloaded_converted_and_found_by_its_name(
    rali: Rali, hub: object, settings: dict[str, str], tmp_path: Path
) -> None:
    early = rali("score", "x.png", "--model", "official")
    assert early.returncode == 1
    assert "run `rali download official`" in early.stderr

    done = rali("download", "official")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "home" / "rali" / "rali-official.safetensors"
    assert path.is_file()
    source = read_metadata(path)["source"]
    assert source["repository"] == "ByteDance/Q-Insight"
    assert source["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert "ckpt.pt" in done.stderr or "%" in done.stderr, "no progress was shown"
    assert not hub.contents("README.md"), "only the release is downloaded"  # type: ignore[attr-defined]
    assert not hub.contents("best/model.safetensors"), "ckpt.pt holds the encoder"  # type: ignore[attr-defined]

    program = (
        "import numpy; from rali_core import RaliScorer; scorer = RaliScorer.from_pretrained('official', device='cpu');"
        "print(scorer.info.name, scorer.score(numpy.zeros((9, 9, 3), dtype='uint8')).scores)"
    )
    scored = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True)
    assert scored.stdout.startswith("rali-official ["), scored.stderr

    verified = rali("convert", "--check", "official")
    assert verified.returncode == 0, verified.stderr

    before = len(hub.contents("ckpt.pt"))  # type: ignore[attr-defined]
    again = rali("download", "official")
    assert "is up to date" in again.stderr
    assert len(hub.contents("ckpt.pt")) == before, "what is there is not downloaded again"  # type: ignore[attr-defined]

    offline = rali("download", "official", "--dtype", "float32", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0, offline.stderr
    assert read_metadata(path)["source"]["dtype"] == "float32"


def test_a_given_folder_holds_everything_and_the_name_still_works(rali: Rali, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    done = rali("download", "official", "--folder", str(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / "rali-official.safetensors").is_file()
    assert (folder / "RALI" / "ckpt.pt").is_file()
    assert not holds_model(tmp_path / "home")
    assert rali("convert", "--check", "official").returncode == 0
    (folder / "rali-official.safetensors").unlink()
    gone = rali("info", "official")
    assert "the model 'official' is gone from" in gone.stderr


def test_a_cut_connection_is_resumed(rali: Rali, server: ModuleType, maker: ModuleType, tmp_path: Path) -> None:
    # The client keeps what it got in pieces of 10 MiB, so the file must be larger than that; the text side is dropped.
    release = maker.make_release(tmp_path / "release", size={**maker.SMALL, "text": {**maker.SMALL["text"], "vocab_size": 200_000}})  # fmt: skip
    with server.serve(release) as hub:
        assert len(hub.files["RALI/ckpt.pt"]) > 25e6
        hub.faults.cut["RALI/ckpt.pt"] = [12_000_000, 12_000_000]
        done = rali("download", "official", HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        ranges = [request[2] for request in hub.contents("/content/RALI/ckpt.pt")]
    assert ranges == [None, f"bytes={10 * 2**20}-", f"bytes={20 * 2**20}-"]
    assert (tmp_path / "home" / "rali" / "rali-official.safetensors").is_file()


def test_a_connection_that_never_holds_is_an_error_and_leaves_no_half_file(
    rali: Rali, hub: object, tmp_path: Path
) -> None:
    hub.faults.cut["RALI/ckpt.pt"] = [0] * 100  # type: ignore[attr-defined]
    done = rali("download", "official")
    assert done.returncode == 1
    assert "the connection to http://127.0.0.1" in done.stderr.splitlines()[-1]
    assert "run the same command again" in done.stderr
    # Once for the listing, then once for each attempt: the client's own retries do not ask for the revision again.
    asked = [request for request in hub.requests if request[1].endswith("/revision/main")]  # type: ignore[attr-defined]
    assert len(asked) == 4
    assert not holds_model(tmp_path)
    assert not list((tmp_path / "home" / REPOSITORY_CACHE).rglob("ckpt.pt"))


@pytest.mark.parametrize("name", ["RALI/ckpt.pt", "RALI/best/config.json"])
def test_a_wrong_hash_is_an_error_and_the_file_is_not_kept(rali: Rali, hub: object, name: str, tmp_path: Path) -> None:
    hub.faults.damaged.add(name)  # type: ignore[attr-defined]
    done = rali("download", "official")
    assert done.returncode == 1
    assert f"{name}: expected the hash" in done.stderr
    assert "it was deleted" in done.stderr
    assert not holds_model(tmp_path)
    hub.faults.damaged.clear()  # type: ignore[attr-defined]
    assert rali("download", "official").returncode == 0, "the damaged file must not be taken from the cache"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"repository": False}, r"has no repository ByteDance/Q-Insight \(404\)"),
        ({"missing": {"RALI/pca.pkl"}}, r"answered 404 for a file of ByteDance/Q-Insight/RALI"),
        ({"unlisted": {"RALI/pca.pkl", "RALI/basis.npz"}}, r"lacks RALI/pca\.pkl, RALI/basis\.npz"),
    ],
)
def test_what_the_hub_does_not_have_is_a_clear_error(
    rali: Rali, hub: object, fault: dict, message: str, tmp_path: Path
) -> None:
    for name, value in fault.items():
        setattr(hub.faults, name, value)  # type: ignore[attr-defined]
    done = rali("download", "official")
    assert done.returncode == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(done.stderr)
    assert "Traceback" not in done.stderr
    assert not holds_model(tmp_path)


def test_an_unknown_revision_is_a_clear_error(rali: Rali) -> None:
    done = rali("download", "official", "--revision", "v9")
    assert done.returncode == 1
    assert "has no such revision (404)" in done.stderr


def test_no_server_and_nothing_in_the_cache_is_a_clear_error(rali: Rali) -> None:
    offline = rali("download", "official", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set and the release is not complete in" in offline.stderr
    unreachable = rali("download", "official", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.returncode == 1
    assert "http://127.0.0.1:9" in unreachable.stderr.splitlines()[-1]
    assert "Traceback" not in unreachable.stderr


def test_two_downloads_at_once_give_one_good_file(settings: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-c", MAIN, "download", "official"]
    both = [subprocess.Popen(words, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]  # fmt: skip
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert not partial_files(tmp_path)
    done = subprocess.run([sys.executable, "-c", MAIN, "convert", "--check", "official"], env=settings, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_interrupted_download_leaves_no_half_file_and_can_be_repeated(
    rali: Rali, hub: object, settings: dict[str, str], tmp_path: Path
) -> None:
    hub.faults.cut["RALI/ckpt.pt"] = [1000] * 100  # type: ignore[attr-defined]  # keeps it busy
    words = [sys.executable, "-c", MAIN, "download", "official"]
    process = subprocess.Popen(words, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not hub.contents("/content/RALI/ckpt.pt"):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not holds_model(tmp_path)
    assert not list((tmp_path / "home" / REPOSITORY_CACHE).rglob("ckpt.pt"))
    hub.faults.cut.clear()  # type: ignore[attr-defined]
    assert rali("download", "official").returncode == 0


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Mounts a tmpfs: the one way in which a disk is full or read-only for root as well."""
    folders: list[Path] = []

    def make(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode != 0:
            pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield make
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_found_out_before_the_download(
    rali: Rali, hub: object, mount: Callable[[str, str], Path]
) -> None:
    home = mount("small", "size=200k")
    done = rali("download", "official", HF_HOME=str(home))
    assert done.returncode == 1
    assert "no space left in" in done.stderr
    assert "make room, set HF_HOME or give --folder" in done.stderr
    assert not hub.contents("/content/RALI/ckpt.pt")  # type: ignore[attr-defined]


def test_a_disk_that_fills_up_while_converting_leaves_no_half_file(
    rali: Rali, hub: object, mount: Callable[[str, str], Path]
) -> None:
    needed = sum(len(content) for name, content in hub.files.items() if "model.safetensors" not in name)  # type: ignore[attr-defined]
    home = mount("tight", f"size={needed // 1024 + 150}k")
    done = rali("download", "official", HF_HOME=str(home))
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert not holds_model(home)
    assert not partial_files(home)


def test_a_read_only_folder_is_a_clear_error(rali: Rali, mount: Callable[[str, str], Path]) -> None:
    home = mount("fixed", "ro")
    for arguments in (("download", "official"), ("download", "official", "--folder", str(home / "models"))):
        done = rali(*arguments, HF_HOME=str(home))
        assert done.returncode == 1
        assert "cannot write to" in done.stderr
        assert "set HF_HOME or give --folder" in done.stderr


def test_a_folder_below_a_file_is_a_clear_error(rali: Rali, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = rali("download", "official", HF_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 1
    assert "cannot write to" in done.stderr
    assert "Traceback" not in done.stderr
