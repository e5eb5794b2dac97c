"""The command as a process: consoles, shells, names and lists of every kind of system."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CONSOLES = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}
ODD_NAMES = [
    "cafe😀.jpg".encode(), b"caf\xe9\xff.png", b"line\nbreak.png", b"12::30.jpg", b"-0.png", b"[a].png", b' "q" .png',
    b"esc\x1b[31m.png", "\u00e9.png".encode(), "e\u0301.png".encode(), b"cr\r.png",
]  # fmt: skip

posix = pytest.mark.skipif(os.name == "nt", reason="such names cannot be there")
Rali = Callable[..., "subprocess.CompletedProcess[bytes]"]


def save(path: Path, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "JPEG" if path.name.endswith(".jpg") else "PNG"
    Image.fromarray(random.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path, form)
    return path


@pytest.fixture
def rali(tiny_file: Path, tmp_path: Path) -> Rali:
    """Run the command in `tmp_path` with the tiny model."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
        code = "import sys; from rali_core.cli import main; sys.exit(main())"
        model = (
            ["--model", str(tiny_file), "--device", "cpu"]
            if arguments[0] in ("score", "best") or arguments[1] == "score"
            else []
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}  # type: ignore[dict-item]
        return subprocess.run([sys.executable, "-c", code, *map(os.fspath, arguments), *model],
                              cwd=tmp_path, env=env, capture_output=True, check=False, **options)  # type: ignore[call-overload, no-any-return]  # fmt: skip

    return run


@pytest.fixture
def odd(tmp_path: Path) -> list[Path]:
    """Images with names that consoles, lists and tables stumble over."""
    folder = os.path.join(os.fsencode(tmp_path), b"odd")
    return [save(Path(os.fsdecode(os.path.join(folder, name))), seed) for seed, name in enumerate(ODD_NAMES)]


def raw(path: Path) -> bytes:
    return os.fsencode(path)


@posix
@pytest.mark.parametrize("console", CONSOLES)
def test_no_console_ends_the_work(console: str, rali: Rali, odd: list[Path], tmp_path: Path) -> None:
    done = rali("score", "odd", "--csv", "s.csv", env=CONSOLES[console])
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 1 + len(odd), "a line for each"
    assert b"\x1b" not in done.stdout
    assert b"caf\\xe9\\xff.png" in done.stdout
    assert (b"cafe\\U0001f600.jpg" if console in ("cp1252", "ascii") else b"cafe") in done.stdout
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"].encode("utf-8", "surrogateescape") for row in rows} == {b"odd/" + name for name in ODD_NAMES}
    best = rali("best", "odd", "-k", "20", "--copy-to", "keep", env=CONSOLES[console])
    assert (best.returncode, best.stderr) == (0, b"")
    kept = {*ODD_NAMES, "e\u0301-2.png".encode()} - {"e\u0301.png".encode()}  # on some systems the two are one name
    assert set(os.listdir(os.fsencode(tmp_path / "keep"))) == kept
    assert b"No module named" not in rali("score", "gone😀.png", env=CONSOLES[console]).stderr


@posix
@pytest.mark.parametrize("console", ["ascii", "C"])
def test_json_and_jsonl_hold_every_name(console: str, rali: Rali, odd: list[Path]) -> None:
    for form in ("--json", "--jsonl"):
        done = rali("score", "odd", form, env=CONSOLES[console])
        records = (
            json.loads(done.stdout) if form == "--json" else [json.loads(line) for line in done.stdout.splitlines()]
        )
        assert {record["file"].encode("utf-8", "surrogateescape") for record in records} == {
            b"odd/" + name for name in ODD_NAMES
        }
        assert all("score" in record for record in records)
    assert len(odd) == len(ODD_NAMES)


