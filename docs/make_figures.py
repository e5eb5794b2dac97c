"""Make the README's picture: photographs of scikit-image and damaged copies of them, scored and sorted.

    python docs/make_figures.py        # needs the extra `test`, for scikit-image

The photographs are in the public domain or CC0 (astronaut: NASA; coffee, cat: CC0; rocket: SpaceX, CC0).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from skimage import data

from rali_core.training.distortions import distort

TARGET = Path(__file__).resolve().parent / "images" / "scored.jpg"


def main() -> None:
    """Draw the picture."""
    photographs = {
        "astronaut": data.astronaut(),
        "coffee": data.coffee(),
        "cat": data.chelsea(),
        "rocket": data.rocket(),
    }
    damaged = [("coffee", "blur", 3), ("coffee", "noise", 5), ("astronaut", "jpeg", 4), ("cat", "low_resolution", 4)]
    with tempfile.TemporaryDirectory() as folder:
        for name, array in photographs.items():
            Image.fromarray(array).save(Path(folder, f"{name}.png"))
        for name, kind, level in damaged:
            changed = distort(Image.fromarray(photographs[name]), kind, level)
            changed.save(Path(folder, f"{name}, {kind} {level}.png".replace("_", " ")))
        code = "import sys; from rali_core.cli import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", code, "score", folder, "--sheet", str(TARGET)], check=True)


if __name__ == "__main__":
    main()
