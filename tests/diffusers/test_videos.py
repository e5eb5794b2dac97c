"""Videos: the best of several seeds, by their frames, with tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n
from rali_core.diffusers_hook.scoring import frames_of, shows_content

pytest.importorskip("diffusers", minversion="0.42")


def contrast(images: list[Any]) -> list[float]:
    return [float(np.asarray(image, dtype=np.float64).std()) for image in images]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("name", ["wan", "ltx", "animatediff", "cogvideox"])
def test_the_best_video_is_kept_and_its_seed_makes_it_again(
    name: str, output_type: str, families: Any, tmp_path: Path
) -> None:
    pipe, call = families.build(name)
    result = best_of_n(
        pipe, n=3, keep=2, scorer=contrast, aggregate="worst tenth", video_frames=4, output_type=output_type, **call
    )
    assert len(result) == 2
    finished = [candidate.score for candidate in result.report.candidates]
    assert list(result.scores) == sorted((x for x in finished if x is not None), reverse=True)[:2]
    generator = torch.Generator("cpu").manual_seed(result.seeds[0])
    alone = pipe(generator=generator, output_type=output_type, **call).frames[0]
    assert len(alone) == len(result.images[0]) == 9
    assert all(
        np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(alone, result.images[0], strict=True)
    )
    if output_type == "pil":
        scores = contrast([alone[place] for place in (0, 2, 4, 6) if shows_content(alone[place])])
        assert result.scores[0] == pytest.approx(min(scores), rel=1e-6)  # a tenth of four frames is one
        assert contrast([result.pil_images[0]]) == [max(scores)]
    assert len(result.save(tmp_path)) == 2


def test_unsupported_options_for_videos_are_an_error_before_generation(families: Any) -> None:
    pipe, call = families.build("wan")
    for options, message in (
        ({"prune": SuccessiveHalving()}, "makes videos: no denoised preview; best_of_n without prune= works"),
        ({"batch_size": 2}, "videos are made one a call"),
        ({"num_videos_per_prompt": 2}, "videos are made one a call"),
        ({"output_type": "latent"}, "output_type='latent' gives none"),
        ({"aggregate": "best"}, "expected an aggregate of mean, worst tenth, minimum"),
        ({"video_frames": 0}, "video_frames of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            best_of_n(pipe, n=2, scorer=contrast, **call, **options)  # type: ignore[arg-type]


def test_a_video_that_is_mostly_black_is_never_kept(families: Any) -> None:
    pipe, call = families.build("wan")

    class Black(type(pipe)):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Any:
            output = super().__call__(*args, **options)
            if options["generator"].initial_seed() == 1:
                output.frames[0][:5] = [frame.point(lambda _: 0) for frame in output.frames[0][:5]]
            return output

    black = Black(**pipe.components)
    result = best_of_n(black, n=2, scorer=contrast, video_frames=9, output_type="pil", **call)
    assert result.seeds == (0,)
    assert "5 of 9 frames" in (result.report.candidates[1].reason or "")
    assert frames_of([1, 2, 3, 4, 5], 2) == [1, 3]
