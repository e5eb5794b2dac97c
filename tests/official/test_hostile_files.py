"""Malicious releases: each is refused, the message says why, and nothing of it ran.

All are opened in one process with an audit hook and a canary, see `guarded.py`; the control shows that both notice
these very files when Python's own unpickler opens them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import sys
import types
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import joblib
import numpy as np
import pytest
import torch


class Calls:
    """Pickles to a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture(scope="module")
def canary() -> object:
    """The module that guarded.py makes as well, so that pickles can name what is in it."""
    module = types.ModuleType("rali_canary")

    def fire(*_: object) -> str:
        raise AssertionError("the canary fired in the tests' own process")

    class Loaded:
        def __setstate__(self, state: object) -> None:
            fire(state)

    fire.__module__ = Loaded.__module__ = "rali_canary"
    fire.__qualname__, Loaded.__qualname__ = "fire", "Loaded"
    module.fire, module.Loaded = fire, Loaded
    sys.modules["rali_canary"] = module
    yield module
    del sys.modules["rali_canary"]


SYSTEM = os.system.__module__ + ".system"  # posix.system or nt.system


def make_pickles(canary: ModuleType, release: Path, mark: Path) -> dict[str, tuple[bytes, str]]:
    """Malicious pca.pkl files by name, each with what the refusal must say."""
    shell = f"echo ran > {mark}"
    loaded = canary.Loaded()
    loaded.secret = 1
    fire = Calls(canary.fire, "x")
    good = joblib.load(release / "pca.pkl")
    cases: dict[str, tuple[bytes, str]] = {}
    for protocol in range(6):
        cases[f"os.system protocol {protocol}"] = (
            pickle.dumps(Calls(os.system, shell), protocol),
            f"asks for {SYSTEM}",
        )
    cases["os.system by hand"] = (f"cos\nsystem\n(S'{shell}'\ntR.".encode(), "asks for os.system")
    cases["os.system with INST"] = (f"(S'{shell}'\nios\nsystem\n.".encode(), "uses STRING|asks for os.system")
    cases["INST alone"] = (b"(ios\ngetcwd\n.", "asks for os.getcwd")
    cases["eval"] = (pickle.dumps(Calls(eval, f"open({str(mark)!r}, 'w')")), "asks for builtins.eval")
    cases["exec in a mean"] = (pickle.dumps({"mean_": Calls(exec, "import rali_canary; rali_canary.fire()")}), "asks for builtins.exec")  # fmt: skip
    cases["nested reduce"] = (pickle.dumps([Calls(dict, [["a", Calls(tuple, [fire])]])]), r"asks for builtins\.dict|asks for rali_canary\.fire")  # fmt: skip
    cases["getattr"] = (b"\x80\x02cbuiltins\ngetattr\n.", "asks for builtins.getattr")
    cases["setstate while building"] = (pickle.dumps(loaded), r"asks for rali_canary\.Loaded")
    cases["canary"] = (pickle.dumps(fire), r"asks for rali_canary\.fire")
    mean = good.mean_
    good.mean_ = fire
    cases["PCA whose mean is a call"] = (pickle.dumps(good), r"asks for rali_canary\.fire")
    good.mean_ = np.array([fire, loaded], dtype=object)
    cases["PCA whose mean is an array of objects"] = (pickle.dumps(good), "not of numbers|asks for rali_canary")
    for name, compress in (("joblib", 0), ("joblib compressed", 3)):
        buffer = io.BytesIO()
        joblib.dump(Calls(os.system, shell), buffer, compress=compress)
        cases[f"os.system, {name}"] = (buffer.getvalue(), f"asks for {SYSTEM}")
        buffer = io.BytesIO()
        joblib.dump(good, buffer, compress=compress)
        cases[f"objects in a {name} array"] = (buffer.getvalue(), r"not of numbers \(dtype 'O8'\)")
    good.mean_ = mean
    cases["extension code"] = (b"\x80\x02\x82\x01)R.", "uses EXT1")
    cases["persistent id"] = (b"\x80\x02K\x01Q.", "uses BINPERSID")
    cases["state of a class"] = (b"\x80\x02csklearn.decomposition._pca\nPCA\n}X\x0c\x00\x00\x00__setstate__K\x01sb.", "sets the state of something")  # fmt: skip
    cases["call of a text"] = (b"\x80\x02X\x04\x00\x00\x00exec)R.", "calls something that is not a known name")
    cases["known name in another way"] = (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00idna2\x86R.", "calls _codecs.encode in a way")  # fmt: skip
    cases["new object of a function"] = (b"\x80\x02cnumpy\ndtype\n)\x81.", "creates an object that is not part")
    plain = bytes(129 * 2**20)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "zlib": zlib.compress,
        "gzip": gzip.compress,
        "bz2": lambda data: bz2.compress(data, 1),
        "lzma": lambda data: lzma.compress(data, preset=0),
    }
    for name, pack in packers.items():
        cases[f"{name} bomb"] = (pack(plain), "unpacks to more than 128 MiB")
    return cases


