"""Best of n with early pruning: what it saves, and the outcome of each seed.

python docs/examples/prune.py --n 16 --steps 20
"""

from __future__ import annotations

from common import parser, pipeline_arguments, scorer_from
from tiny_pipelines import load_pipeline

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n


def main() -> None:
    """Search with pruning and report."""
    options = parser(__doc__, n=16).parse_args()
    result = best_of_n(
        load_pipeline(options.model),
        n=options.n,
        keep=options.keep,
        prune=SuccessiveHalving(),
        scorer=scorer_from(options),
        **pipeline_arguments(options),
    )
    for candidate in result.report.candidates:
        steps = " ".join(f"{score:.3f}" for score in candidate.step_scores)
        final = "" if candidate.score is None else f" -> {candidate.score:.3f}"
        print(f"seed {candidate.seed:3d}  {candidate.outcome:7s}  {steps}{final}")
    report = result.report
    if report.fraction_saved is not None:
        print(
            f"{report.denoiser_calls} of {report.full_denoiser_calls} denoiser calls: {report.fraction_saved:.0%} saved"
        )
    result.save(options.output)


if __name__ == "__main__":
    main()
