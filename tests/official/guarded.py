"""Run in a separate process: opens hostile releases under an audit hook that records whatever Python does.

    python guarded.py release OUT FOLDER...             one line of JSON per folder
    python guarded.py fuzz OUT FOLDER COUNT SEED        one line of JSON per mutated file

Two proofs that nothing ran. The hook: while a release is read, every audit event is noted except reading files and
parsing a literal; running code, importing, starting a process, writing, deleting and opening a connection all raise
one. The canary: the hostile files name `rali_canary.fire`, which is importable here and notes that it was called.
The command `control` shows that both notice the same files when Python's own unpickler opens them.
"""

from __future__ import annotations

import codecs
import json
import os
import pickle
import random
import shutil
import sys
import types
from pathlib import Path

from rali_core.checkpoint import load_model
from rali_core.official.convert import convert
from rali_core.official.errors import ReleaseError
from rali_core.official.release import read_release

FILES = {"pca.pkl": 9, "ckpt.pt": 7, "basis.npz": 3, "best/config.json": 2, "best/preprocessor_config.json": 2}
HARMLESS = {
    "compile",  # numpy reads array headers with ast.literal_eval, which parses and does not run; running is "exec"
    "os.scandir",
    "os.listdir",
    "object.__getattr__",
    "mmap.__new__",
    "sys._getframe",
}

# Python imports a codec when it is first asked for; that import is not the file's doing.
for codec in ("ascii", "latin-1", "utf-8", "raw_unicode_escape", "unicode_escape"):
    codecs.lookup(codec)

armed = False
events: list[str] = []
fired: list[str] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if not armed or event in HARMLESS:
        return
    if event == "open":
        _, mode, flags = arguments
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if not writing and (mode is None or "r" in str(mode)):
            return
    events.append(f"{event} {arguments!r}"[:200])


def make_canary() -> None:
    canary = types.ModuleType("rali_canary")

    def fire(*arguments: object) -> str:
        fired.append(repr(arguments)[:80])
        return "fired"

    class Loaded:
        def __setstate__(self, state: object) -> None:
            fire(state)

    fire.__module__ = Loaded.__module__ = canary.__name__
    fire.__qualname__, Loaded.__qualname__ = "fire", "Loaded"
    canary.fire, canary.Loaded = fire, Loaded  # type: ignore[attr-defined]
    sys.modules[canary.__name__] = canary


def attempt(work: object) -> dict[str, object]:
    global armed
    events.clear()
    fired.clear()
    error: BaseException | None = None
    armed = True
    try:
        work()  # type: ignore[operator]
    except Exception as caught:
        error = caught
    finally:
        armed = False
    return {
        "error": None if error is None else type(error).__name__,
        "expected": error is None or isinstance(error, ReleaseError),
        "message": str(error)[:2000],
        "events": list(events),
        "fired": list(fired),
    }


def mutate(data: bytes, other: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    where = dice.choice(("start", "end", "anywhere"))
    window = min(len(changed), 6000)
    first = {"start": 0, "end": len(changed) - window, "anywhere": 0}[where]
    last = {"start": window, "end": len(changed), "anywhere": len(changed)}[where]
    kind = dice.choice(("bits", "bits", "bytes", "cut", "remove", "repeat", "splice", "opcodes", "zeros"))
    position = dice.randrange(first, max(first + 1, last))
    length = dice.randint(1, 64)
    if kind == "bits":
        for _ in range(dice.randint(1, 8)):
            changed[dice.randrange(first, last)] ^= 1 << dice.randrange(8)
    elif kind == "bytes":
        changed[position : position + length] = dice.randbytes(length)
    elif kind == "cut":
        del changed[position:]
    elif kind == "remove":
        del changed[position : position + length]
    elif kind == "repeat":
        changed[position:position] = changed[position : position + length] * dice.randint(1, 50)
    elif kind == "splice":
        start = dice.randrange(len(other))
        changed[position : position + length] = other[start : start + length]
    elif kind == "zeros":
        changed[position : position + length] = bytes(len(changed[position : position + length]))
    else:
        call = b"crali_canary\nfire\n(tR" if dice.random() < 0.5 else b"\x8c\x0brali_canary\x8c\x04fire\x93)R"
        changed[position:position] = dice.choice((call, call + b"0", b"\x81", b"R", b"b", b"Q", b"\x82\x01", b"."))
    return bytes(changed)


def fuzz(folder: Path, count: int, seed: int, out: Path) -> None:
    dice = random.Random(seed)
    originals = {name: (folder / name).read_bytes() for name in FILES}
    # Seeds with a call of the canary in them: mutations of these come closest to running something.
    hostile = sorted(folder.glob("hostile-*"))
    names, shares = list(FILES), list(FILES.values())
    work = Path(shutil.copytree(folder, folder.parent / "fuzzed", ignore=shutil.ignore_patterns("hostile-*")))
    survivors = 0
    with out.open("w") as lines:
        for number in range(count):
            name = dice.choices(names, shares)[0]
            source = originals[name]
            seeds = [path for path in hostile if path.suffix == Path(name).suffix]
            if seeds and dice.random() < 0.3:
                source = dice.choice(seeds).read_bytes()
            (work / name).write_bytes(mutate(source, originals[dice.choice(names)], dice))
            print(number, name, file=sys.stderr, flush=True)  # the last line names the file of a crash
            result = attempt(lambda: read_release(work))
            if result["error"] is None:
                survivors += 1
                if survivors % 10 == 1:  # what is accepted must also be a usable model
                    load_model(convert(work, folder.parent / "survivor.safetensors").path)
            lines.write(json.dumps({"number": number, "file": name, **result}) + "\n")
            (work / name).write_bytes(originals[name])


def main() -> None:
    command, out = sys.argv[1], Path(sys.argv[2])
    make_canary()
    sys.addaudithook(watch)
    if command == "control":
        with out.open("w") as lines:
            for path in sys.argv[3:]:
                data = Path(path).read_bytes()
                result = attempt(lambda data=data: pickle.loads(data))
                lines.write(json.dumps({"path": path, **result}) + "\n")
        return
    if command == "release":
        folders = [Path(argument) for argument in sys.argv[3:]]
        attempt(lambda: read_release(folders[0]))  # modules that are imported on first use, good release
        with out.open("w") as lines:
            for folder in folders:
                print(folder, file=sys.stderr, flush=True)
                result = attempt(lambda folder=folder: read_release(folder))
                lines.write(json.dumps({"folder": folder.name, **result}) + "\n")
        return
    folder, count, seed = Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    attempt(lambda: read_release(folder))
    fuzz(folder, count, seed, out)


if __name__ == "__main__":
    main()
