from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rali_core import __version__
from rali_core.calibration import Calibration
from rali_core.checkpoint import ModelInfo, save_model
from rali_core.cli import main
from rali_core.model import RaliModel
from rali_core.scorer import RaliScorer

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, two of them in a folder inside, and two files that are no images."""
    random = np.random.default_rng(0)
    root = tmp_path / "images"
    (root / "inner").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "c.webp", "d.bmp", "e.PNG", "inner/f.png", "inner/g.tif"):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def scores_of(paths: list[Path], model: Path) -> dict[str, float]:
    scores = RaliScorer.from_pretrained(model, device="cpu").score(paths).scores.tolist()
    return {str(path): score for path, score in zip(paths, scores, strict=True)}


def test_the_table_is_sorted_best_first_and_has_what_the_library_says(
    folder: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(folder), "--model", str(tiny_file)]) == 0
    printed = capsys.readouterr()
    rows = [line.split(None, 3) for line in printed.out.splitlines()]
    assert rows[0] == ["score", "band", "percentile", "file"]
    expected = scores_of([folder / name for name in ("a.png", "b.jpg", "c.webp", "d.bmp", "e.PNG")], tiny_file)
    assert {row[3]: float(row[0]) for row in rows[1:]} == pytest.approx(expected, abs=1e-4)
    values = [float(row[0]) for row in rows[1:]]
    assert values == sorted(values, reverse=True)
    assert printed.err == ""


def test_percentiles_are_given_among_each_kind_of_reference_image(
    folder: Path, tiny_model: RaliModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = (np.linspace(0.0, 0.2, 101), "made up"), (np.linspace(0.8, 1.0, 101), "made up")
    info = ModelInfo("two", "Apache-2.0", calibration=Calibration.from_scores({"sketches": low, "renders": high}))
    save_model(tmp_path / "two.safetensors", tiny_model, info)
    model = ["--model", str(tmp_path / "two.safetensors")]
    assert main(["score", str(folder / "a.png"), *model]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[-3:] == ["% of sketches", "% of renders", "file"]
    assert row.split()[2:4] == ["100.0", "0.0"]
    assert main(["score", str(folder / "a.png"), "--json", *model]) == 0
    assert json.loads(capsys.readouterr().out)[0]["percentiles"] == {"sketches": 100.0, "renders": 0.0}


def test_json_is_in_input_order_with_an_error_for_what_cannot_be_read(
    folder: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [folder / "d.bmp", folder / "notes.txt", folder / "a.png", folder / "gone.png"]
    assert main(["score", *map(str, paths), "--json", "--model", str(tiny_file)]) == 1
    printed = capsys.readouterr()
    records = json.loads(printed.out)
    assert [record["file"] for record in records] == [str(path) for path in paths]
    assert set(records[0]) == {"file", "score", "band", "percentile"}
    assert set(records[1]) == {"file", "error"}
    assert "not an image that Pillow can read" in records[1]["error"]
    assert "no such file" in records[3]["error"]
    expected = scores_of([paths[0], paths[2]], tiny_file)
    assert records[0]["score"] == pytest.approx(expected[str(paths[0])], abs=1e-5)
    assert records[2]["score"] == pytest.approx(expected[str(paths[2])], abs=1e-5)
    assert "2 of 4 images could not be scored" in printed.err


def test_jsonl_and_csv_hold_the_same_results(
    folder: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scores.csv"
    arguments = ["score", str(folder), "--recursive", "--jsonl", "--csv", str(table), "--model", str(tiny_file)]
    assert main(arguments) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 7
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["file"] for row in rows] == [record["file"] for record in records]
    assert [float(row["score"]) for row in rows] == [record["score"] for record in records]


def test_top_k_and_min_score_choose(folder: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = scores_of(sorted(folder.glob("*.*[gpG]"))[:5], tiny_file)
    base = ["score", str(folder), "--json", "--model", str(tiny_file)]
    main([*base, "--top-k", "2"])
    best = {record["file"] for record in json.loads(capsys.readouterr().out)}
    assert best == set(sorted(everything, key=lambda file: -everything[file])[:2])
    threshold = sorted(everything.values())[2]
    main([*base, "--min-score", str(threshold - 1e-4)])
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["score", str(folder), "--min-score", "2", "--model", str(tiny_file)]) == 0
    assert capsys.readouterr().out == "no image to show\n"


def test_the_printed_parts_add_up_to_the_printed_score(
    folder: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(folder / "a.png"), "--explain", "--model", str(tiny_file)]) == 0
    text = capsys.readouterr().out
    score = float(re.findall(r"a\.png: (\d\.\d+) = sum of the contributions", text)[0])
    parts = [float(line.split()[3]) for line in text.splitlines() if re.match(r"  (#\d+|others) ", line)]
    assert len(parts) == 6
    assert sum(parts) == pytest.approx(score, abs=1e-4)


def test_a_folder_is_searched_deeply_only_when_asked(
    folder: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["score", str(folder), str(folder / "a.png"), "--json", "--model", str(tiny_file)])
    assert len(json.loads(capsys.readouterr().out)) == 5, "a file that was found twice counts once"
    main(["score", str(folder), "-r", "--json", "--model", str(tiny_file)])
    assert len(json.loads(capsys.readouterr().out)) == 7
    (folder / "empty").mkdir()
    assert main(["score", str(folder / "empty"), "--model", str(tiny_file)]) == 1
    assert "no images in" in capsys.readouterr().err


def test_the_best_images_are_copied_and_nothing_is_overwritten(
    folder: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "keep"
    arguments = ["best", str(folder), "-k", "2", "--copy-to", str(keep), "--model", str(tiny_file)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    chosen = [Path(line.split(None, 1)[1]) for line in lines]
    expected = scores_of(
        sorted(path for path in folder.iterdir() if path.suffix.lower() not in ("", ".txt")), tiny_file
    )
    assert [str(path) for path in chosen] == sorted(expected, key=lambda file: -expected[file])[:2]
    assert {path.name for path in keep.iterdir()} == {path.name for path in chosen}
    assert main(arguments) == 0
    assert len(list(keep.iterdir())) == 4
    for path in chosen:
        assert (keep / path.name).read_bytes() == path.read_bytes()
        assert (keep / f"{path.stem}-2{path.suffix}").read_bytes() == path.read_bytes()


def test_info_prints_what_the_file_says(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_file)]) == 0
    text = capsys.readouterr().out
    assert "name: tiny" in text
    assert "quantiles: 101 numbers from 0.200 to 0.800" in text
    assert main(["info", str(tiny_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encoder"]["embed_dim"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "{folder}", "--top-k", "0"], "--top-k must be at least 1, got 0"),
        (["score", "{folder}", "--jsonl", "--top-k", "2"], "use --json"),
        (["score", "{folder}", "--json", "--explain"], "--explain belongs to the table"),
        (["score", "{folder}", "--model", "{folder}/notes.txt"], "not a readable .safetensors file"),
        (["score", "{folder}", "--model", "no-such-model"], "no model 'no-such-model'"),
        (["score", "{folder}", "--device", "toaster"], "unknown device 'toaster'"),
        (["score", "{folder}", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["score", "{folder}", "--csv", "{folder}/absent/x.csv"], "No such file or directory"),
        (["best", "{folder}", "-k", "0"], "-k must be at least 1, got 0"),
        (["eval", "{folder}/absent.csv"], "no labels file"),
        (["info", "{folder}"], "expected a model file, got a folder"),
    ],
)
def test_wrong_usage_ends_with_one_clear_line(
    arguments: list[str], message: str, folder: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.format(folder=folder) for argument in arguments]
    if "--model" not in arguments and arguments[0] != "info":
        arguments += ["--model", str(tiny_file)]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("rali: ")
    assert "Traceback" not in printed.err


def test_eval_prints_the_figures_and_draws_them(
    folder: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = scores_of(
        sorted(path for path in folder.iterdir() if path.suffix.lower() not in ("", ".txt")), tiny_file
    )
    lines = [f"{Path(file).name},{1 - score},test,0" for file, score in expected.items()]
    labels = folder / "labels.csv"
    labels.write_text(
        "image,mos,split,near_dup_in_train\n" + "\n".join(lines) + "\ninner/f.png,0.5,train,0\ninner/g.tif,0.1,test,1\n"
    )
    plot = tmp_path / "plot.png"
    assert main(["eval", str(labels), "--model", str(tiny_file), "--plot", str(plot), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["count"] == 5, "neither the training row nor the flagged near-duplicate"
    assert figures["srcc"] == pytest.approx(-1)
    assert figures["plcc"] == pytest.approx(-1, abs=1e-5)
    with Image.open(plot) as image:
        assert image.size == (832, 780)
    assert main(["eval", str(labels), "--model", str(tiny_file), "--split", "validation"]) == 1
    assert "no rows with split 'validation'; the table has test, train" in capsys.readouterr().err


def run_rali(*arguments: str, **options: object) -> subprocess.Popen[str]:
    code = "import sys; from rali_core.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,  # type: ignore[call-overload]
    )  # fmt: skip


def test_ctrl_c_prints_what_was_scored_so_far(folder: Path, tiny_file: Path) -> None:
    many = folder / "many"
    many.mkdir()
    for index in range(3000):
        os.link(folder / "a.png", many / f"{index:04}.png")
    process = run_rali("score", str(many), "--jsonl", "--model", str(tiny_file), "--batch-size", "1")
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.stderr is not None
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 130
    process.stdout.close()
    process.stderr.close()
    records = [json.loads(line) for line in first + rest.splitlines()]
    assert 5 <= len(records) < 3000
    assert f"stopped after {len(records)} of 3000 images" in errors
    assert "Traceback" not in errors


def test_ctrl_c_still_prints_the_table_and_writes_the_csv(folder: Path, tiny_file: Path, tmp_path: Path) -> None:
    many = folder / "many"
    many.mkdir()
    for index in range(20_000):
        os.link(folder / "a.png", many / f"{index:05}.png")
    table = tmp_path / "scores.csv"
    process = run_rali("score", str(many), "--model", str(tiny_file), "--csv", str(table), "--batch-size", "1")
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    while not table.exists():  # it is opened just before the model is loaded
        assert time.monotonic() < deadline, "the run never began"
        time.sleep(0.05)
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    if "stopped after" in errors:  # not stopped before the first image, on a slow machine
        count = int(re.findall(r"stopped after (\d+) of 20000", errors)[0])
        assert len(out.splitlines()) == max(count + 1, 1)
        assert len(table.read_text().splitlines()) == count + 1


def test_a_closed_pipe_ends_quietly(folder: Path, tiny_file: Path) -> None:
    process = run_rali("score", str(folder), "--jsonl", "--model", str(tiny_file), "--batch-size", "1")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys; from rali_core.cli.main import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_has_a_help_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("score", "best", "info", "eval", "train"):
        assert re.search(rf"^    {command} ", text, re.MULTILINE), command
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert len(capsys.readouterr().out) > 300
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rali {__version__}\n"


def test_reasons_stand_beside_the_band_and_each_attribute_in_json_and_csv(
    folder: Path, probing_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40)).save(folder / "black.png")
    base = ["score", str(folder), "--model", str(probing_file)]
    table, sheet = tmp_path / "scores.csv", tmp_path / "sheet.png"
    assert main([*base, "--reasons", "--csv", str(table), "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert main([*base, "--reasons", "--json"]) == 0
    records = {record["file"]: record for record in json.loads(capsys.readouterr().out)}
    scorer = RaliScorer.from_pretrained(probing_file, device="cpu", attributes=True)
    expected = {str(path): scorer.score(path) for path in map(Path, records)}
    assert printed[0].split() == ["score", "band:", "reasons", "percentile", "file"]
    with table.open(newline="") as handle:
        rows = {row["file"]: row for row in csv.DictReader(handle)}
    for line in printed[1:]:
        name = line.split("  ")[-1].strip()
        told, record, row = expected[name].attributes[0], records[name], rows[name]
        if told is None:
            assert name.endswith("black.png")
            assert "no content  " in line
            assert "words" not in record
            assert (row["words"], row["blur"]) == ("", "")
            continue
        assert f"{expected[name].bands[0]}{': ' * bool(told.words)}{', '.join(told.words)}  " in line
        assert record["attributes"] == pytest.approx(told.values, abs=1e-4)
        assert (record["words"], row["words"]) == (list(told.words), ", ".join(told.words))
        assert [float(row[name]) for name in ("blur", "noise")] == list(record["attributes"].values())
    assert {len(record.get("words", ())) for record in records.values()} >= {0, 1}, "a test of one kind shows little"
    assert main([*base, "--json"]) == 0
    assert all("words" not in record for record in json.loads(capsys.readouterr().out))


def test_reasons_of_a_model_without_probes_are_one_clear_error(
    folder: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(folder), "--model", str(tiny_file), "--reasons"]) != 0
    assert "the model 'tiny' tells no attributes, because its file has no probes" in capsys.readouterr().err
