"""A hostile-file campaign: seeded mutations of image files of every format that Pillow reads here.

    python bench/hostile_files.py LOG.jsonl [--files 10000] [--seed 1] [--markdown docs/robustness-files.md]
    python bench/hostile_files.py LOG.jsonl --only 1234 --keep FOLDER     # one file of the campaign again, and keep it

Each file is read as the scorer reads it, in a separate process that is replaced when it dies. It must end as a score,
as "no content" or as an ImageError with the file's name, within the bounds of processor time and memory; anything else
(another exception, a signal, a bound) is a failure. One file in ten of each format goes through the whole scorer with a
small random model, of these every second one from the disk; the others end before the encoder. LOG.jsonl gets a line
per file.

Needs Linux: the bounds are RLIMIT_CPU and RLIMIT_AS, peak memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import platform
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from dataset_run import make_tiny_model
from image_formats import HEIGHT, WIDTH, sound_files

from rali_core.content import has_content
from rali_core.images import DEFAULT_LIMITS, ImageError
from rali_core.reading import PixelBudget, read_image
from rali_core.scorer import RaliScorer

GOOD = ("score", "no content", "image error")
SCORED_EVERY = 10
HEADER = 512
"""Half of the mutations hit the first bytes, where sizes and types are."""

Random = np.random.Generator
Mutation = Callable[[bytearray, Random], None]


def flip_bits(data: bytearray, random: Random) -> None:
    """Some bits anywhere."""
    for _ in range(random.integers(1, 17)):
        data[_place(data, random)] ^= 1 << int(random.integers(8))


def overwrite(data: bytearray, random: Random) -> None:
    """A run of random bytes."""
    place, length = _place(data, random), int(random.integers(1, 33))
    data[place : place + length] = random.bytes(min(length, len(data) - place))


def extreme_number(data: bytearray, random: Random) -> None:
    """A number that is 0, 1, the largest, negative, or about the file's size, of any width and byte order."""
    width = int(random.choice([1, 2, 4, 8]))
    largest = 2 ** (8 * width) - 1
    value = random.choice(np.array([0, 1, 2, largest, largest // 2, largest // 2 + 1, len(data), len(data) * 3, 65535,
                                    20_000, 13_370], dtype=np.uint64))  # fmt: skip
    written = (int(value) & largest).to_bytes(width, random.choice(["little", "big"]))
    place = _place(data, random)
    data[place : place + width] = written


def claim_size(data: bytearray, random: Random) -> None:
    """The header's width, height or both are larger than the file's content, up to the limit and beyond it."""
    for side in ((WIDTH,), (HEIGHT,), (WIDTH, HEIGHT))[int(random.integers(3))]:
        known = [side.to_bytes(width, order) for width in (4, 2) for order in ("little", "big")]
        places = [(data.find(each, 0, HEADER), len(each)) for each in known]
        found = [(place, width) for place, width in places if place >= 0]
        if found:
            place, width = found[int(random.integers(len(found)))]
            value = int(random.choice([3_000, 8_000, 13_370, 20_000, 65_535, 2**31 - 1])) & (2 ** (8 * width) - 1)
            order = "little" if data[place] else "big"
            data[place : place + width] = value.to_bytes(width, order)


def cut(data: bytearray, random: Random) -> None:
    """The end is missing."""
    del data[_place(data, random) :]


def remove(data: bytearray, random: Random) -> None:
    """A piece is missing."""
    place = _place(data, random)
    del data[place : place + int(random.integers(1, 200))]


def insert(data: bytearray, random: Random) -> None:
    """An additional piece: random, one repeated byte, or a copy of another piece."""
    length, source = int(random.integers(1, 3000)), _place(data, random)
    pieces = [random.bytes(length), bytes([int(random.integers(256))]) * length, bytes(data[source : source + length])]
    place = _place(data, random)
    data[place:place] = pieces[int(random.integers(3))]


