"""Make the figures of docs/diffusers.md with the examples.

    python tools/make_diffusers_figures.py        # needs the extras `test` and `diffusers`

The photograph is scikit-image's cat (CC0).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
FIGURES = {
    "diffusers-best-of-n": ("contact-sheet.png", ["best_of_n.py", "--n", "12", "--keep", "12", "--steps", "20"]),
    "diffusers-reward-hacking": (
        "before-after.png",
        [
            "optimise_latents.py",
            "--n",
            "1",
            "--steps",
            "20",
            "--updates",
            "20",
            "--rate",
            "0.04",
            "--regularisation",
            "0",
        ],
    ),
}


def main() -> None:
    """Run the examples and keep their sheets."""
    for name, (sheet, (example, *arguments)) in FIGURES.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(REPOSITORY / "docs" / "examples" / example), *arguments, "--output", folder]
            subprocess.run(command, check=True)
            with Image.open(Path(folder) / sheet) as image:
                image.convert("RGB").save(REPOSITORY / "docs" / "images" / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
