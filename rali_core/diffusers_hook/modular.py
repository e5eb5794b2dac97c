"""Best of N as a block of Modular Diffusers.

diffusers took the experimental mark off its pipeline blocks in August 2026 (huggingface/diffusers#14525); what is still
marked, the guiders and the components manager, is not used here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .result import BestOfN
from .scoring import Scorer
from .search import best_of_n

try:
    from diffusers import ModularPipelineBlocks, SequentialPipelineBlocks
    from diffusers.modular_pipelines import InputParam, OutputParam, PipelineState
except ImportError as missing:
    raise ImportError(
        "RaliBestOfNBlock needs the pipeline blocks of diffusers 0.42 or newer: pip install -U diffusers",
        name="diffusers",
    ) from missing

_SEARCH_INPUTS = {
    "n": "Candidates to make.",
    "keep": "Images to keep.",
    "seeds": "n different whole numbers; by default 0, 1, ... n - 1.",
    "threshold": "Stop once `keep` images reach this score.",
}
_DEFAULTS = {"n": 4, "keep": 1}
_RESERVED_INPUTS = ("generator", "latents")


class RaliBestOfNBlock(ModularPipelineBlocks):
    """Runs blocks once per seed and continues with the best images.

    It replaces those blocks: it takes their inputs and `n`, `keep`, `seeds` and `threshold` as `best_of_n` does, and
    puts `images` (best first, in the form that `output_type` says), `scores`, `winning_seeds` and `best_of_n` (a
    `BestOfN` with report and `save`) into the state; other outputs of the blocks stay inside. What comes before it,
    such as the text encoder, runs once.

    Args:
        blocks: By name and in order, everything that a seed decides on: from the first block that reads `generator`,
            or at least from the one that sets the timesteps, to the one that gives `images`.
        scorer: As for `best_of_n`; not copied with the blocks.

    Raises:
        ValueError: There are no blocks, or none of them gives `images`.

    Examples:
        >>> parts = blocks.sub_blocks  # doctest: +SKIP
        >>> inner = {name: parts.pop(name) for name in ("denoise", "decode")}  # doctest: +SKIP
        >>> parts["best_of_n"] = RaliBestOfNBlock(inner)  # doctest: +SKIP
        >>> state = blocks.init_pipeline("a/model")(prompt="a lighthouse", n=16)  # doctest: +SKIP
        >>> state.images[0], state.scores[0], state.winning_seeds[0]  # doctest: +SKIP
    """

    def __init__(self, blocks: Mapping[str, Any], *, scorer: Scorer | None = None) -> None:
        super().__init__()
        self._blocks = SequentialPipelineBlocks.from_blocks_dict(dict(blocks))
        self._scorer = scorer
        if "images" not in {output.name for output in self._blocks.intermediate_outputs}:
            raise ValueError(f"expected blocks of which one gives images, such as a decoder; got {list(blocks)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> RaliBestOfNBlock:
        # init_pipeline copies the blocks; the model inside a scorer should be in memory once.
        return type(self)(copy.deepcopy(dict(self._blocks.sub_blocks), memo), scorer=self._scorer)

    @property
    def model_name(self) -> Any:
        """The family that the blocks belong to."""
        return self._blocks.model_name

    @property
    def description(self) -> str:
        """Text for the pipeline's documentation."""
        return f"Runs {', '.join(self._blocks.sub_blocks)} for n seeds and keeps the images with the best RALI scores."

    @property
    def expected_components(self) -> list[Any]:
        """Those of the blocks."""
        return list(self._blocks.expected_components)

    @property
    def expected_configs(self) -> list[Any]:
        """Those of the blocks."""
        return list(self._blocks.expected_configs)

    @property
    def inputs(self) -> list[Any]:
        """Those of the blocks, and n, keep, seeds, threshold."""
        ours = [InputParam(name, default=_DEFAULTS.get(name), description=text)
                for name, text in _SEARCH_INPUTS.items()]  # fmt: skip
        return [*ours, *(given for given in self._blocks.inputs if given.name not in _SEARCH_INPUTS)]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """images, scores, winning_seeds, best_of_n."""
        return [
            OutputParam("images", description="The best images, best first."),
            OutputParam("scores", type_hint=tuple, description="Their scores; higher is better."),
            OutputParam("winning_seeds", type_hint=tuple, description="Their seeds."),
            OutputParam("best_of_n", type_hint=BestOfN, description="The whole result, with a report, and save()."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Called by the pipeline.

        Raises:
            ValueError: As for `best_of_n`; or the state holds a generator or latents, or asks for several images.
        """
        for name in _RESERVED_INPUTS:
            if state.get(name) is not None:
                raise ValueError(f"{name} cannot be given here: each candidate has the noise of its seed; pass seeds=")
        if state.get("num_images_per_prompt") not in (None, 1) or state.get("output_type") == "latent":
            raise ValueError(
                "expected num_images_per_prompt=1 and output_type pil, np or pt; n= says how many are made"
            )
        # Not get_block_state: it would require the values that the blocks pass to each other.
        wanted: dict[str, Any] = _DEFAULTS | {
            name: state.get(name) for name in _SEARCH_INPUTS if state.get(name) is not None
        }
        result = best_of_n(_OneSeed(self._blocks, components, state), scorer=self._scorer, **wanted)
        plain = {name: value for name, value in state.values.items() if isinstance(value, str | int | float | bool)}
        result = replace(result, settings={"pipeline": type(components).__name__, "arguments": plain})
        state.set("images", _as_one(result.images))
        state.set("scores", result.scores)
        state.set("winning_seeds", result.seeds)
        state.set("best_of_n", result)
        return components, state


class _OneSeed:
    """The blocks and a state as a pipeline: called with a generator, returns an object with `images`."""

    def __init__(self, blocks: Any, components: Any, state: Any) -> None:
        self._blocks, self._pipeline, self._state = blocks, components, state
        self.components = components.components
        for name in ("unet", "transformer", "transformer_2"):  # whose calls are counted
            if name in self.components:
                setattr(self, name, self.components[name])

    def __call__(self, *, generator: torch.Generator) -> SimpleNamespace:
        # Blocks replace the values of a state and do not modify them: a shallow copy keeps the candidates apart.
        own = PipelineState(dict(self._state.values), {kind: list(n) for kind, n in self._state.kwargs_mapping.items()})
        own.set("generator", generator)
        _, after = self._blocks(self._pipeline, own)
        images = after.get("images")
        if len(images) != 1:
            raise ValueError(f"expected one prompt, got {len(images)} images from one seed; run each prompt separately")
        return SimpleNamespace(images=images)


def _as_one(images: tuple[Any, ...]) -> Any:
    """Images in the form in which diffusers returns several: a list of PIL images, an array or a tensor."""
    if isinstance(images[0], np.ndarray):
        return np.stack(images)
    return torch.stack(images) if isinstance(images[0], Tensor) else list(images)