@posix
def test_names_survive_a_data_set_and_its_lists(rali: Rali, odd: list[Path], tmp_path: Path) -> None:
    done = rali("dataset", "score", "odd", "out", "--workers", "1", env=CONSOLES["cp1252"])
    assert done.returncode == 0, done.stderr
    assert f"{len(odd)} images: {len(odd)} scored".encode() in done.stdout
    lines = rali("dataset", "filter", "out", "--min-score", "0")
    assert lines.returncode == 1
    assert b"2 names hold a line break" in lines.stderr
    assert b"(-0)" in lines.stderr
    assert lines.stdout == b""
    listed = rali("dataset", "filter", "out", "--min-score", "0", "-0")
    assert set(listed.stdout.split(b"\0")[:-1]) == {raw(path) for path in odd}
    scored = rali("score", "-", "--json", input=listed.stdout)
    assert len(json.loads(scored.stdout)) == len(odd)
    assert scored.returncode == 0, scored.stderr
    (tmp_path / "list.txt").write_bytes(listed.stdout)
    again = rali("dataset", "score", "list.txt", "again", "--workers", "1")
    assert f"{len(odd)} images: {len(odd)} scored".encode() in again.stdout
    copied = rali("dataset", "filter", "out", "--min-score", "0", "--copy", "copies")
    assert copied.returncode == 0
    assert len(list((tmp_path / "copies").iterdir())) == len(odd)
    assert f"{len(odd)} images copied to copies".encode() in copied.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_lists_on_standard_input_are_read_as_they_are_meant(encoding: str, rali: Rali, tmp_path: Path) -> None:
    for number, name in enumerate(["é b.png", "sub/a.png", "c.png"]):
        save(tmp_path / name, number)
    text = '"é b.png"\r\n\r\nsub\\a.png\r\nc.png\r\ngone.png'
    done = rali("score", "-", "--json", input=text.encode(encoding))
    records = json.loads(done.stdout)
    assert [record["file"] for record in records] == ["é b.png", "sub/a.png", "c.png", "gone.png"]
    assert [("score" in record) for record in records] == [True, True, True, False]
    assert done.returncode == 1


def test_an_empty_list_is_one_clear_line(rali: Rali) -> None:
    done = rali("score", "-", input=b"")
    assert (done.returncode, done.stderr) == (1, b"rali: the list on standard input is empty\n")


def test_patterns_that_the_shell_left_are_expanded(rali: Rali, tmp_path: Path) -> None:
    for number, name in enumerate(["p/a.jpg", "p/b.jpg", "p/c.png", "p/[x].jpg", "p/deep/d.jpg"]):
        save(tmp_path / name, number)
    found = json.loads(rali("score", "p/*.jpg", "--json").stdout)
    assert [Path(record["file"]).name for record in found] == ["[x].jpg", "a.jpg", "b.jpg"]
    assert [record["file"] for record in json.loads(rali("score", "p/[x].jpg", "--json").stdout)] == ["p/[x].jpg"]
    assert len(json.loads(rali("score", "p/**/*.jpg", "--json").stdout)) == 4
    nothing = rali("score", "p/*.webp")
    assert nothing.returncode == 1
    assert b"no such file: p/*.webp" in nothing.stderr


