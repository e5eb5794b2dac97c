"""Stages whose outputs are files: a finished stage is not run again unless its inputs changed.

Each stage has a folder of its own. `stage.json` in it holds the inputs that it was run with, and the hashes of its
outputs once it is finished. An unfinished stage with the same inputs goes on from whatever it left there; with other
inputs the folder is emptied first.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import hash_file
from .evaluate import Report
from .provenance import git_commit


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Name of the stage and of its folder.
        folder: Its folder.
        outputs: Names of the files in it that count.
        inputs: All that the outputs depend on, as plain JSON types; called when the stages before are finished.
        work: Makes the outputs in the folder; goes on where it was stopped.
    """

    name: str
    folder: Path
    outputs: tuple[str, ...]
    inputs: Callable[[], dict[str, Any]]
    work: Callable[[Path], None]

    @property
    def record(self) -> dict[str, Any]:
        """Content of `stage.json`; empty where there is none."""
        path = self.folder / "stage.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each output as it was when the stage was finished; empty before that."""
        found: dict[str, str] = self.record.get("outputs", {})
        return found

    def is_finished(self) -> bool:
        """Whether the outputs are there, unchanged, and made from these inputs."""
        hashes = self.hashes
        return (
            bool(hashes)
            and self.record["inputs"] == _as_json(self.inputs())
            and all((self.folder / name).is_file() for name in self.outputs)
            and {name: hash_file(self.folder / name) for name in self.outputs} == hashes
        )


def run_stage(stage: Stage, *, report: Report = print) -> bool:
    """Run a stage unless it is finished.

    Args:
        stage: The stage.
        report: Called with lines of text.

    Returns:
        Whether anything was done.

    Raises:
        FileExistsError: The stage's folder holds files of someone else.
    """
    if stage.is_finished():
        report(f"{stage.name}: finished already")
        return False
    before, inputs = stage.record, _as_json(stage.inputs())
    if before and (before["inputs"] != inputs or "outputs" in before):
        changed = [name for name in inputs if before["inputs"].get(name) != inputs[name]]
        report(f"{stage.name}: made anew, for these changed: {', '.join(changed) or 'its files'}")
        shutil.rmtree(stage.folder)
    elif not before and stage.folder.is_dir() and any(stage.folder.iterdir()):
        raise FileExistsError(f"{stage.folder} holds files that no stage made: name another work_dir")
    stage.folder.mkdir(parents=True, exist_ok=True)
    _write(stage.folder / "stage.json", {"inputs": inputs})
    start = time.monotonic()
    stage.work(stage.folder)
    seconds = round(time.monotonic() - start, 1)
    hashes = {name: hash_file(stage.folder / name) for name in stage.outputs}
    made = {"inputs": inputs, "outputs": hashes, "seconds": seconds, "git_commit": git_commit()}
    _write(stage.folder / "stage.json", made)
    report(f"{stage.name}: finished in {seconds:.0f} s")
    return True


def run_stages(stages: list[Stage], wanted: list[str] | None = None, *, report: Report = print) -> bool:
    """Run stages in order.

    Args:
        stages: All stages.
        wanted: Names of those to run; by default all. Those before them must be finished.
        report: Called with lines of text.

    Returns:
        Whether all stages are finished.

    Raises:
        ValueError: An unknown stage, or one before a wanted one is not finished.
    """
    names = [stage.name for stage in stages]
    unknown = [name for name in wanted or [] if name not in names]
    if unknown:
        raise ValueError(f"this configuration has no stage {', '.join(unknown)}; it has {', '.join(names)}")
    last = max(names.index(name) for name in wanted or names)
    for stage in stages[: last + 1]:
        if wanted is None or stage.name in wanted:
            run_stage(stage, report=report)
        elif not stage.is_finished():
            raise ValueError(
                f"stage {wanted[-1]} needs stage {stage.name}, which is not finished with the present inputs: "
                "run that first"
            )
    return all(stage.is_finished() for stage in stages)


def _as_json(inputs: dict[str, Any]) -> Any:
    return json.loads(json.dumps(inputs))


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)
