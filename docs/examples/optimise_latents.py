"""Use the score as a loss: a few steps of gradient descent on the final latents, with a regulariser towards the
original ones.

The result scores better, but at some point does not look better: that is reward hacking, and the reason for the
regulariser. Raise --updates and lower --regularisation to see it.

    python docs/examples/optimise_latents.py --updates 8
"""

from __future__ import annotations

import torch
from common import parser, pipeline_arguments, scorer_from
from tiny_pipelines import load_pipeline

from rali_core.diffusers_hook import best_of_n, latents_to_pixels
from rali_core.images import to_pil_image
from rali_core.rewards import RaliLoss
from rali_core.sheet import draw_contact_sheet


def main() -> None:
    """Generate an image, then improve its latents."""
    arguments = parser(__doc__, n=2)
    arguments.add_argument("--updates", type=int, default=5, help="optimisation steps (default: 5)")
    arguments.add_argument(
        "--rate", type=float, default=0.02, help="learning rate, in deviations of the latents (default: 0.02)"
    )
    arguments.add_argument("--regularisation", type=float, default=1.0, help="weight of the pull back (default: 1)")
    options = arguments.parse_args()
    pipe, scorer = load_pipeline(options.model), scorer_from(options)
    start = best_of_n(pipe, n=options.n, scorer=scorer, keep_latents=True, **pipeline_arguments(options))
    if start.latents is None:
        raise RuntimeError("the pipeline gave no latents")
    origin = start.latents[0][None].to(scorer.device).float()
    latents = origin.clone().requires_grad_(True)
    spread = float(origin.std())
    loss = RaliLoss(scorer.model)
    optimiser = torch.optim.Adam([latents], lr=options.rate * spread)

    def decode(values: torch.Tensor) -> torch.Tensor:
        return latents_to_pixels(pipe, values, height=options.size, width=options.size)

    for update in range(options.updates):
        optimiser.zero_grad()
        value = loss.from_latents(latents, decode)
        (value + options.regularisation * ((latents - origin) / spread).square().mean()).backward()
        optimiser.step()
        print(f"update {update}: loss {value.item():.4f}")
    with torch.no_grad():
        images = [to_pil_image(decode(values)[0]) for values in (origin, latents)]
    scores = scorer.score(images).scores
    options.output.mkdir(parents=True, exist_ok=True)
    sheet = draw_contact_sheet(images, scores, names=("before", "after"), ranked=False, enlarge=True)
    sheet.save(options.output / "before-after.png")
    print(f"score {scores[0]:.4f} -> {scores[1]:.4f}")


if __name__ == "__main__":
    main()