def swap(data: bytearray, random: Random) -> None:
    """Two pieces change places."""
    length = int(random.integers(1, 100))
    one, other = _place(data, random), _place(data, random)
    first, second = bytes(data[one : one + length]), bytes(data[other : other + length])
    data[one : one + length] = second
    data[other : other + length] = first


def append(data: bytearray, random: Random) -> None:
    """Something follows the image."""
    data += random.bytes(int(random.integers(1, 2000))) if random.random() < 0.5 else bytes(2**16)


MUTATIONS: tuple[Mutation, ...] = (flip_bits, overwrite, extreme_number, claim_size, cut, remove, insert, swap, append)
SHARES = np.array([3, 3, 5, 3, 1, 2, 2, 1, 0.5])


def _place(data: bytearray, random: Random) -> int:
    end = len(data) if random.random() < 0.5 else min(HEADER, len(data))
    return int(random.integers(end)) if end else 0


def splice(one: bytes, other: bytes, random: Random) -> bytes:
    """The beginning of one file and the end of another."""
    return one[: int(random.integers(1, len(one)))] + other[int(random.integers(len(other))) :]


@cache
def packed_zeros(exponent: int) -> bytes:
    """2**exponent zero bytes, compressed."""
    return zlib.compress(bytes(2**exponent), 1)


def with_bomb(png: bytes, random: Random) -> bytes:
    """The PNG with a chunk that decompresses to a quarter of a gigabyte, or of a megabyte."""
    packed = packed_zeros(int(random.choice([18, 28])))
    heads = {b"iCCP": b"a\0\0", b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}
    kind = list(heads)[int(random.integers(3))]
    content = heads[kind] + packed
    return png[:33] + struct.pack(">I", len(content)) + kind + content + b"\0\0\0\0" + png[33:]


def with_checksums(png: bytes) -> bytes:
    """The PNG with correct checksums again, so that its changed chunks are read."""
    data, place = bytearray(png), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


class Campaign:
    """The files: number n is the same in every run with the same seed, Pillow and numpy.

    Args:
        seed: Of everything.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sound = sound_files()
        self.formats = sorted(self.sound)

    def make(self, number: int) -> tuple[str, str, list[str], bytes]:
        """Format, kind, what was done, and the content of a file; the formats take turns."""
        random = np.random.default_rng([self.seed, number])
        name = self.formats[number % len(self.formats)]
        kinds = sorted(self.sound[name])
        kind = kinds[int(random.integers(len(kinds)))]
        content, done = self.sound[name][kind], []
        if name == "PNG" and random.random() < 0.05:
            content = with_bomb(content, random)
            done.append("bomb")
        if random.random() < 0.05:
            other = self.sound[self.formats[int(random.integers(len(self.formats)))]]
            content = splice(content, other[sorted(other)[int(random.integers(len(other)))]], random)
            done.append("splice")
        data = bytearray(content)
        for _ in range(int(random.geometric(0.4)) if not done else int(random.integers(2))):
            if not data:
                break
            mutation = MUTATIONS[int(random.choice(len(MUTATIONS), p=SHARES / SHARES.sum()))]
            mutation(data, random)
            done.append(mutation.__name__)
        content = bytes(data)
        if name == "PNG" and (done[:1] == ["bomb"] or random.random() < 0.8):
            content = with_checksums(content)
        return name, kind, done, content


def work(channel: Connection, scorer: RaliScorer, seconds: int, megabytes: int) -> None:
    """A worker: reads (content, whether through the whole scorer, whether from the disk), answers with the outcome."""
    budget = PixelBudget(DEFAULT_LIMITS.pixels_in_flight)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bound = _own("VmSize") * 2**20 + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (int(bound), int(bound)))

    def finish(pixels: torch.Tensor) -> str:
        if not has_content(pixels):
            return "no content"
        scorer.model.preprocess(pixels.unsqueeze(0), coverage=scorer.coverage)
        return "score"

    with tempfile.TemporaryDirectory() as folder:
        while (task := channel.recv()) is not None:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + 1, hard))
            Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this file
            before, begun, on_clock = _own("VmRSS"), time.process_time(), time.perf_counter()
            outcome, message = _try(scorer, finish, budget, *task, Path(folder, "a file"))
            channel.send({
                "outcome": outcome, "message": message[:300], "cpu_seconds": round(time.process_time() - begun, 4),
                "seconds": round(time.perf_counter() - on_clock, 4), "megabytes": round(_own("VmHWM") - before, 1),
            })  # fmt: skip


def _try(
    scorer: RaliScorer, finish: Callable[[torch.Tensor], str], budget: PixelBudget, content: bytes, whole: bool,
    from_disk: bool, path: Path,
) -> tuple[str, str]:  # fmt: skip
    try:
        if not whole:
            return read_image(content, finish, limits=DEFAULT_LIMITS, budget=budget), ""
        if from_disk:
            path.write_bytes(content)
        (result,) = scorer.stream(path if from_disk else content, on_error="record")
        path.unlink(missing_ok=True)
        if result.error is not None:
            named = str(path) if from_disk else "image data"
            return ("image error" if named in result.error else "no name in the error"), result.error
        if not 0.0 <= result.score <= 1.0:
            return "no number", str(result.score)
        return result.reason or "score", ""
    except ImageError as error:
        return ("image error" if "image data" in str(error) else "no name in the error"), str(error)
    except BaseException as error:
        return "another exception", f"{type(error).__name__}: {error}"


def _own(field: str) -> float:
    """A figure of this process in MiB, from /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) / 1024
    raise KeyError(field)


