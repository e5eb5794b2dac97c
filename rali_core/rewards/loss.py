"""A loss that falls as the score rises, with a gradient to the pixels and through a decoder to the latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

from ..constants import Coverage
from ..content import lower_blank
from ..model import RaliModel

Reduction = Literal["mean", "sum", "none"]


class RaliLoss(nn.Module):
    """1 - score, or the shortfall of the score below a target.

    The model's weights are frozen: a gradient reaches the pixels, and whatever made them, but never the scorer. A blank
    image (see `content`) counts with the score `NO_CONTENT_SCORE`, not with the model's output; its gradient is the
    model's.

    Args:
        model: `RaliScorer.from_pretrained().model`.
        target: None for `1 - score`; a score for `max(0, target - score)`, which is 0 with zero gradient once the
            target is reached, so there is no incentive to go further.
        reduction: `"mean"`, `"sum"` or `"none"` over the batch.
        coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own.

    Raises:
        ValueError: An unknown reduction.

    Examples:
        >>> import torch
        >>> loss = RaliLoss(model)  # doctest: +SKIP
        >>> pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
        >>> loss(pixels).backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: RaliModel,
        *,
        target: float | None = None,
        reduction: Reduction = "mean",
        coverage: Coverage | None = None,
    ) -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
        self.model = model.eval().requires_grad_(False)
        self.target = target
        self.reduction = reduction
        self.coverage: Coverage | None = coverage

    def train(self, mode: bool = True) -> RaliLoss:
        """Keep the scorer in evaluation mode, whatever the mode of the loss's owner: its scores must not change."""
        super().train(mode)
        self.model.eval()
        return self

    def per_image(self, pixels: Tensor) -> Tensor:
        """The loss of each image.

        Args:
            pixels: (B, 3, H, W), floating point in [0, 1].

        Returns:
            (B,) at least float32.

        Raises:
            TypeError, ValueError: As for `RaliModel.forward`.
        """
        scores = lower_blank(self.model(pixels, coverage=self.coverage), pixels)
        return 1.0 - scores if self.target is None else (self.target - scores).clamp_min(0.0)

    def forward(self, pixels: Tensor) -> Tensor:
        """The loss of a batch, reduced; arguments and errors as for `per_image`."""
        return self._reduce(self.per_image(pixels))

    def from_latents(self, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of latents.

        Args:
            latents: (B, ...) of any form that `decode` takes.
            decode: To (B, 3, H, W) pixels in [0, 1], such as
                `lambda latents: diffusers_hook.decode_latents(pipe.vae, latents)`.

        Returns:
            The reduced loss, with a gradient to the latents.
        """
        return self.forward(decode(latents))

    def _reduce(self, losses: Tensor) -> Tensor:
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()
