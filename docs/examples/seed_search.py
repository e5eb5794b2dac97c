"""Search seeds in rounds until an image reaches a score, and stop there.

python docs/examples/seed_search.py --threshold 0.7 --rounds 4 --n 8
"""

from __future__ import annotations

from common import parser, pipeline_arguments, scorer_from
from tiny_pipelines import load_pipeline

from rali_core.diffusers_hook import BestOfN, best_of_n


def main() -> None:
    """Search round after round."""
    arguments = parser(__doc__, n=4)
    arguments.add_argument("--threshold", type=float, default=0.7, help="stop at this score (default: 0.7)")
    arguments.add_argument("--rounds", type=int, default=2, help="rounds of n seeds at most (default: 2)")
    options = arguments.parse_args()
    pipe, scorer = load_pipeline(options.model), scorer_from(options)
    best: BestOfN | None = None
    for number in range(options.rounds):
        seeds = range(number * options.n, (number + 1) * options.n)
        result = best_of_n(
            pipe, n=options.n, seeds=seeds, threshold=options.threshold, scorer=scorer, **pipeline_arguments(options)
        )
        if best is None or result.scores[0] > best.scores[0]:
            best = result
        print(f"round {number + 1}: best so far {best.scores[0]:.4f}, seed {best.seeds[0]}")
        if best.scores[0] >= options.threshold:
            break
    if best is not None:
        best.save(options.output)


if __name__ == "__main__":
    main()
