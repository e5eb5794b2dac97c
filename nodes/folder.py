"""RALI Score Folder and RALI Load Score: images on the disk."""

from __future__ import annotations

import os
import time
from hashlib import blake2b
from math import isnan
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..rali_core.content import NO_CONTENT
from ..rali_core.files import Survey
from ..rali_core.folder import list_folder, score_table, split_patterns
from ..rali_core.images import read_pixels, to_float, to_pil_image
from ._attachments import block_output
from ._convert import from_core, from_pil
from ._inputs import coverage_input, model_input
from ._models import ready_model
from ._panel import Note
from ._scoring import Scores, chosen_coverage, progress_reporter, rank_with_content, score_panel

ORDERS = ["best first", "by name"]
SHOWN = 64
"""Maximum number of scores on the node and of images on its sheet."""

THUMBNAIL = 240
TEXT_SECONDS = 0.5


def find_path(name: str, base: str) -> Path:
    """A full path unchanged, else below ComfyUI's folder `base`, or the one in brackets, as in "a.png [input]"."""
    inner, chosen = folder_paths.annotated_filepath(name.strip().strip('"'))
    return Path(chosen or base) / os.path.expanduser(inner.strip())


class RaliScoreFolder(io.ComfyNode):
    """Scores a folder without loading it at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_ScoreFolder",
            display_name="RALI Score Folder",
            category="RALI",
            description=(
                "Scores all images of a folder, however many: they are read one batch at a time, and only the best "
                "come out as images. What was scored before is known by its content."
            ),
            search_aliases=["rank folder", "load images from folder", "score directory", "batch folder", "cull folder"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip=(
                        "A full path, or one below ComfyUI's input folder; with [output] behind it, below its output "
                        "folder. Empty: the input folder itself."
                    ),
                ),
                io.Boolean.Input("recursive", default=False, tooltip="Folders inside the folder as well."),
                io.String.Input("include", default="", tooltip="Patterns such as *.png; portrait*. Empty: all images."),
                io.String.Input("exclude", default="", tooltip="Patterns of names or paths that are left out."),
                io.Int.Input("k", default=8, min=1, max=4096, tooltip="How many of the best come out as images."),
                io.Combo.Input(
                    "order",
                    options=ORDERS,
                    default=ORDERS[0],
                    tooltip="Of the table, files and scores: best first, or by name (2 before 10).",
                ),
                model_input(),
                coverage_input(),
            ],
            outputs=[
                io.Image.Output("best_images", is_output_list=True, tooltip="The k best, best first."),
                io.String.Output("best_files", is_output_list=True, tooltip="Full path of each of them."),
                io.Float.Output("best_scores", is_output_list=True, tooltip="Their scores."),
                io.Image.Output("sheet", tooltip="The k best (64 at most) in a grid, with names and scores."),
                io.String.Output("table", tooltip="All images as CSV: rank, file, score, band, percentile, reason."),
                io.String.Output("files", is_output_list=True, tooltip="Full path of every image, see order."),
                io.Float.Output(
                    "scores", is_output_list=True, tooltip="Their scores; NaN for one that cannot be scored."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: Any = None) -> bool | str:
        if folder is None:  # wired
            return True
        path = find_path(folder, folder_paths.get_input_directory())
        return True if path.is_dir() else f"folder: there is no such folder: {path}"

    @classmethod
    def fingerprint_inputs(cls, folder: Any, recursive: Any, include: Any, exclude: Any, **others: Any) -> str:  # noqa: ARG003
        """A value that changes with any file in the folder."""
        digest = blake2b(digest_size=16)
        try:
            for path in _list(folder or "", bool(recursive), include or "", exclude or "", Survey()):
                status = path.stat()
                digest.update(f"{path}|{status.st_size}|{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError as error:  # execution reports it
            digest.update(str(error).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @classmethod
    def execute(
        cls,
        folder: str,
        recursive: bool,
        include: str,
        exclude: str,
        k: int,
        order: str,
        coverage: str,
        model: Any = None,
    ) -> io.NodeOutput:
        survey = Survey()
        files = _list(folder, recursive, include, exclude, survey)
        handle, chosen = ready_model(model), chosen_coverage(coverage)
        report, results = _folder_reporter(len(files), cls.hidden.unique_id), []
        for result in handle.scorer.stream(files, coverage=chosen, on_error="record"):
            results.append(result)
            report(len(results))
        scores, names = [result.score for result in results], [str(path) for path in files]
        ranking = rank_with_content(scores, [result.reason == NO_CONTENT for result in results])
        failed = [index for index, score in enumerate(scores) if isnan(score)]
        if not ranking:
            raise ValueError(f"none of the {len(files):,} images can be scored, first {results[0].error}")
        best, images = _read_best(files, ranking, k)
        ordered = [*ranking, *failed] if order == ORDERS[0] else list(range(len(files)))
        return io.NodeOutput(
            images, *_columns(best, names, scores), _draw_sheet(files, results, best[:SHOWN]),
            score_table(names, results, ordered), *_columns(ordered, names, scores),
            ui=_folder_panel(results, best, images, failed, survey, handle.scorer.info.calibration),
        )  # fmt: skip


def _columns(indexes: list[int], names: list[str], scores: list[float]) -> tuple[list[str], list[float]]:
    return [names[index] for index in indexes], [scores[index] for index in indexes]


def _folder_panel(
    results: list[Any], best: list[int], images: list[Any], failed: list[int], survey: Survey, calibration: Any
) -> dict[str, Any]:
    """The panel of the best images, with a note on files and folders that could not be read."""
    more = [Note("unreadable", {}, str(text)) for text in survey.unreadable]
    if failed:
        more.insert(0, Note("not scored", {"count": f"{len(failed):,}"}, str(results[failed[0]].error)))
    chosen = [results[index] for index in best[:SHOWN]]
    shown = Scores([result.score for result in chosen], [result.reason for result in chosen], calibration)
    note = Note.of("best of", count=len(best), of=f"{len(results):,}")
    return score_panel(shown, note=note, more=more, images=images[:SHOWN])


def _list(folder: str, recursive: bool, include: str, exclude: str, survey: Survey) -> list[Path]:
    return list_folder(
        find_path(folder, folder_paths.get_input_directory()),
        recursive=recursive,
        include=split_patterns(include),
        exclude=split_patterns(exclude),
        survey=survey,
    )


def _folder_reporter(total: int, node: Any) -> Any:
    """Moves the progress bar, writes the rate on the node, and raises where the user pressed interrupt."""
    from server import PromptServer

    move, begun = progress_reporter(total), time.monotonic()
    last = begun

    def report(done: int) -> None:
        nonlocal last
        move(done, None)
        now = time.monotonic()
        if now - last >= TEXT_SECONDS:
            last = now
            rate = done / (now - begun)
            left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate))
            text = f"{done:,} of {total:,} images, {rate:.1f} per second, {left} left"
            PromptServer.instance.send_progress_text(text, node)

    return report


def _read_image(path: Path) -> Any:
    return from_core(to_float(read_pixels(path)).clone())


def _read_best(files: list[Path], ranking: list[int], k: int) -> tuple[list[int], list[Any]]:
    """The best k that still exist, read again."""
    best, images = [], []
    for index in ranking:
        if len(best) == k:
            break
        try:
            images.append(_read_image(files[index]))
            best.append(index)
        except (OSError, ValueError):  # it was scored, but has been deleted or changed since
            continue
    return best, images


def _draw_sheet(files: list[Path], results: list[Any], chosen: list[int]) -> Any:
    from ..rali_core.sheet import draw_contact_sheet

    if not chosen:
        return block_output()
    thumbnails = []
    for index in chosen:
        small = to_pil_image(files[index])
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        thumbnails.append(small)
    return from_pil(
        draw_contact_sheet(
            thumbnails,
            [results[index].score for index in chosen],
            names=[files[index].name for index in chosen],
            bands=[results[index].reason or results[index].band for index in chosen],
            cell=THUMBNAIL,
        )
    )


class RaliLoadScore(io.ComfyNode):
    """Reads the score that was saved with an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_LoadScore",
            display_name="RALI Load Score",
            category="RALI",
            description=(
                "Reads the score that RALI Save Image wrote into a PNG, WebP or JPEG, or into the list beside it, "
                "without scoring again."
            ),
            search_aliases=["read score", "score from metadata", "load metadata", "rali_score", "sidecar"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "file",
                    default="",
                    tooltip=(
                        "An image file: a full path (as RALI Save Image's files), or one below ComfyUI's output "
                        "folder; with [input] behind it, below its input folder."
                    ),
                ),
                io.Boolean.Input(
                    "score_if_missing",
                    default=False,
                    tooltip="Score the image where no score was saved with it; otherwise that is an error.",
                ),
                model_input(),
            ],
            outputs=[
                io.Float.Output("score", tooltip="The saved score, 0 to 1."),
                io.Image.Output("image", tooltip="The image."),
                io.String.Output("source", tooltip="Where it stood: metadata, sidecar; or scored now."),
                io.Boolean.Output("was_saved", tooltip="Whether there was a saved score."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: Any = None) -> bool | str:
        if file is None:  # wired
            return True
        path = find_path(file, folder_paths.get_output_directory())
        return True if path.is_file() else f"file: there is no such file: {path}"

    @classmethod
    def fingerprint_inputs(cls, file: Any, **others: Any) -> str:  # noqa: ARG003
        """A value that changes with the file or the list beside it."""
        from ..rali_core.saved_score import LIST_NAME

        path = find_path(file or "", folder_paths.get_output_directory())
        states = [each.stat() for each in (path, path.parent / LIST_NAME) if each.exists()]
        return "|".join(f"{state.st_size} {state.st_mtime_ns}" for state in states)

    @classmethod
    def execute(cls, file: str, score_if_missing: bool, model: Any = None) -> io.NodeOutput:
        from ..rali_core.saved_score import LIST_NAME, read_saved_score

        path = find_path(file, folder_paths.get_output_directory())
        saved = read_saved_score(path)
        image = _read_image(path)
        if saved is not None:
            score, reasons, source, calibration = saved.score, [None], saved.source, None
        elif score_if_missing:
            handle = ready_model(model)
            (result,) = handle.scorer.stream([path])
            score, reasons, source = result.score, [result.reason], "scored now"
            calibration = handle.scorer.info.calibration
        else:
            raise ValueError(
                f"no score was saved with {path}: neither rali_score in its metadata nor a line in {LIST_NAME} beside "
                "it; save images with RALI Save Image, or switch score_if_missing on"
            )
        shown = Scores([score], reasons, calibration)
        panel = score_panel(shown, note=Note.of(source), headline=score, images=[image])
        return io.NodeOutput(score, image, source, saved is not None, ui=panel)