def save_torch(value: object, **settings: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def rewrite_zip(data: bytes, *, method: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", method) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        for name, content in (more or {}).items():
            target.writestr(name, content)
    return buffer.getvalue()


def make_checkpoints(canary: ModuleType, release: Path, mark: Path) -> dict[str, tuple[bytes, str]]:
    """Malicious ckpt.pt files."""
    good = (release / "ckpt.pt").read_bytes()
    loaded = canary.Loaded()
    loaded.secret = 1
    inner = save_torch(Calls(os.system, f"echo ran > {mark}"))
    bomb = rewrite_zip(good, method=zipfile.ZIP_DEFLATED, more={"archive/data/999": bytes(64 * 2**20)})
    return {
        "os.system": (save_torch({"state_dict": Calls(os.system, f"echo ran > {mark}")}), f"{SYSTEM}"),
        "eval": (save_torch({"state_dict": {"clip.x": Calls(eval, "1")}}), "eval"),
        "setstate": (save_torch({"state_dict": loaded}), r"rali_canary\.Loaded"),
        "canary": (save_torch({"state_dict": {}, "extra": Calls(canary.fire)}), r"rali_canary\.fire"),
        "torch in torch": (save_torch(Calls(torch.storage._load_from_bytes, inner)), "_load_from_bytes"),
        "before torch 1.6": (save_torch({"state_dict": Calls(canary.fire)}, _use_new_zipfile_serialization=False), "expected a file of torch.save, version 1.6"),
        "plain pickle": (pickle.dumps(Calls(canary.fire)), "not a zip file"),
        "a path outside": (rewrite_zip(good, more={"../../outside.txt": b"x"}), r"'\.\./\.\./outside\.txt' points outside"),
        "an absolute path": (rewrite_zip(good, more={"/tmp/outside.txt": b"x"}), "points outside"),
        "a bomb": (bomb, "compressed entries, which torch.save never writes"),
        "TorchScript": (rewrite_zip(good, more={"archive/constants.pkl": b"\x80\x02).", "archive/code/x.py": b"def f(): pass"}), "TorchScript"),
    }  # fmt: skip


def make_bases(canary: ModuleType, release: Path) -> dict[str, tuple[bytes, str]]:
    """Malicious basis.npz files."""

    def save(**arrays: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    objects = np.empty(2, dtype=object)
    objects[0] = Calls(canary.fire)
    scores = np.zeros(20, dtype=np.float32)
    lying = io.BytesIO()
    np.lib.format.write_array_header_1_0(lying, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2)})
    zeros = io.BytesIO()
    np.savez_compressed(zeros, vectors=np.zeros(2**24, dtype=np.float64), scores=scores)
    good = (release / "basis.npz").read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("vectors.npy", lying.getvalue())
        archive.writestr("scores.npy", lying.getvalue())
    return {
        "objects": (save(vectors=objects, scores=scores), "expected an array of numbers, got dtype object"),
        "a path outside": (rewrite_zip(good, more={"../evil.npy": b"x"}), "points outside"),
        "a bomb": (zeros.getvalue(), "unpacks to more than 128 MiB"),
        "a lying header": (buffer.getvalue(), r"claims shape \(1099511627776, 2\), more than the file holds"),
        "other names": (save(weights=scores), "expected the arrays scores and vectors, got weights.npy"),
    }


@pytest.fixture(scope="module")
def cases(
    canary: ModuleType, tiny_release: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, str]]:
    """Folder of hostile releases, the file that a shell command would write, and the expected message of each."""
    folder = tmp_path_factory.mktemp("hostile")
    mark = folder / "ran.txt"
    files = {
        "pca.pkl": make_pickles(canary, tiny_release, mark),
        "ckpt.pt": make_checkpoints(canary, tiny_release, mark),
        "basis.npz": make_bases(canary, tiny_release),
    }
    # The weights in best/ are opened only where ckpt.pt holds no encoder.
    state = torch.load(tiny_release / "ckpt.pt", weights_only=True)["state_dict"]
    headless = save_torch({"state_dict": {name: value for name, value in state.items() if name.startswith("scorer.")}})
    files["best/pytorch_model.bin"] = {"encoder": (save_torch({"x": Calls(canary.fire)}), r"rali_canary\.fire")}
    expected = {}
    for file, contents in files.items():
        for name, (content, message) in contents.items():
            target = folder / f"{file.replace('/', '_')}, {name}"
            shutil.copytree(tiny_release, target)
            if file == "best/pytorch_model.bin":
                (target / "ckpt.pt").write_bytes(headless)
            (target / file).write_bytes(content)
            expected[target.name] = f"{file}: .*({message})"
    return folder, mark, expected


