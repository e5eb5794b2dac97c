"""Generate n images from n seeds, keep the best.

python docs/examples/best_of_n.py --n 8 --keep 2 --output best/
python docs/examples/best_of_n.py --model stabilityai/stable-diffusion-xl-base-1.0 --n 16 --prompt "a lighthouse"
"""

from __future__ import annotations

from common import parser, pipeline_arguments, scorer_from
from tiny_pipelines import load_pipeline

from rali_core.diffusers_hook import best_of_n


def main() -> None:
    """Search, report and save."""
    options = parser(__doc__).parse_args()
    result = best_of_n(
        load_pipeline(options.model),
        n=options.n,
        keep=options.keep,
        scorer=scorer_from(options),
        **pipeline_arguments(options),
    )
    for score, seed in zip(result.scores, result.seeds, strict=True):
        print(f"{score:.4f}  seed {seed}")
    print(f"saved in {options.output}: {', '.join(path.name for path in result.save(options.output))}")


if __name__ == "__main__":
    main()
