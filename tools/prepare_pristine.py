"""Unpack undistorted images, for distortions of known level, from bare git mirrors.

    python tools/prepare_pristine.py MIRRORS OUT [--held-out FOLDER]

MIRRORS is a folder with `OWNER+NAME/repo` for each repository, OUT the new folder that `[distortions] pristine` names:

    CBSD68, CManga109, CSet14, CSun_Hays80, CUrban100   majedelhelou/denoising_datasets
    kodak                                               cszn/FFDNet, Kodak24
    generated                                           dcsan/imagen: Midjourney, Stable Diffusion; every second prompt

The other prompts' images go to --held-out, for `bench/robustness.py`. None of them is distributed here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prepare_small_sets import list_files, unpack

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif")
DENOISING = ("CBSD68", "CManga109", "CSet14", "CSun_Hays80", "CUrban100")
GENERATORS = ("midj", "stab")
RENDERS = "output/renders/"
KODAK = "testsets/Kodak24/"


def is_image(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(ENDINGS)


def is_render(name: str) -> bool:
    """Whether a file of dcsan/imagen is an image of a prompt."""
    return is_image(name) and name.startswith(RENDERS) and name.count("/") == 3


def main() -> None:
    """Unpack all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mirrors", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    denoising, ffdnet, imagen = (
        options.mirrors / name / "repo" for name in ("majedelhelou+denoising_datasets", "cszn+FFDNet", "dcsan+imagen")
    )
    unpack(denoising, lambda name: options.out / name if is_image(name) and name.split("/")[0] in DENOISING else None)
    unpack(ffdnet, lambda name: options.out / "kodak" / Path(name).name if is_image(name) and KODAK in name else None)
    prompts = sorted({name.split("/")[2] for name in list_files(imagen) if is_render(name)})

    def place(name: str) -> Path | None:
        prompt, file = name.split("/")[2:] if is_render(name) else ("", "")
        if not file.startswith(GENERATORS):
            return None
        folder: Path | None = options.held_out if prompts.index(prompt) % 2 else options.out / "generated"
        return folder and folder / f"{prompt}-{file}"

    unpack(imagen, place)


if __name__ == "__main__":
    main()
