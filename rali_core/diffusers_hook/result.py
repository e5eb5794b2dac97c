"""The result of best-of-N, and its files."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor

from ..lazy import renamed_attribute
from ..sheet import draw_contact_sheet

Stop = Literal["threshold", "interrupt", "progress"]


Outcome = Literal["kept", "outscored", "pruned", "nsfw_filtered", "no_content", "failed", "skipped"]
_OLD_OUTCOMES = {"outscored": "beaten", "nsfw_filtered": "blanked", "skipped": "not made"}


@dataclass(frozen=True)
class Candidate:
    """The outcome of one seed.

    Attributes:
        seed: Its seed.
        prompt: 0-based index of its prompt.
        score: Of the finished image; None where there is none.
        outcome: `"kept"`; `"outscored"` (finished, and others were better); `"pruned"`; `"nsfw_filtered"` (replaced by
            the pipeline's safety checker); `"no_content"` (blank: a constant image, or latents or pixels that are
            not finite); `"failed"` (an error, or a score that is not finite); `"skipped"` (the run ended before).
        step_scores: Its denoised preview's score at each comparison it took part in.
        reason: In words, where the outcome is `"no_content"` or `"failed"`; else None.
        words: What is wrong with the finished image (of a video its best frame), most severe first, if the scorer is a
            `RaliScorer` that tells attributes; else empty.
    """

    seed: int
    prompt: int
    score: float | None
    outcome: Outcome
    step_scores: tuple[float, ...] = ()
    reason: str | None = None
    words: tuple[str, ...] = ()

    @property
    def fate(self) -> str:
        """Deprecated: `outcome`, in the words of version 0.1."""
        _deprecated("Candidate.fate", "Candidate.outcome")
        return _OLD_OUTCOMES.get(self.outcome, self.outcome)


@dataclass(frozen=True)
class BestOfNReport:
    """What a run did and cost.

    Attributes:
        candidates: In the order of prompts, then seeds.
        denoiser_calls: Samples that went through the denoiser: an image's step counts 1 without guidance and 2 with
            it. Includes regenerating the kept images. None where they cannot be counted.
        full_denoiser_calls: The calls that all candidates would have taken without pruning; None likewise.
        previews: Denoised previews that were scored.
        stopped: Why the run ended before all candidates were generated, or None.
    """

    candidates: tuple[Candidate, ...]
    denoiser_calls: int | None
    full_denoiser_calls: int | None
    previews: int = 0
    stopped: Stop | None = None

    @property
    def fraction_saved(self) -> float | None:
        """The fraction of `full_denoiser_calls` that was saved, at most 1; negative if regeneration cost more."""
        if self.denoiser_calls is None or not self.full_denoiser_calls:
            return None
        return 1.0 - self.denoiser_calls / self.full_denoiser_calls

    @property
    def saved(self) -> float | None:
        """Deprecated: `fraction_saved`."""
        _deprecated("BestOfNReport.saved", "BestOfNReport.fraction_saved")
        return self.fraction_saved


def _deprecated(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated and goes in the next release; use {new}", DeprecationWarning, stacklevel=3)


@dataclass(frozen=True)
class BestOfN:
    """The best images, by prompt and then best first; entry i of each field belongs to image i.

    Attributes:
        images: PIL images, arrays (H, W, 3), tensors (3, H, W) or latents, as `output_type` says; of a video pipeline
            lists of PIL images, arrays (F, H, W, 3) or tensors (F, 3, H, W).
        scores: Higher is better.
        seeds: `pipe(..., generator=torch.Generator("cpu").manual_seed(seeds[i]))` gives image i again (or with the
            `generator_device` that was asked for).
        prompts: 0-based index of each image's prompt; all 0 for a single prompt.
        pil_images: The images as 8-bit PIL images, whatever `images` are; for videos the best frame of each.
        latents: Final latents on the CPU; None unless asked for.
        report: What the run did and cost.
        settings: The pipeline's class and arguments as plain JSON types.
    """

    images: tuple[Any, ...]
    scores: tuple[float, ...]
    seeds: tuple[int, ...]
    prompts: tuple[int, ...]
    pil_images: tuple[Image.Image, ...]
    report: BestOfNReport
    latents: tuple[Tensor, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    pictures = renamed_attribute("pictures", "pil_images")

    def __len__(self) -> int:
        return len(self.images)

    def contact_sheet(self) -> Image.Image:
        """The images in a grid, by prompt and best first, with bars if all scores lie in [0, 1]."""
        several = len(set(self.prompts)) > 1
        words = {(each.prompt, each.seed): each.words for each in self.report.candidates}
        return draw_contact_sheet(
            self.pil_images,
            self.scores,
            names=[
                f"prompt {prompt + 1}, seed {seed}" if several else f"seed {seed}"
                for prompt, seed in zip(self.prompts, self.seeds, strict=True)
            ],
            notes=[", ".join(words.get(key, ())) for key in zip(self.prompts, self.seeds, strict=True)],
            ranked=not several,
            bars=all(0.0 <= score <= 1.0 for score in self.scores),
            enlarge=True,
        )

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the images as PNG with metadata, a contact sheet, and all figures as JSON.

        Files: `best-01-seed-7.png` ... with score, seed and settings in the text chunk `rali`, `contact-sheet.png`,
        `best-of-n.json`, and `latents.safetensors` where there are latents. Existing files of these names are replaced.

        Returns:
            The paths of the images.

        Raises:
            ValueError: There is no image to save.
            OSError: A file cannot be written.
        """
        if not self.images:
            raise ValueError("there is no image to save")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        paths = []
        rows = list(zip(self.pil_images, self.scores, self.seeds, self.prompts, strict=True))
        for position, (image, score, seed, prompt) in enumerate(rows, start=1):
            path = target / f"best-{position:02d}-seed-{seed}.png"
            text = PngInfo()
            record = {"score": score, "seed": seed, "prompt_index": prompt, "settings": self.settings}
            text.add_text("rali", json.dumps(record, sort_keys=True))
            image.save(path, pnginfo=text)
            paths.append(path)
        self.contact_sheet().save(target / "contact-sheet.png")
        record = {
            "images": [path.name for path in paths],
            "scores": self.scores,
            "seeds": self.seeds,
            "prompts": self.prompts,
            "report": {**asdict(self.report), "fraction_saved": self.report.fraction_saved},
            "settings": self.settings,
        }
        (target / "best-of-n.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors = self.latents
        if tensors is not None:
            save_file({path.stem: tensor.contiguous() for path, tensor in zip(paths, tensors, strict=True)},
                      target / "latents.safetensors")  # fmt: skip
        return tuple(paths)
