"""Every pipeline class of the installed diffusers: best_of_n works, works without pruning, or says why not."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest

from rali_core.diffusers_hook.arguments import why_no_images
from rali_core.diffusers_hook.latents import why_no_preview

PIPELINES = Path(diffusers.__file__).parent / "pipelines"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "diffusers-pipelines.md"
RETURNED = re.compile(r"^\s+return (\w+Output)\(", re.MULTILINE)


NEWEST = tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42)
"""The least numbers below are those of this version; older ones have fewer classes."""


def files() -> list[Path]:
    """The modules of pipelines, but for those of other frameworks."""
    found = sorted(PIPELINES.rglob("pipeline_*.py"))
    return [path for path in found if "flax" not in path.name and "onnx" not in path.name]


@cache
def classes() -> dict[str, type]:
    """By name, all classes that a `pipeline_*.py` defines with a call of their own; what cannot be imported is named."""
    found: dict[str, type] = {}
    for path in files():
        name = ".".join(("diffusers", "pipelines", *path.relative_to(PIPELINES).with_suffix("").parts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except (ImportError, RuntimeError, OSError, AttributeError):
                continue
        for kind in vars(module).values():
            own = inspect.isclass(kind) and kind.__module__ == name and "__call__" in vars(kind)
            if own and issubclass(kind, diffusers.DiffusionPipeline):
                found[kind.__name__] = kind
    return found


def with_callback() -> Iterator[tuple[str, type]]:
    for name, kind in classes().items():
        if "callback_on_step_end" in inspect.signature(kind.__call__).parameters:
            yield name, kind


def outcome(kind: type) -> tuple[str, str]:
    """What the hook itself says of a class."""
    refused = why_no_images(kind)
    if refused is not None:
        return "refused", refused.removeprefix(f"{kind.__name__} ")
    reason = why_no_preview(kind)
    return ("works", "") if reason is None else ("works without pruning", reason)


def test_no_class_is_left_out() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in files())
    written = set(re.findall(r"^class (\w+)\((?:\w*Pipeline)\b", source, re.MULTILINE))
    # not imported: classes of packages that are missing here, and those without a call of their own
    missing = written - classes().keys()
    assert len(missing) <= 0.1 * len(written), sorted(missing)
    if NEWEST:
        assert len(list(with_callback())) > 190


def test_what_is_refused_makes_no_images_by_its_own_source() -> None:
    for name, kind in with_callback():
        returned = set(RETURNED.findall(inspect.getsource(kind.__call__)))
        module = inspect.getmodule(kind)
        fields = {field.name for output in returned for field in dataclasses.fields(getattr(module, output))}
        state, reason = outcome(kind)
        if "frames" in fields:
            assert (state, reason) == ("works without pruning", "makes videos"), name
        elif fields and not fields & {"images", "image"}:
            assert state == "refused", name
        elif fields and state == "refused":
            assert "edits an inverted image" in reason or "several layers" in reason, (name, reason)


def test_what_works_has_what_a_preview_needs() -> None:
    states: dict[str, int] = {}
    for name, kind in with_callback():
        state, _ = outcome(kind)
        states[state] = states.get(state, 0) + 1
        if state != "works":
            continue
        source = inspect.getsource(kind)
        assert re.search(r"self\.(vae|movq)\.decode\(", source), name
        assert "self.scheduler.step(" in source, name
        assert "latents" in kind._callback_tensor_inputs, name
    least = {"works": 90, "refused": 5, "works without pruning": 60} if NEWEST else {"works": 40}
    for state, count in least.items():
        assert states[state] > count


def test_refusals_come_before_anything_is_generated(sd15: Any, contrast: Any) -> None:
    from rali_core.diffusers_hook import RaliStepCallback, SuccessiveHalving, best_of_n

    def made_of(name: str) -> Any:
        pipe = object.__new__(classes()[name])
        vars(pipe).update(_internal_dict={}, scheduler=sd15.scheduler)
        return pipe

    for name, kind in with_callback():
        state, reason = outcome(kind)
        if state == "refused":
            with pytest.raises(ValueError, match=re.escape(reason)):
                best_of_n(made_of(name), n=2, scorer=contrast, prompt="a cat")
        elif state == "works without pruning":
            with pytest.raises(ValueError, match="best_of_n without prune= works"):
                best_of_n(made_of(name), n=2, scorer=contrast, prune=SuccessiveHalving())
            with pytest.raises(ValueError, match="no denoised preview"):
                RaliStepCallback(made_of(name), scorer=contrast)


def table() -> str:
    """The page's table, from the classes themselves."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, kind in with_callback():
        rows.setdefault(outcome(kind), []).append(name)
    order = ["works", "works without pruning", "refused"]
    lines = [f"| {state} | {reason} | {', '.join(f'`{name}`' for name in sorted(rows[state, reason]))} |"
             for state, reason in sorted(rows, key=lambda row: (order.index(row[0]), row[1]))]  # fmt: skip
    return "\n".join(["| best_of_n | reason | pipelines |", "|---|---|---|", *lines])


def test_the_page_lists_them_as_they_are() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    if f"diffusers {diffusers.__version__}" not in written:
        pytest.skip("the page is of another version of diffusers")
    assert table() in written, f"the table should be:\n{table()}"