def test_installed_plugins_of_pillow_are_used(rali: Rali, tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png").rename(tmp_path / "p" / "a.jxl")
    plugin = "from PIL import Image, PngImagePlugin\nImage.register_extension('PNG', '.jxl')\n"
    without = rali("score", "p").stderr.decode()
    assert (
        "left out 1 file that is no image by its name: 1 .jxl (to read them: pip install pillow-jxl-plugin)" in without
    )
    assert "no images in p" in without
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "pillow_jxl.py").write_text(plugin)
    done = rali("score", "p", "--json", env={"PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), *sys.path])})
    assert [Path(record["file"]).name for record in json.loads(done.stdout)] == ["a.jxl"], done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "p", "--min-score", "nan"], ["best", "p", "--max-score", "nan"],
        ["dataset", "filter", "out", "--top-fraction", "nan"],
    ],
)  # fmt: skip
def test_nan_is_no_threshold(arguments: list[str], rali: Rali) -> None:
    done = rali(*arguments)
    assert done.returncode == 2
    assert f"argument {arguments[-2]}: invalid number value: 'nan'".encode() in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sheet", "sheet"], "--sheet sheet has no ending; expected one of .png, .jpg"),
        (["--sheet", "s.xyz"], "--sheet s.xyz ends in '.xyz'; expected one of .png"),
        (["--sheet", "gone/s.png"], "--sheet gone/s.png cannot be written: No such file or directory: gone"),
        (["--sheet", "p"], "expected one of"),
        (["--csv", "p"], "--csv p cannot be written: it is a folder"),
        (["--csv", "gone/s.csv"], "--csv gone/s.csv cannot be written: No such file or directory: gone"),
        (["--csv", "x" * 300], "cannot be written: File name too long"),
        (["--csv", "p/a.png/s.csv"], "cannot be written: "),
        (["--csv", "-", "--json"], "--csv and --json cannot both go to standard output"),
        (["--csv", "-", "--sheet", "-"], "--csv and --sheet cannot both go to standard output"),
    ],
)
def test_outputs_are_checked_before_the_work(arguments: list[str], message: str, rali: Rali, tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png")
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    done = rali("score", "p", *arguments)
    assert done.returncode == 1
    assert message.encode() in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (done.stdout, {path: path.stat().st_size for path in tmp_path.rglob("*")}) == (b"", before)


@pytest.mark.parametrize(
    "arguments",
    [
        ["best", "p", "--copy-to", "file/x"],
        ["best", "p", "--copy-to", "-"],
        ["best", "p", "--move"],
        ["best", "p", "--sidecars"],
        ["best", "p", "--copy-to", "a", "--into-bands", "b"],
        ["best", "p", "--copy-to", "a", "--move", "b"],
        ["dataset", "filter", "out", "--top-k", "1", "--copy", "file/x"],
        ["dataset", "filter", "out", "--top-k", "1", "--list", "gone/x"],
        ["dataset", "filter", "out", "--top-k", "1", "--list", "x", "--copy", "y"],
        ["dataset", "filter", "out", "--top-k", "1", "--link", "x", "--move"],
    ],
)  # fmt: skip
def test_folders_are_checked_before_the_work(arguments: list[str], rali: Rali, tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png")
    (tmp_path / "file").write_text("a file")
    done = rali(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(b"rali: --")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("[xy]"))


def test_a_dash_is_standard_output(rali: Rali, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "p" / f"{number}.png", number)
    table = rali("score", "p", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(table.stdout.decode(), newline="")))
    assert [row["file"] for row in rows] == [os.path.join("p", f"{number}.png") for number in range(3)]
    with Image.open(io.BytesIO(rali("score", "p", "--sheet", "-").stdout)) as sheet:
        assert sheet.format == "PNG"
    assert not (tmp_path / "-").exists()


def test_a_sheet_leaves_out_images_that_were_deleted(rali: Rali, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "p" / f"{number}.png", number)
    for form in ("png", "jpg", "webp", "pdf"):
        done = rali("score", "p", "--sheet", f"s.{form}")
        assert (done.returncode, done.stderr) == (0, f"rali: wrote s.{form}\n".encode())
        assert (tmp_path / f"s.{form}").stat().st_size > 1000


@posix
def test_folders_that_cannot_be_read_are_named_and_the_rest_is_scored(rali: Rali, tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png")
    here = os.getcwd()
    try:  # so deep that its path is too long: a folder that not even root can list
        os.chdir(tmp_path / "p")
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
    finally:
        os.chdir(here)
    done = rali("score", "p", "-r")
    assert done.returncode == 1
    assert b"the folder cannot be read, so its images are not scored: " in done.stderr
    assert b"File name too long" in done.stderr
    assert done.stdout.splitlines()[1].endswith(b"p/a.png")


def test_files_left_out_are_counted_in_one_line(rali: Rali, tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png")
    for name in ("a.txt", "._a.png", ".DS_Store", "__MACOSX/._a.png", "x/._b.png"):
        path = tmp_path / "p" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    quiet = rali("score", "p", "-r")
    assert (quiet.returncode, quiet.stderr) == (0, b""), "captions beside images are usual"
    for name in ("b.xcf", "c.xcf", "d.cr3", "e"):
        (tmp_path / "p" / name).write_bytes(b"?")
    out = rali("score", "p", "-r")
    assert out.returncode == 0
    assert out.stderr == (
        b"rali: left out 5 files that are no images by their names: 2 .xcf, 1 .txt, 1 .cr3, 1 without an ending\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="head is not there")
def test_a_reader_that_goes_away_ends_the_printing_only(tiny_file: Path, tmp_path: Path) -> None:
    for number in range(30):
        save(tmp_path / "p" / f"{number:02d}.png", number)
    code = "import sys; from rali_core.cli import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for arguments in (
        ["score", "p", "--jsonl", "--csv", "s.csv", "--sheet", "s.png"],
        ["best", "p", "-k", "30", "--copy-to", "keep"],
    ):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-c", code, *arguments, "--model", str(tiny_file), "--batch-size", "1"]
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (done.returncode, done.stderr.replace(b"rali: wrote s.png\n", b"")) == (0, b"")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 31
    assert (tmp_path / "s.png").exists()
    assert len(list((tmp_path / "keep").iterdir())) == 30


@posix
def test_a_closed_console_changes_nothing(tiny_file: Path, tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png")
    code = "import sys; from rali_core.cli import main; sys.exit(main())"
    command = f'exec "{sys.executable}" -c "{code}" best p --copy-to keep --model "{tiny_file}" >&- 2>&-'
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, check=False).returncode == 0
    assert (tmp_path / "keep" / "a.png").exists()


def test_the_end_of_the_process_searches_for_no_garbage(tiny_file: Path, tmp_path: Path) -> None:
    """With torch loaded that takes a second, a quarter of `rali score one.png`."""
    save(tmp_path / "a.png")
    code = (
        "import atexit, gc, sys; from rali_core.cli import main\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 10_000))\n"  # runs after those of `main`
        "sys.exit(main())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "score", "a.png", "--csv", "s.csv", "--model", str(tiny_file)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("frozen True\n")
    assert "a.png" in (tmp_path / "s.csv").read_text()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine, of `tmp_path`/web."""
    (tmp_path / "web").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "web")) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()


def test_urls_are_scored_as_files_are(server: str, rali: Rali, tmp_path: Path) -> None:
    save(tmp_path / "web" / "a.png", 1)
    save(tmp_path / "web" / "b c.png", 2)
    (tmp_path / "web" / "bad.png").write_bytes(b"no image")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "web" / "a.png", "deep/a.png")
    names = [
        f"{server}/a.png",
        "web/b c.png",
        f"{server}/b%20c.png",
        f"{server}/gone.png",
        f"{server}/bad.png",
        "zip://deep/a.png::all.zip",
    ]
    done = rali("score", "-", "--json", "--sheet", "s.png", input="\n".join(names).encode())
    records = json.loads(done.stdout)
    assert [record["file"] for record in records] == names
    scores = [record.get("score") for record in records]
    assert scores[0] == pytest.approx(scores[5], abs=1e-5)
    assert scores[1] == pytest.approx(scores[2], abs=1e-5)
    assert "404" in records[3]["error"]
    assert f"not an image that Pillow can read: {server}/bad.png" in records[4]["error"]
    assert done.returncode == 1
    copied = rali("best", *names[:3], "-k", "3", "--copy-to", "keep")
    assert copied.returncode == 0, copied.stderr
    assert len(list((tmp_path / "keep").iterdir())) == 3
    refused = rali("best", names[0], "--move", "keep")
    assert b"is no local file and cannot be moved" in refused.stderr


def test_urls_without_fsspec_and_of_no_protocol_are_one_clear_line(rali: Rali, tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text("import sys; sys.modules['fsspec'] = None")
    path = os.pathsep.join([str(tmp_path / "blocked"), *sys.path])
    for url in ("s3://bucket/a.png", "https://host.invalid/a.png"):
        done = rali("score", url, env={"PYTHONPATH": path})
        assert done.returncode == 1
        assert (
            done.stderr.decode()
            == f'rali: {url} is a URL, and reading it needs fsspec: pip install "rali-score[dataset]"\n'
        )
    unknown = rali("score", "nope://a.png")
    assert b"nope://a.png cannot be read: no such file, and no URL that fsspec knows" in unknown.stderr
    assert len(unknown.stderr.splitlines()) == 1


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_best_takes_sidecars_along_and_moves(rali: Rali, tmp_path: Path) -> None:
    for number, name in enumerate(["x/a.jpg", "y/a.png", "x/b.png", "x/b.jpg", "y/c.jpg"]):
        save(tmp_path / name, number)
    for name in ("x/a.txt", "x/a.jpg.xmp", "x/a.npz", "y/a.caption", "y/a.TXT", "x/b.json", "x/other.txt", "x/a.log"):
        (tmp_path / name).write_text(name)
    paths = ["x/a.jpg", "y/a.png", "x/b.png"]
    done = rali("best", *paths, "-k", "3", "--copy-to", "keep", "--sidecars")
    assert done.returncode == 0, done.stderr
    first, second = ("a", "a-2") if (tmp_path / "keep" / "a.jpg").exists() else ("a-2", "a")
    assert names(tmp_path / "keep") == {
        f"{first}.jpg", f"{first}.txt", f"{first}.jpg.xmp", f"{first}.npz",
        f"{second}.png", f"{second}.caption", f"{second}.TXT", "b.png", "b.json",
    }  # fmt: skip
    moved = rali("best", *paths, "-k", "3", "--move", "moved", "--sidecars")
    assert moved.returncode == 0, moved.stderr
    assert names(tmp_path / "moved") == names(tmp_path / "keep")
    assert names(tmp_path / "x") == {"b.jpg", "b.json", "other.txt", "a.log"}, "b.jpg keeps what is its own too"
    assert names(tmp_path / "y") == {"c.jpg"}


def test_best_sorts_into_bands_and_obeys_limits(rali: Rali, tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / "p" / f"{number}.png", number)
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "p" / "blank.png")
    records = {Path(record["file"]).name: record for record in json.loads(rali("score", "p", "--json").stdout)}
    done = rali("best", "p", "--into-bands", "bands")
    assert (done.returncode, done.stderr) == (0, b"rali: p/blank.png: no content\n")
    assert names(tmp_path / "bands") == {os.path.join(record["band"], name) for name, record in records.items()}
    middle = sorted(record["score"] for record in records.values())[4]
    limited = rali("best", "p", "-k", "9", "--max-score", str(middle + 1e-5))
    assert len(limited.stdout.splitlines()) == 5
    chosen = json.loads(rali("score", "p", "--json", "--max-score", str(middle + 1e-5)).stdout)
    assert len(chosen) == 5


def test_images_without_content_are_named_and_come_last(rali: Rali, tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png")
    for colour in ("black", "white"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "p" / f"{colour}.png")
    table = rali("score", "p", "--csv", "s.csv").stdout.decode().splitlines()
    assert table[1].endswith("a.png")
    assert all(re.match(r"0\.0200  no content ", line) for line in table[2:])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert [(row["band"], row["reason"]) for row in rows[1:]] == [("bad", "no content")] * 2
    best = rali("best", "p")
    assert best.stdout.rstrip().endswith(b"a.png")
    scored = rali("dataset", "score", "p", "out", "--workers", "1")
    assert b"2 of the scored images have no content" in scored.stdout
    filtered = rali("dataset", "filter", "out", "--top-k", "2")
    assert b"1 of them have no content" in filtered.stderr
    assert b"a.png" in filtered.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
def test_a_full_disk_behind_the_output_costs_the_printing_only(tiny_file: Path, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "p" / f"{number}.png", number)
    code = "import sys; from rali_core.cli import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "score", "p", "--jsonl", "--csv", "s.csv", "--model", str(tiny_file)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"rali: standard output could not be written: No space left on device\n"
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 4


def run_here(tiny_file: Path, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    from rali_core.cli import main

    status = main([*map(os.fspath, arguments), "--model", str(tiny_file), "--device", "cpu"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class FullDisk(io.BytesIO):
    """A file whose disk is full after some bytes."""

    room = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(28, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("option", ["--csv", "--sheet", "--plot"])
def test_a_full_disk_behind_an_output_file_costs_that_file_only(
    option: str, tiny_file: Path, tmp_path: Path, write_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for number in range(3):
        save(tmp_path / "p" / f"{number}.png", number)
    random = np.random.default_rng(0)
    write_clip(tmp_path / "p" / "c.mp4", [random.integers(0, 256, (48, 64, 3), dtype=np.uint8)] * 3)
    target = tmp_path / f"out{'.csv' if option == '--csv' else '.png'}"
    real = open
    FullDisk.room = 100  # a heading, and no row

    def opened(name: Any, *others: Any, **named: Any) -> Any:
        return FullDisk() if str(name) == str(target) else real(name, *others, **named)

    monkeypatch.setattr("builtins.open", opened)
    status, out, err = run_here(tiny_file, capsys, "score", tmp_path / "p", "--videos", option, target)
    assert status == 1
    assert len([line for line in out.splitlines() if line.endswith((".png", ".mp4"))]) == 4, "the table is printed"
    assert err.count("cannot be written") == 1
    assert f"{target} cannot be written: No space left on device" in err


def test_an_output_that_is_an_image_to_score_is_refused_before_the_work(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = save(tmp_path / "a.png"), save(tmp_path / "b.png", 1)
    before = second.read_bytes()
    for option in ("--csv", "--sheet"):
        status, _, err = run_here(tiny_file, capsys, "score", first, second, option, second)
        assert status == 1
        assert "b.png is one of the images to score" in err
    assert second.read_bytes() == before
    if hasattr(os, "symlink") and os.name != "nt":
        (tmp_path / "link.csv").symlink_to(tmp_path / "made.csv")
        assert run_here(tiny_file, capsys, "score", first, "--csv", tmp_path / "link.csv")[0] == 0
        assert (tmp_path / "made.csv").read_text().count("\n") == 2


def test_a_name_that_no_file_can_have_costs_no_other(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(tmp_path / "a.png")
    names = [str(good), str(tmp_path / ("x" * 300 + ".png"))]
    status, out, err = run_here(tiny_file, capsys, "score", *names)
    assert (status, out.count("a.png")) == (1, 1)
    assert "1 of 2 images could not be scored" in err
    listed = io.TextIOWrapper(io.BytesIO("\n".join([*names, "y" * 5000]).encode()))
    monkeypatch.setattr(sys, "stdin", listed)
    status, out, err = run_here(tiny_file, capsys, "score", "-")
    assert (status, out.count("a.png")) == (1, 1)
    assert "2 of 3 images could not be scored" in err
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    status, out, err = run_here(tiny_file, capsys, "score", tmp_path)
    assert (status, out.count("a.png")) == (1, 1)
    assert "loop.png" in err


def test_images_that_are_scored_reach_the_sheet_too(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    with Image.open(save(tmp_path / "a.png")) as image:
        image.save(tmp_path / "b.png", pnginfo=text)
    status, _, err = run_here(tiny_file, capsys, "score", tmp_path / "b.png", "--sheet", tmp_path / "s.png")
    assert status == 0
    assert err == f"rali: wrote {tmp_path / 's.png'}\n"


def test_moving_into_the_images_own_folder_changes_no_name(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        save(tmp_path / "p" / f"{number}.png", number)
    status, out, _ = run_here(tiny_file, capsys, "best", tmp_path / "p", "-k", "2", "--move", tmp_path / "p")
    assert (status, out.count(".png")) == (0, 2)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["0.png", "1.png"]
    _, out, err = run_here(tiny_file, capsys, "best", tmp_path / "p", "--min-score", "2")
    assert (out, err) == ("", "rali: no image is within the limits\n")
