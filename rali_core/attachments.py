"""Attachments of images, selected together with them: batches, lists, lists in a list, or one value for all.

Node graphs carry "one per image" in many ways. Supported are tensors with a batch axis (images, masks), latents
(`{"samples": (B, ...)}`), conditioning (`[[(B, ...), {...}], ...]`), regions as Impact Pack's SEGS
(`((height, width), [region, ...])`), lists with an entry per image, and lists of any of these. A selection has
the form of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Join = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True)
class Attachment:
    """The attachments of N images.

    Attributes:
        parts: N parts, one per image; or one for all images, if `join` is None.
        join: Function from some of the parts to the list of values that a node outputs; None for one for all.
    """

    parts: list[Any]
    join: Join | None

    def select(self, indexes: Sequence[int]) -> list[Any]:
        """The attachments of the images with these 0-based indexes; one for all is returned unchanged."""
        return self.parts if self.join is None else self.join([self.parts[index] for index in indexes])


def attach(values: Sequence[Any], count: int, name: str) -> Attachment:
    """Split an input's values into one part per image.

    Args:
        values: The input's values, at least one.
        count: How many images there are.
        name: The input's name, for the error.

    Raises:
        ValueError: There is neither one per image nor one for all.

    Example:
        >>> attach(["a", "b", "c"], 3, "captions").select([2, 0])
        ['c', 'a']
        >>> attach([["a", "b", "c"]], 3, "captions").select([2, 0])
        [['c', 'a']]
        >>> attach(["one caption"], 3, "captions").select([2, 0])
        ['one caption']
    """
    if len(values) == count and (count > 1 or isinstance(values[0], list | tuple)):
        return Attachment(list(values), list)
    taken = [_take_apart(value, count if len(values) == 1 else None) for value in values]
    total = sum(len(parts) for parts, _ in taken)
    if len(values) > 1 and total == count:
        return Attachment([part for parts, _ in taken for part in parts], list)
    parts, join = taken[0]
    if len(values) == 1 and len(parts) == count:
        return Attachment(parts, join)
    if len(values) == 1 and len(parts) == 1:
        return Attachment(list(values), None)
    raise ValueError(
        f"{name}: expected one for each of the {count} images or one for all, got {total}; they must come from the "
        "same batch, in the same order"
    )


def flat_numbers(values: Sequence[Any]) -> list[Any]:
    """Numbers from lists, lists of lists, arrays and tensors, in order.

    Example:
        >>> flat_numbers([[0.5, 0.25], 1, (2, [3])])
        [0.5, 0.25, 1, 2, 3]
    """
    numbers: list[Any] = []
    for value in values:
        if isinstance(value, Tensor | np.ndarray):
            numbers += value.reshape(-1).tolist()
        elif isinstance(value, list | tuple):
            numbers += flat_numbers(value)
        else:
            numbers.append(value)
    return numbers


def split_latent(latent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split a latent into latents of one, with the entries of the batch (noise mask, batch index).

    Raises:
        ValueError: It holds several tensors.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor):
        raise ValueError(f"latents: expected one tensor of samples, got {type(samples).__name__}")
    mask = latent.get("noise_mask")
    of_frames = mask is not None and _is_of_frames(latent)
    single = []
    for index in range(len(samples)):
        one = {**latent, "samples": samples[index : index + 1]}
        if mask is not None and len(mask) > 1 and not of_frames:
            place = index % len(mask)  # a shorter one is repeated, as in the host
            one["noise_mask"] = mask[place : place + 1]
        if "batch_index" in latent:
            one["batch_index"] = [latent["batch_index"][index]]
        single.append(one)
    return single


def join_latents(latents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join single latents into one if their shapes and their other entries allow it, else into a list."""
    first = latents[0]
    if len({tuple(latent["samples"].shape) for latent in latents}) > 1 or len({tuple(sorted(x)) for x in latents}) > 1:
        return latents
    joined = {**first, "samples": torch.cat([latent["samples"] for latent in latents])}
    if "noise_mask" in first and _is_of_frames(first):
        if any(latent["noise_mask"] is not first["noise_mask"] for latent in latents):
            return latents
    elif "noise_mask" in first:
        if len({tuple(latent["noise_mask"].shape) for latent in latents}) > 1:
            return latents
        joined["noise_mask"] = torch.cat([latent["noise_mask"] for latent in latents])
    if "batch_index" in first:
        joined["batch_index"] = [index for latent in latents for index in latent["batch_index"]]
    return [joined]


def _is_of_frames(latent: Mapping[str, Any]) -> bool:
    """A video's mask without a batch axis is one mask per frame, the same for the whole batch."""
    return bool(latent["samples"].ndim == 5 and latent["noise_mask"].ndim < 5)


def _take_apart(value: Any, count: int | None) -> tuple[list[Any], Join]:
    """Parts of one value, and a function that joins some of them; a value without parts is one part.

    Args:
        value: Anything.
        count: Expected number of parts; an ambiguous value is split only if it has that many.
    """
    if isinstance(value, Tensor) and value.ndim:
        # One axis may be a list of numbers or one value, such as a sampler's sigmas.
        return (list(value.split(1)), _cat) if value.ndim > 1 or len(value) == count else ([value], list)
    if isinstance(value, np.ndarray) and value.ndim:
        return [value[i : i + 1] for i in range(len(value))], lambda parts: [np.concatenate(parts)]
    if isinstance(value, Mapping) and isinstance(value.get("samples"), Tensor):
        return list(split_latent(value)), join_latents
    if _is_conditioning(value):
        return _split_conditioning(value)
    if _is_segs(value):
        shape, regions = value
        return (list(regions), lambda parts: [(shape, parts)]) if len(regions) == count else ([value], list)
    if isinstance(value, list | tuple):
        return list(value), lambda parts: [parts]
    return [value], list


def _cat(parts: list[Tensor]) -> list[Tensor]:
    return [torch.cat(parts)]


def _is_conditioning(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and isinstance(pair[0], Tensor)
            and isinstance(pair[1], Mapping)
            for pair in value
        )
    )


def _split_conditioning(value: list[Any]) -> tuple[list[Any], Join]:
    """Along the batch axis of its tensors; several pairs of one batch belong together."""
    size = len(value[0][0])
    if any(len(tensor) != size for tensor, _ in value):
        return [value], list

    def of_batch(entry: Any) -> bool:
        return isinstance(entry, Tensor) and entry.ndim > 0 and len(entry) == size

    def part(index: int) -> list[Any]:
        at = slice(index, index + 1)
        return [
            [tensor[at], {key: entry[at] if of_batch(entry) else entry for key, entry in more.items()}]
            for tensor, more in value
        ]

    def join(parts: list[Any]) -> list[Any]:
        return [
            [
                [
                    torch.cat([each[pair][0] for each in parts]),
                    {
                        key: torch.cat([each[pair][1][key] for each in parts]) if of_batch(entry) else entry
                        for key, entry in more.items()
                    },
                ]
                for pair, (_, more) in enumerate(value)
            ]
        ]

    return [part(index) for index in range(size)], join


def _is_segs(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], tuple | list)
        and len(value[0]) == 2
        and all(isinstance(side, int) for side in value[0])
        and isinstance(value[1], list | tuple)
    )
