"""Sources of descriptions behind one interface, and the run that writes, resumes and shares out the work."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from rali_core.cli import main
from rali_core.describe.describers import (
    FileDescriber,
    MeasuredDescriber,
    ScoreDescriber,
    describe_all,
    failures_path,
    make_describer,
)
from rali_core.describe.records import DescriptionRecord, read_descriptions
from rali_core.describe.request import Description, DescriptionError, DescriptionRequest
from rali_core.labels import read_labels
from rali_core.training.distortions import distort

Photographs = dict[str, Image.Image]


class Counting:
    """A source that says its seed, and cannot say anything of an image that is called broken."""

    source = "counting"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        self.asked.append((request.image, seed))
        if request.image == "broken":
            raise DescriptionError("cannot", outputs=("what?", "how?"))
        return Description(f"seed {seed}", request.score)


def request_named(image: str) -> DescriptionRequest:
    return DescriptionRequest(image, Path(image))


def mixed_requests(photographs: Photographs, folder: Path) -> list[DescriptionRequest]:
    """Files, images and renderings, two of which cannot be described."""
    small = {name: photograph.resize((96, 80)) for name, photograph in photographs.items()}
    small["cat"].save(folder / "cat.png")
    return [
        DescriptionRequest("cat.png", folder / "cat.png", score=0.7),
        DescriptionRequest("none.png", folder / "none.png"),
        DescriptionRequest("astronaut", small["astronaut"]),
        DescriptionRequest("tiny", Image.new("RGB", (9, 9))),
        *(
            DescriptionRequest(f"{name}-{kind}", partial(distort, small[name], kind, 4), distortion=kind, level=4)
            for name in ("coffee", "rocket")
            for kind in ("ringing", "jpeg", "banding")
        ),
    ]


def test_workers_write_the_same_files_as_one_process(photographs: Photographs, tmp_path: Path) -> None:
    requests = mixed_requests(photographs, tmp_path)
    outputs = [tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"]
    done: list[int] = []
    for workers, output in zip((0, 2), outputs, strict=True):
        summary = describe_all(
            requests, MeasuredDescriber(), output, seeds=range(2), workers=workers, on_done=lambda: done.append(1)
        )
        assert (summary.written, summary.kept, len(summary.failed)) == (16, 0, 4)
    assert len(done) == 2 * 2 * len(requests)
    alone, shared = outputs
    assert shared.read_bytes() == alone.read_bytes()
    assert failures_path(shared).read_bytes() == failures_path(alone).read_bytes()
    names = [request.image for request in requests if request.image not in ("none.png", "tiny")]
    assert [(record.image, record.seed) for record in read_descriptions(alone)] == [
        (n, s) for n in names for s in (0, 1)
    ]


def test_a_stopped_run_with_workers_resumes_to_the_same_file(photographs: Photographs, tmp_path: Path) -> None:
    requests = mixed_requests(photographs, tmp_path)
    run = partial(describe_all, requests, MeasuredDescriber(), seeds=range(2), workers=1)
    run(output=tmp_path / "whole.jsonl")
    answers = iter([False] * 7 + [True])
    summary = run(output=tmp_path / "parts.jsonl", stop=lambda: next(answers))
    assert (summary.written, len(summary.failed)) == (4, 3)
    summary = run(output=tmp_path / "parts.jsonl")
    assert (summary.written, summary.kept, len(summary.failed)) == (12, 4, 4)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_workers_are_for_measuring_alone(tmp_path: Path) -> None:
    source = Counting()
    describe_all([request_named("a"), request_named("b")], source, tmp_path / "d.jsonl", seeds=[0], workers=2)
    assert source.asked == [("a", 0), ("b", 0)]


def test_existing_descriptions_are_kept_and_failures_are_logged_and_retried(tmp_path: Path) -> None:
    output = tmp_path / "new" / "d.jsonl"
    requests = [request_named("a"), request_named("broken"), request_named("b")]
    first = describe_all(requests, Counting(), output, seeds=[0])
    assert (first.written, first.kept, first.failed) == (2, 0, (("broken", 0, "cannot"),))
    again = Counting()
    second = describe_all(requests, again, output, seeds=[0, 4, 4])
    assert (second.written, second.kept) == (2, 2)
    assert again.asked == [("a", 4), ("broken", 0), ("broken", 4), ("b", 4)]
    assert failures_path(output) == tmp_path / "new" / "d.failures.jsonl"
    notes = [json.loads(line) for line in failures_path(output).read_text().splitlines()]
    assert [(note["image"], note["seed"]) for note in notes] == [("broken", 0), ("broken", 0), ("broken", 4)]
    assert notes[0] == {"image": "broken", "seed": 0, "reason": "cannot", "outputs": ["what?", "how?"]}


def test_seeds_of_one_image_open_it_once(photographs: Photographs, tmp_path: Path) -> None:
    opened: list[str] = []

    def open_image(name: str) -> Image.Image:
        opened.append(name)
        return photographs[name].resize((64, 64))

    requests = [DescriptionRequest(name, partial(open_image, name)) for name in ("cat", "coffee")]
    describe_all(requests, MeasuredDescriber(), tmp_path / "d.jsonl", seeds=range(5))
    assert opened == ["cat", "coffee"]
    assert len({record.description for record in read_descriptions(tmp_path / "d.jsonl")}) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"requests": [request_named("a"), request_named("b"), request_named("a")]}, "'a' comes 2 times"),
     ({"workers": -1}, "workers must be at least 0, got -1"),
     ({"requests": [DescriptionRequest("f", lambda: Image.new("RGB", (20, 20)))], "workers": 1},
      "the source of f cannot be sent to a worker process .*functools.partial")],
)  # fmt: skip
def test_a_run_that_cannot_be_done_is_refused(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    given = {"requests": [request_named("a")], "output": tmp_path / "d.jsonl", "seeds": [0], **arguments}
    with pytest.raises(ValueError, match=message):
        describe_all(describer=MeasuredDescriber(), **given)  # type: ignore[arg-type]


def test_a_worker_that_dies_ends_the_run_and_what_was_written_stays(photographs: Photographs, tmp_path: Path) -> None:
    requests = [DescriptionRequest("cat", photographs["cat"]), DescriptionRequest("killer", partial(os._exit, 3))]
    with pytest.raises(RuntimeError, match="a worker process died.*what was written is kept"):
        describe_all(requests, MeasuredDescriber(), tmp_path / "d.jsonl", seeds=[0], workers=1)
    summary = describe_all(requests[:1], MeasuredDescriber(), tmp_path / "d.jsonl", seeds=[0])
    assert summary.written + summary.kept == 1


@pytest.mark.parametrize(
    ("known", "message"),
    [({"score": 1.2}, r"^a.png: score must lie in \[0, 1\], or be None, got 1.2"),
     ({"score": float("nan")}, "got nan"),
     ({"score": -0.1}, "got -0.1"), ({"level": 2}, "a.png: level must be 0 without a distortion, got 2"),
     ({"distortion": "blur"}, r"level must lie in 1..5 with a distortion, got 0 for 'blur'"),
     ({"distortion": "blur", "level": 6}, r"level must lie in 1..5 with a distortion, got 6 for 'blur'")],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(known: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DescriptionRequest("a.png", Path("a.png"), **known)  # type: ignore[arg-type]


def test_a_request_opens_files_images_and_functions_alike(photographs: Photographs, tmp_path: Path) -> None:
    clear = photographs["cat"].convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    for source in (tmp_path / "clear.png", clear, lambda: clear):
        image = DescriptionRequest("cat", source).open()
        assert (image.mode, image.size, image.getextrema()) == ("RGB", clear.size, ((255, 255),) * 3)


def test_the_measured_source_names_score_and_distortion(photographs: Photographs) -> None:
    describer = MeasuredDescriber()
    request = DescriptionRequest("cat", photographs["cat"], score=0.1, distortion="motion_blur", level=5)
    for seed in range(5):
        description = describer.describe(request, seed=seed)
        assert description.score == 0.1
        assert " bad" in description.text
        assert any(name in description.text.lower() for name in ("motion blur", "camera shake"))
        assert MeasuredDescriber().describe(request, seed=seed) == description


def test_the_score_source_names_the_score_only() -> None:
    texts = [ScoreDescriber().describe(DescriptionRequest("a", Path("no/file"), 0.5), seed=s).text for s in range(20)]
    assert all("fair" in text for text in texts)
    assert len(set(texts)) > 5
    with pytest.raises(DescriptionError, match="a has no score"):
        ScoreDescriber().describe(request_named("a"))


@pytest.fixture
def description_file(tmp_path: Path) -> Path:
    entries = [
        {"image": "x/a.png", "description": "second", "seed": 7},
        {"image": "x/a.png", "description": "first", "seed": 2, "score": 0.25},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("by_path", [True, False])
def test_the_file_source_finds_an_image_by_its_path_or_name(description_file: Path, by_path: bool) -> None:
    describer = FileDescriber(description_file)
    path = description_file.parent / "x" / "a.png"
    request = DescriptionRequest("x/a.png", path if by_path else Image.new("RGB", (20, 20)), score=0.5)
    assert describer.count(request) == 2
    assert describer.describe(request, seed=0) == Description("first", 0.25)
    assert describer.describe(request, seed=1) == Description("second", 0.5)
    with pytest.raises(DescriptionError, match=r"has 2 description\(s\) of 'x/a.png', wanted number 2"):
        describer.describe(request, seed=2)
    assert describer.count(request_named("y.png")) == 0


def test_a_file_with_names_below_another_folder(description_file: Path, tmp_path: Path) -> None:
    describer = make_describer("file", file=description_file, root=tmp_path / "images")
    request = DescriptionRequest("anything", tmp_path / "images" / "x" / "a.png")
    summary = describe_all([request], describer, tmp_path / "out.jsonl", seeds=[1])
    assert summary.written == 1
    assert read_descriptions(tmp_path / "out.jsonl") == [
        DescriptionRecord("anything", "second", None, 1, "file d.jsonl")
    ]


def test_a_source_is_made_by_its_name() -> None:
    assert [make_describer(name).source for name in ("measured", "score")] == ["measured", "score"]
    with pytest.raises(ValueError, match="source 'file' needs the description file .*--from"):
        make_describer("file")
    with pytest.raises(ValueError, match="source 'qinsight' needs a model.*--model"):
        make_describer("qinsight")
    with pytest.raises(ValueError, match="source must be one of .*, got 'magic'"):
        make_describer("magic")  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_command_describes_a_split_of_a_table(labels: Path, tmp_path: Path, workers: str) -> None:
    output = tmp_path / "d.jsonl"
    options = ["--split", "test", "--limit", "3", "--seeds", "2", "--workers", workers]
    assert main(["describe", str(labels), "-o", str(output), *options]) == 0
    records = read_descriptions(output, root=labels.parent)
    assert [(record.image, record.seed) for record in records] == [
        (f"{n}.png", s) for n in (84, 85, 86) for s in (0, 1)
    ]
    scores = {row.path.name: row.score for row in read_labels(labels)}
    assert all(record.score == pytest.approx(scores[record.image]) for record in records)
    assert {record.source for record in records} == {"measured"}


def test_the_command_checks_the_descriptions_of_another_program(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"image": f"{n}.png", "description": f"about {n}", "seed": s} for n in range(3) for s in range(2)]
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    command = ["describe", str(labels), "-o", str(tmp_path / "d.jsonl"), "--source", "file", "--from", str(given)]
    assert main([*command, "--limit", "3"]) == 0
    assert len(read_descriptions(tmp_path / "d.jsonl")) == 6
    assert main([*command, "--limit", "4"]) != 0
    assert "between 0 and 2 descriptions" in capsys.readouterr().err
    assert main([*command, "--limit", "4", "--seeds", "1"]) == 1
    told = capsys.readouterr().err
    assert "0 descriptions written" in told
    assert "3 existed before" in told
    assert "1 of 4 failed" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "0"], "--seeds must be at least 1, got 0"), (["--split", "fair"], "no rows with split 'fair'; it has"),
     (["--source", "file"], "--from FILE.jsonl"), (["--source", "qinsight"], "--model"),
     (["--workers", "-1"], "workers must be at least 0, got -1")],
)  # fmt: skip
def test_a_command_that_cannot_be_done_is_refused(
    arguments: list[str], message: str, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["describe", str(labels), "-o", str(tmp_path / "d.jsonl"), *arguments]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "d.jsonl").exists()
