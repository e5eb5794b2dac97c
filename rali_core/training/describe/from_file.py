"""The `file` source: descriptions that someone else wrote, such as a reasoning model on another machine."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from PIL import Image

from .describer import Description, DescriptionError
from .records import DescriptionRecord, image_name, read_descriptions


class FileDescriber:
    """Looks descriptions up in a description file.

    Args:
        path: The file, as `read_descriptions` takes it.
        root: Folder that its image names are relative to; by default the folder of the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not as it should be.
    """

    def __init__(self, path: str | Path, *, root: str | Path | None = None) -> None:
        path = Path(path)
        self.path = path
        self.root = Path(root) if root is not None else path.parent
        self.source = f"file {path.name}"
        self._records: dict[str, list[DescriptionRecord]] = defaultdict(list)
        for record in read_descriptions(path):
            self._records[image_name(self.root / record.image, self.root)].append(record)
        for records in self._records.values():
            records.sort(key=lambda record: record.seed)

    def count(self, image: Path) -> int:
        """How many descriptions of this image there are."""
        return len(self._records.get(image_name(image, self.root), ()))

    def describe(
        self,
        image: Path | Image.Image,
        *,
        score: float | None = None,
        distortion: str | None = None,  # noqa: ARG002  the file's texts are what they are
        level: int = 0,  # noqa: ARG002
        seed: int = 0,
    ) -> Description:
        """The image's description number `seed`, counted from 0 in the order of the file's seeds.

        Args:
            image: A file.
            score: Taken where the file has none.
            distortion: Ignored.
            level: Ignored.
            seed: Which description.

        Raises:
            DescriptionError: The file has not that many of this image.
            TypeError: `image` is not a file's path.
        """
        if not isinstance(image, Path):
            raise TypeError(f"descriptions in a file are found by the image's path, got {type(image).__name__}")
        name = image_name(image, self.root)
        records = self._records.get(name, [])
        if not 0 <= seed < len(records):
            raise DescriptionError(f"{self.path} has {len(records)} description(s) of {name!r}, wanted number {seed}")
        record = records[seed]
        return Description(record.description, score if record.score is None else record.score)