def test_malicious_files_are_refused_by_name_and_nothing_of_them_runs(
    cases: tuple[Path, Path, dict[str, str]], tiny_release: Path, run_guarded: Callable[..., list[dict]], tmp_path: Path
) -> None:
    folder, mark, expected = cases
    assert len(expected) > 40
    before = sorted(path for path in folder.rglob("*"))
    results = run_guarded("release", tmp_path / "out.jsonl", tiny_release, *(folder / name for name in expected))
    assert results[0]["error"] is None, "the release that the hostile ones were made from must be a good one"
    assert not results[0]["events"], "reading a good release must be silent, or the list below would mean nothing"
    for result in results[1:]:
        assert result["error"] == "ReleaseError", result
        pytest_match = pytest.raises(ValueError, match=f"(?s){expected[result['folder']]}")
        with pytest_match:
            raise ValueError(result["message"])
        assert not result["fired"], result
        assert not result["events"], result
    assert not mark.exists()
    assert sorted(path for path in folder.rglob("*")) == before, "something was written"


def test_the_guard_notices_the_same_files_where_they_do_run(
    cases: tuple[Path, Path, dict[str, str]], run_guarded: Callable[..., list[dict]], tmp_path: Path
) -> None:
    folder, mark, _ = cases
    names = ("os.system protocol 4", "eval", "setstate while building", "PCA whose mean is a call")
    files = [folder / f"pca.pkl, {name}" / "pca.pkl" for name in names]
    try:
        system, evaluated, setstate, mean = run_guarded("control", tmp_path / "out.jsonl", *files)
        assert mark.exists()
    finally:
        mark.unlink(missing_ok=True)
    assert any(event.startswith("os.system") for event in system["events"])
    assert any(event.startswith("exec") for event in evaluated["events"])
    assert any(event.startswith("open") for event in evaluated["events"])
    assert setstate["fired"]
    assert mean["fired"]


def test_thousands_of_mutated_files_neither_crash_nor_run_anything(
    canary: ModuleType, tiny_release: Path, run_guarded: Callable[..., list[dict]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_release, tmp_path / "release"))
    good = joblib.load(folder / "pca.pkl")
    for protocol in (0, 2, 4):
        good.svd_solver = Calls(canary.fire, protocol)
        (folder / f"hostile-{protocol}.pkl").write_bytes(pickle.dumps(good, protocol))
    state = torch.load(folder / "ckpt.pt", weights_only=True)["state_dict"]
    (folder / "hostile-call.pt").write_bytes(save_torch({"state_dict": state, "more": Calls(canary.fire)}))
    count = 2400
    results = run_guarded("fuzz", tmp_path / "out.jsonl", folder, count, 20260101)
    assert len(results) == count
    unexpected = [result for result in results if not result["expected"]]
    assert not unexpected, json.dumps(unexpected[:3], indent=1)
    ran = [result for result in results if result["fired"] or result["events"]]
    assert not ran, json.dumps(ran[:3], indent=1)
    refused = sum(result["error"] is not None for result in results)
    # Most files must be refused, and some accepted (a bit of a weight may change): both branches were walked.
    assert count * 0.5 < refused < count
    assert {result["file"] for result in results} == {
        "pca.pkl",
        "ckpt.pt",
        "basis.npz",
        "best/config.json",
        "best/preprocessor_config.json",
    }