class Worker:
    """A process that reads files, replaced when a file has ended it.

    Args:
        scorer: With the small model.
        seconds: Processor time for one file.
        megabytes: Memory for one file.
    """

    def __init__(self, scorer: RaliScorer, seconds: int, megabytes: int) -> None:
        self.arguments = (scorer, seconds, megabytes)
        self.patience = 60.0 * seconds  # other work on the machine does not count, but there is a final timeout
        self._start()

    def _start(self) -> None:
        context = mp.get_context("fork")  # all is imported and loaded already
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()

    def read(self, content: bytes, *, whole: bool, from_disk: bool) -> dict[str, Any]:
        """The outcome of one file."""
        begun = time.perf_counter()
        self.channel.send((content, whole, from_disk))
        try:
            if self.channel.poll(self.patience):
                answer: dict[str, Any] = self.channel.recv()
                return answer
            outcome = f"no answer in {self.patience:.0f} s"
            self.process.kill()
        except (EOFError, ConnectionResetError):
            outcome = ""
        self.process.join()
        code = self.process.exitcode or 0
        if not outcome:
            outcome = f"over {self.arguments[1]} s" if -code == signal.SIGXCPU else f"ended by {_signal(code)}"
        self._start()
        return {"outcome": outcome, "message": "", "seconds": round(time.perf_counter() - begun, 4)}

    def close(self) -> None:
        """End the process."""
        self.channel.send(None)
        self.process.join()


