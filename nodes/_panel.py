"""The page's drawings on a node besides the scores: translatable notes, thumbnails, a live tally."""

from __future__ import annotations

import hashlib
import io as streams
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..rali_core.images import ImageError
from ._convert import to_pil

log = logging.getLogger("rali")

SHOWN = 16
"""Maximum number of images that a node lists; web/js has the same number."""
THUMBNAIL = 48

NOTES = {
    "aggregate": "{how} {score:.3f}",
    "kept": "kept {count} of {of}",
    "passed": "{count} of {of} passed",
    "open": "open: {score:.3f} {sign} {threshold:.3f}",
    "shut": "shut: {score:.3f} {sign} {threshold:.3f}",
    "regions": "{low:.3f} to {high:.3f}, {count} regions",
    "combined": "{how} of {count} lists",
    "no content": "no content: image {images}",
    "no score": "no score: image {images}",
    "no images": "no images came: nothing after this node runs",
    "best seed": "best: seed {seed}",
    "all tried": "all {of} seeds tried",
    "stopped early": "stopped early: {keep} reached {threshold} after {tried} of {of} seeds",
    "interrupted": "interrupted after {tried} of {of} seeds; the best so far",
    "resumed": "resumed after {steps} steps",
    "reached": "reached {threshold} in {tries}",
    "not reached": "did not reach {threshold} in {tries}",
    "best of": "best {count} of {of}",
    "not scored": "{count} cannot be scored",
    "unreadable": "the folder cannot be read",
    "metadata": "metadata",
    "sidecar": "sidecar",
    "scored now": "scored now",
}


@dataclass(frozen=True)
class Note:
    """A line on a node.

    Attributes:
        key: Key of `NOTES`, by which the page finds the translation.
        values: Values of the line's placeholders.
        more: Text that follows in parentheses, in English.
    """

    key: str
    values: dict[str, Any]
    more: str | None = None

    @classmethod
    def of(cls, key: str, **values: Any) -> Note:
        """A note from its values."""
        return cls(key, values)

    def __str__(self) -> str:
        return NOTES[self.key].format(**self.values) + (f" ({self.more})" if self.more else "")

    def to_json(self) -> dict[str, Any]:
        """For the page; numbers are rounded to three digits as in the English text."""
        values = {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in self.values.items()}
        return {"key": self.key, "values": values, "more": self.more, "text": str(self)}


def note_to_json(note: Note | str) -> dict[str, Any]:
    """For the page; a plain text has no translation."""
    return note.to_json() if isinstance(note, Note) else {"text": note}


def save_thumbnails(images: list[Tensor]) -> dict[str, Any] | None:
    """A strip of small squares, one per image (1, H, W, C), in ComfyUI's folder for temporary files.

    Returns:
        Arguments of the page's /view, and `size`, the squares' side; None without images or a writable folder.
    """
    import folder_paths

    if not images:
        return None
    strip = Image.new("RGB", (THUMBNAIL * len(images), THUMBNAIL))
    for place, image in enumerate(images):
        with suppress(ImageError):  # an image that cannot be drawn stays black
            strip.paste(to_pil(_shrink(image)), (THUMBNAIL * place, 0))
    stream = streams.BytesIO()
    strip.save(stream, "JPEG", quality=80)
    name = f"rali_{hashlib.sha256(stream.getvalue()).hexdigest()[:16]}.jpg"
    try:
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(stream.getvalue())
    except OSError as error:
        log.warning("no thumbnails: %s", error)
        return None
    return {"filename": name, "subfolder": "", "type": "temp", "size": THUMBNAIL}


def _shrink(image: Tensor) -> Tensor:
    """The central square of (1, H, W, C), THUMBNAIL pixels wide, with values that can be drawn."""
    _, height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[:, top : top + side, left : left + side].permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(square, (THUMBNAIL, THUMBNAIL), mode="area").permute(0, 2, 3, 1)
    return torch.nan_to_num(small).clamp(0.0, 1.0)


def current_prompt() -> str | None:
    """Id of the prompt that runs, None outside of one."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return context.prompt_id if context else None


def tell_page(**values: Any) -> None:
    """Show a live tally on the running node, on the page that queued the prompt.

    Args:
        values: `tried` and `of`; of the best so far `best` (its score), `seed` (as a text: JavaScript's numbers are too
            short for it) and `thumbnails` (of `save_thumbnails`).
    """
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:
        message = {"node": server.last_node_id, "prompt_id": current_prompt(), **values}
        server.send_sync("rali.progress", message, server.client_id)


def tell_tries(tried: int, of: int, best: tuple[int, float, Tensor] | None) -> None:
    """The live tally of a search.

    Args:
        tried: Tries so far.
        of: Tries at most.
        best: Seed, score and image (1, H, W, C) of the best so far; None before there is one.
    """
    if best is None:
        tell_page(tried=tried, of=of)
        return
    seed, score, image = best
    tell_page(tried=tried, of=of, seed=str(seed), best=score, thumbnails=save_thumbnails([image]))
