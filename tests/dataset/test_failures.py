from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rali_core.dataset import DatasetResult
from rali_core.files import atomic_write

from .conftest import approximately, encode, make_image, read_rows

Score = Callable[..., DatasetResult]


def no_half_files(folder: Path) -> bool:
    """Every shard is a whole Parquet file and nothing else was left."""
    for path in folder.glob("part-*"):
        assert pq.read_table(path).num_rows > 0
    return not list(folder.rglob(".writing-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where this process may mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system; the file size limit below tests the same code")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_with_more_space_it_resumes(
    photos: Path, score: Score, tmp_path: Path, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    stop_at_first_shard = lambda done, total: done < 5  # noqa: ARG005, E731
    score(photos, "small-disk/out", progress=stop_at_first_shard)
    filler.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    with pytest.raises(OSError, match=r"part-00000\d\.parquet cannot be written: No space left on device"):
        score(photos, "small-disk/out")
    assert no_half_files(small_disk / "out")
    assert len(read_rows(small_disk / "out")) in (5, 10)
    filler.unlink()
    assert score(photos, "small-disk/out").done == 21
    score(photos, "roomy")
    assert read_rows(small_disk / "out") == approximately(read_rows(tmp_path / "roomy"))


def test_a_file_size_limit_leaves_no_half_file(tmp_path: Path) -> None:
    target = tmp_path / "part-000000.parquet"
    target.write_bytes(b"the one from before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"part-000000.parquet cannot be written: File too large"):  # noqa: SIM117
            with atomic_write(target) as temporary:
                temporary.write_bytes(b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"the one from before"


def test_a_read_only_target_is_an_error_before_any_work(photos: Path, score: Score, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    seen: list[int] = []
    with pytest.raises(OSError, match="small-disk/out cannot be written: Read-only file system"):
        score(photos, "small-disk/out", progress=lambda done, total: seen.append(done))  # noqa: ARG005
    assert seen == []


def test_a_file_in_the_targets_place_is_an_error(photos: Path, score: Score, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="out cannot be written: (Not a directory|File exists)"):
        score(photos)


def test_files_that_vanish_or_change_during_the_run_are_rows_with_errors(
    photos: Path, score: Score, tmp_path: Path
) -> None:
    score(photos, progress=lambda done, total: False)  # noqa: ARG005  # lists the images and stops
    (photos / "02.png").unlink()
    make_image(77).save(photos / "04.png")
    os.utime(photos / "08.png", ns=(1, 1))  # the same size, another time
    (photos / "inner" / "00.png").unlink()
    (photos / "inner" / "00.png").mkdir()
    score(photos)
    rows = read_rows(tmp_path / "out")
    errors = {name: row["error"] for name, row in rows.items() if row["error"] is not None}
    assert set(errors) == {"02.png", "04.png", "08.png", "broken.png", "inner/00.png"}
    assert errors["02.png"].endswith("02.png: the file was deleted after the images were listed")
    assert "the file changed since it was listed" in errors["04.png"]
    assert "the file changed since it was listed" in errors["08.png"]


def test_a_tar_and_a_parquet_file_that_change_are_rows_with_errors(
    tar_file: Path, parquet_file: Path, score: Score, tmp_path: Path
) -> None:
    for source, out in ((tar_file, "tar"), (parquet_file, "parquet")):
        score(source, out, progress=lambda done, total: False)  # noqa: ARG005
        source.write_bytes(source.read_bytes()[:-100])
        score(source, out)
        rows = read_rows(tmp_path / out)
        assert len(rows) in (6, 11)
        assert all("the file changed since it was listed" in row["error"] for row in rows.values())


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Compressed zeros, about a thousandth of their size."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])


def test_enormous_images_and_zip_bombs_are_rows_with_errors(score: Score, tmp_path: Path) -> None:
    bombs = tmp_path / "bombs"
    bombs.mkdir()
    (bombs / "500-megapixels.png").write_bytes(png(25_000, 20_000, data=zeros(25_000 * 3 * 100)))
    (bombs / "text-bomb.png").write_bytes(
        png(8, 8, png_chunk(b"zTXt", b"Comment\0\0" + zeros(2**28)), data=zlib.compress(bytes(8 * 25)))
    )
    (bombs / "too-much-data.png").write_bytes(png(8, 8, data=zeros(2**28)))
    (bombs / "too-little-data.png").write_bytes(png(3000, 3000, data=zeros(100)))
    (bombs / "good.png").write_bytes(encode(1))
    assert all(path.stat().st_size < 2**20 for path in bombs.iterdir())
    score(bombs)
    rows = read_rows(tmp_path / "out")
    assert "too large to open safely" in rows["500-megapixels.png"]["error"]
    assert "500000000 pixels" in rows["500-megapixels.png"]["error"]
    assert "Decompressed data too large" in rows["text-bomb.png"]["error"]
    assert "truncated" in rows["too-little-data.png"]["error"]
    assert rows["good.png"]["error"] is None
    # More data than the header announces: Pillow reads the announced 8 x 8 pixels and leaves the rest packed.
    assert rows["too-much-data.png"]["score"] is not None


def test_the_size_limit_is_an_option(score: Score, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, side in (("small", 99), ("large", 101)):
        Image.fromarray(np.zeros((side, 100, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    score(tmp_path / "images", max_pixels=10_000)
    rows = read_rows(tmp_path / "out")
    assert rows["small.png"]["error"] is None
    assert "10100 pixels" in rows["large.png"]["error"]


def test_a_run_killed_again_and_again_ends_with_the_result_of_an_uninterrupted_one(
    score: Score, tmp_path: Path, tiny_file: Path
) -> None:
    random = np.random.default_rng(8)
    photos = tmp_path / "many"
    photos.mkdir()
    for number in range(150):
        (photos / f"{number:03d}.png").write_bytes(encode(number))
    (photos / "077.png").write_bytes(b"no image")
    # In a separate process: the run is killed by itself, at a random image, in the middle of its work.
    code = """
import os, signal, sys
from rali_core.dataset import score_dataset
if __name__ == "__main__":
    source, out, model, limit = sys.argv[1:]
    begun = []
    def progress(done, total):
        begun.append(done)
        if done - begun[0] >= int(limit):
            os.kill(os.getpid(), signal.SIGKILL)
    score_dataset(source, out, model=model, shard_size=8, batch_size=4, workers=1, device="cpu", progress=progress)
"""
    script = tmp_path / "run.py"
    script.write_text(code)
    ends = []
    for limit in [0, *random.integers(1, 70, 3).tolist(), 10**6]:
        done = subprocess.run(
            [sys.executable, str(script), str(photos), str(tmp_path / "killed"), str(tiny_file), str(limit)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        ends.append(done.returncode)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert ends[0] == ends[1] == -signal.SIGKILL
    assert ends[-1] == 0
    assert no_half_files(tmp_path / "killed")
    score(photos, "whole", shard_size=8)
    rows = read_rows(tmp_path / "whole")
    assert len(rows) == 150
    assert read_rows(tmp_path / "killed") == approximately(rows)
