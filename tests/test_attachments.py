"""What belongs to images follows a selection of them, in whatever form it comes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rali_core.attachments import attach, flat_numbers

BATCH = torch.arange(4.0).view(4, 1, 1, 1)
SEGS = ((64, 48), ["a", "b", "c", "d"])
COND = [[torch.arange(4.0).view(4, 1, 1), {"pooled_output": 10 * torch.arange(4.0).view(4, 1), "strength": 0.5}]]


def plain(value: Any) -> Any:
    """Tensors and arrays as lists, to compare."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.reshape(-1).tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        (["a", "b", "c", "d"], ["d", "b"]),
        ([["a", "b", "c", "d"]], [["d", "b"]]),
        ([["a", "b"], ["c", "d"]], ["d", "b"]),
        ([[["a"], ["b"], ["c"], ["d"]]], [[["d"], ["b"]]]),
        ([BATCH], [[3.0, 1.0]]),
        ([BATCH[:1], BATCH[1:]], [[3.0], [1.0]]),
        ([BATCH.flatten()], [[3.0, 1.0]]),
        ([BATCH.numpy()], [[3.0, 1.0]]),
        ([{"samples": BATCH, "batch_index": [4, 5, 6, 7]}], [{"samples": [3.0, 1.0], "batch_index": [7, 5]}]),
        ([SEGS], [[[64, 48], ["d", "b"]]]),
        ([COND], [[[[3.0, 1.0], {"pooled_output": [30.0, 10.0], "strength": 0.5}]]]),
    ],
)
def test_one_per_image_is_selected_and_comes_out_in_the_form_in_which_it_came(values: Any, chosen: Any) -> None:
    assert plain(attach(values, 4, "things").select([3, 1])) == chosen


@pytest.mark.parametrize(
    "value",
    [
        "a caption", 7, None, torch.linspace(14.6, 0.0, 21), BATCH[:1], {"samples": BATCH[:1]}, ["only one"],
        [[torch.ones(1, 77, 8), {}], [torch.ones(1, 77, 8), {}]], ((64, 48), ["one region", "another"]),
        {"waveform": torch.ones(1, 2, 100)},
    ],
)  # fmt: skip
def test_one_of_something_serves_all_and_comes_out_once(value: Any) -> None:
    (selected,) = attach([value], 4, "thing").select([3, 1])
    assert selected is value


@pytest.mark.parametrize(
    ("values", "count", "got"),
    [([1, 2, 3], 4, 3), ([["a", "b"]], 4, 2), ([BATCH], 3, 4), ([BATCH, BATCH], 4, 8), ([{"samples": BATCH}], 1, 4)],
)
def test_any_other_number_is_an_error(values: Any, count: int, got: int) -> None:
    with pytest.raises(
        ValueError, match=f"things: expected one for each of the {count} images or one for all, got {got}"
    ):
        attach(values, count, "things")


def test_numbers_come_out_of_lists_of_lists_arrays_and_tensors() -> None:
    assert flat_numbers([[1, [2.5]], torch.tensor([3, 4]), np.array([[5.5]]), 6]) == [1, 2.5, 3, 4, 5.5, 6]