def _signal(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def format_markdown(lines: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The summary for docs."""
    good = [line for line in lines if line["outcome"] in GOOD]
    bad = [line for line in lines if line["outcome"] not in GOOD]
    most = max(good, key=lambda line: line["megabytes"])
    slowest = max(good, key=lambda line: line["cpu_seconds"])
    formats = sorted({line["format"] for line in lines})
    rows = []
    for name in formats:
        own = [line for line in lines if line["format"] == name]
        count = Counter(line["outcome"] for line in own)
        failed = len(own) - sum(count[kind] for kind in GOOD)
        rows.append(
            f"| {name} | {len(own)} | {count['score']} | {count['no content']} | {count['image error']} | {failed} | "
            f"{max(line.get('cpu_seconds', 0.0) for line in own):.2f} | "
            f"{max(line.get('megabytes', 0.0) for line in own):.0f} |"
        )
    total = Counter(line["outcome"] if line["outcome"] in GOOD else "failed" for line in lines)
    return "\n".join([
        "# Hostile image files", "",
        f"{len(lines):,} files, mutated from {len({(line['format'], line['kind']) for line in lines})} sound ones of "
        f"{len(formats)} formats (all that Pillow {PIL.__version__} reads here), were read as the scorer reads them: "
        f"flipped bits, extreme numbers and sizes in headers, cuts, insertions, splices of two files, "
        f"decompression bombs. Each had to end as a score, as \"no content\" or as an `ImageError` that names "
        f"the file, in at most {options.seconds} s of processor time and {options.megabytes:,} MiB of memory beside "
        f"the program's own, with the default `ReadLimits` ({DEFAULT_LIMITS.max_pixels:,} pixels).", "",
        f"**{total['score']:,} scores, {total['no content']:,} without content, {total['image error']:,} image errors, "
        f"{len(bad):,} failures.** Most memory: {most['megabytes']:,.0f} MiB ({most['format']}); longest: "
        f"{slowest['cpu_seconds']:.1f} s of processor time ({slowest['format']}).", "",
        "| format | files | score | no content | image error | failures | most seconds | most MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *rows, "",
        *([f"- failure: {line['format']}, {line['kind']}, file {line['number']}: {line['outcome']} {line['message']}"
           for line in bad] + [""] if bad else []),
        f"Made by `python bench/hostile_files.py LOG.jsonl --files {options.files} --seed {options.seed} --markdown "
        f"docs/robustness-files.md`, on {platform.system()} with Python {platform.python_version()}, torch "
        f"{torch.__version__.split('+')[0]}. One file in {SCORED_EVERY} of each format goes through the whole scorer. "
        f"The log has a line per file; `--only NUMBER --keep FOLDER` recreates one.", "",
    ])  # fmt: skip


def main() -> int:
    """Run the campaign; 1 where a file failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, metavar="LOG.jsonl")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10, help="processor time for one file (default: 10)")
    parser.add_argument("--megabytes", type=int, default=3072, help="memory for one file (default: 3072)")
    parser.add_argument("--only", type=int, action="append", metavar="NUMBER")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="files that failed are written there")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    campaign = Campaign(options.seed)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, options.log.open("w", encoding="utf-8") as log:
        model = Path(folder, "tiny.safetensors")
        make_tiny_model(model, width=32, image_size=32)
        torch.set_num_threads(1)
        scorer = RaliScorer.from_pretrained(model, device="cpu")
        scorer.score(np.random.default_rng(0).random((99, 99, 3)))  # what is loaded at first use is loaded now
        worker = Worker(scorer, options.seconds, options.megabytes)
        for number in options.only or range(options.files):
            name, kind, done, content = campaign.make(number)
            turn = number // len(campaign.formats)
            result = worker.read(content, whole=turn % SCORED_EVERY == 0, from_disk=turn % (2 * SCORED_EVERY) == 0)
            line = {"number": number, "format": name, "kind": kind, "mutations": done, "bytes": len(content), **result}
            lines.append(line)
            log.write(json.dumps(line) + "\n")
            log.flush()
            failed = line["outcome"] not in GOOD
            if options.keep and (failed or options.only):
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{number}.{name.lower()}").write_bytes(content)
            if failed or options.only:
                print(json.dumps(line), file=sys.stderr, flush=True)
        worker.close()
    count = Counter(line["outcome"] for line in lines)
    print(", ".join(f"{outcome}: {number:,}" for outcome, number in count.most_common()))
    if options.markdown:
        options.markdown.write_text(format_markdown(lines, options), encoding="utf-8")
    return int(any(line["outcome"] not in GOOD for line in lines))


if __name__ == "__main__":
    sys.exit(main())
