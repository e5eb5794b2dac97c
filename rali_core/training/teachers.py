"""Scores by other judges that are mixed into the human ones before a model is tuned on them.

Human scores are noisy, and a model that was trained on all of them has averaged some of the noise away (Hinton et al.,
"Distilling the knowledge in a neural network", arXiv 1503.02531; Li et al., "Learning from noisy labels with
distillation", ICCV 2017). A teacher is a model file, or a table of scores that some other judge has made.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoint import load_model
from ..files import hash_file
from ..model import RaliModel
from .data import LabelledImage, parse_number, scores_of
from .evaluate import Report
from .joint import predict_pictures

TABLE = ".csv"
"""Suffix of a teacher that is a table."""


class ScoreTable:
    """A CSV file with the columns `image` (or `file`) and `score` (0..1).

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: A column is missing, or a score is not a number in [0, 1].
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}; expected a CSV with the columns image and score")
        self.path = path
        self.scores: dict[str, float] = {}
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or []
            name = next((column for column in ("image", "file") if column in columns), None)
            if name is None or "score" not in columns:
                raise ValueError(f"{path} must have the columns image (or file) and score; it has {columns}")
            for number, line in enumerate(reader, start=2):
                score = parse_number(line["score"])
                if not 0 <= score <= 1:
                    raise ValueError(f"{path}, line {number}: score {line['score']!r} is not a number in [0, 1]")
                self.scores[line[name]] = score

    def look_up(self, rows: list[LabelledImage], root: Path) -> NDArray[np.float64]:
        """(N,) scores of the rows; the table's names are relative to `root` or to the current folder, or absolute.

        Raises:
            ValueError: It lacks one.
        """
        folders = (Path(), root)
        by_file = {(folder / name).absolute(): score for folder in folders for name, score in self.scores.items()}
        missing = [row.path for row in rows if row.path.absolute() not in by_file]
        if missing:
            raise ValueError(
                f"{self.path} has no score of {len(missing)} of {len(rows)} training images, such as {missing[0]}; its "
                f"names may be relative to {root}"
            )
        return np.array([by_file[row.path.absolute()] for row in rows])


class Teachers:
    """Model files and tables whose mean is the teachers' score.

    Args:
        files: Model files with a timm vision transformer for a tower; or CSV files with the columns `image` (or `file`)
            and `score` (0..1), as `rali score --csv` writes them.
        share: Share of the teachers' scores in what `mix` gives, in [0, 1].
        images: Pattern of file names with `*` and `?`, in small or capital letters: only these images' scores are
            mixed. None means all.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is of another kind, or `share` is out of range.
    """

    def __init__(self, files: Sequence[str | Path], *, share: float = 0.5, images: str | None = None) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"teacher_share must lie in [0, 1], got {share}")
        self.share, self.images = share, images
        self.models: dict[str, RaliModel] = {}
        self.tables: dict[str, ScoreTable] = {}
        for path in map(Path, files):  # a bad file is found out now, not after hours
            if path.suffix.lower() == TABLE:
                self.tables[hash_file(path)] = ScoreTable(path)
            else:
                self.models[hash_file(path)] = load_model(path).model

    def __bool__(self) -> bool:
        return bool(self.models or self.tables)

    def choose(self, rows: list[LabelledImage]) -> NDArray[np.int64]:
        """Places of the rows whose scores are mixed.

        Raises:
            ValueError: There is none.
        """
        pattern = self.images
        if pattern is None:
            return np.arange(len(rows))
        chosen = [place for place, row in enumerate(rows) if fnmatchcase(row.path.name.lower(), pattern.lower())]
        if not chosen:
            raise ValueError(
                f"teacher_images: none of {len(rows)} training images has a name like {pattern!r}; the first is "
                f"{rows[0].path.name}"
            )
        return np.array(chosen)

    def check(self, rows: list[LabelledImage], *, root: Path) -> None:
        """Find out whether all images that are asked about are there, before anything takes long.

        Raises:
            ValueError: A table lacks one, or none matches the pattern.
        """
        asked = [rows[place] for place in self.choose(rows)]
        for table in self.tables.values():
            table.look_up(asked, root)

    def mix(
        self,
        rows: list[LabelledImage],
        pictures: NDArray[np.uint8],
        *,
        root: Path,
        folder: Path,
        device: torch.device,
        report: Report,
    ) -> NDArray[np.float64]:
        """What to learn: the human scores with the teachers' in them.

        Args:
            rows: N labelled images.
            pictures: (N, H, H, 3) uint8, for the models.
            root: What relative names in the tables are relative to.
            folder: Where the models' scores are kept for the next time.
            device: Where the models do their work.
            report: Called with lines of text.

        Returns:
            (N,) scores in [0, 1].
        """
        human = scores_of(rows)
        if not self:
            return human
        chosen = self.choose(rows)
        asked = [rows[place] for place in chosen]
        judged = [table.look_up(asked, root) for table in self.tables.values()]
        names = [str(row.path) for row in asked]
        for sha256, model in self.models.items():
            judged.append(_ask(model, sha256, pictures, chosen, names, folder, device, report))
        human[chosen] = (1 - self.share) * human[chosen] + self.share * np.mean(judged, axis=0)
        return human

    def judge(
        self, pictures: NDArray[np.uint8], names: list[str], *, folder: Path, device: torch.device, report: Report
    ) -> NDArray[np.float64]:
        """The mean of the models' scores of pictures that have no human ones.

        Args:
            pictures: (N, H, H, 3) uint8.
            names: What the N pictures are, to know them again.
            folder: Where the models' scores are kept for the next time.
            device: Where the models do their work.
            report: Called with lines of text.

        Returns:
            (N,) scores in [0, 1].
        """
        places = np.arange(len(names))
        judged = [
            _ask(model, sha256, pictures, places, names, folder, device, report)
            for sha256, model in self.models.items()
        ]
        mean: NDArray[np.float64] = np.mean(judged, axis=0)
        return mean

    def story(self) -> dict[str, object]:
        """For the model file's metadata."""
        files = [*self.tables, *self.models]
        return {"sha256": files, "share": self.share, **({"images": self.images} if self.images is not None else {})}


def _ask(
    model: RaliModel,
    sha256: str,
    pictures: NDArray[np.uint8],
    chosen: NDArray[np.int64],
    names: list[str],
    folder: Path,
    device: torch.device,
    report: Report,
) -> NDArray[np.float64]:
    folder.mkdir(parents=True, exist_ok=True)
    path, note = folder / f"{sha256[:16]}.npy", folder / f"{sha256[:16]}.json"
    key = {"teacher": sha256, "pictures": [len(names), *pictures.shape[1:]], "images": names}
    if path.is_file() and note.is_file() and json.loads(note.read_text()) == key:
        kept: NDArray[np.float64] = np.load(path).astype(np.float64)
        return kept
    report(f"teacher {sha256[:8]} scores {len(names)} pictures")
    note.unlink(missing_ok=True)
    model = model.to(device)
    predicted = predict_pictures(model, pictures if len(names) == len(pictures) else pictures[chosen], report=report)
    model.cpu()  # it was there to be asked once
    np.save(path, predicted)
    note.write_text(json.dumps(key))
    return predicted.astype(np.float64)
