"""Make the README's image: photographs of scikit-image and damaged copies of them, scored and sorted.

    python tools/make_figures.py        # needs the extra `test`, for scikit-image
    python tools/make_figures.py reasons  # six versions of one scene and what is wrong with each, for docs/reasons.md
    python tools/make_figures.py video  # the image of docs/video.md: a clip with a damaged second, scored over time

The photographs are in the public domain or CC0 (astronaut: NASA; coffee, cat: CC0; rocket: SpaceX, CC0).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from skimage import data

from rali_core.scorer import RaliScorer
from rali_core.sheet import draw_contact_sheet
from rali_core.training.distortions import distort

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
RUN = [sys.executable, "-c", "import sys; from rali_core.cli import main; sys.exit(main())"]
FPS = 10
DAMAGED = range(52, 63)
"""Frames: 5.2 to 6.3 seconds."""


def write_clip(path: Path) -> None:
    """Twelve seconds: a camera's way over three photographs, four seconds each; a part of the second is damaged."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = 480, 270, "yuv420p"
        for number in range(12 * FPS):
            scene, place = divmod(number, 4 * FPS)
            photograph = Image.fromarray((data.rocket(), data.coffee(), data.astronaut())[scene])
            across, down = place * (photograph.width - 480) // (4 * FPS), (photograph.height - 270) // 2
            view = photograph.crop((across, down, across + 480, down + 270))
            if number in DAMAGED:
                view = distort(distort(view, "blur", 3), "noise", 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(view), format="rgb24")))
        container.mux(stream.encode())


def draw_video() -> None:
    """Draw the plot over time."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        write_clip(clip)
        subprocess.run([*RUN, "score", str(clip), "--fps", "4", "--plot", str(IMAGES / "video-plot.png")], check=True)


def draw_reasons() -> None:
    """Draw six versions of one scene with what the model says is wrong with each."""
    scene = Image.fromarray(data.coffee())
    versions = {"as it is": scene}
    for kind, level in (("blur", 3), ("noise", 4), ("jpeg", 4), ("darken", 3), ("saturation_high", 3)):
        versions[f"{kind.replace('_', ' ')}, level {level}"] = distort(scene, kind, level)
    result = RaliScorer.from_pretrained(attributes=True).score(versions.values())
    sheet = draw_contact_sheet(
        list(versions.values()), result.scores.tolist(), names=list(versions), bands=result.bands,
        notes=[", ".join(each.words) if each else "" for each in result.attributes], columns=3, cell=300, ranked=False,
    )  # fmt: skip
    sheet.save(IMAGES / "reasons.jpg", quality=88)


def main() -> None:
    """Draw the image."""
    if sys.argv[1:] == ["video"]:
        draw_video()
        return
    if sys.argv[1:] == ["reasons"]:
        draw_reasons()
        return
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
        subprocess.run([*RUN, "score", folder, "--sheet", str(IMAGES / "scored.jpg")], check=True)


if __name__ == "__main__":
    main()
