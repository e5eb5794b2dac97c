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
import subprocess
from pathlib import Path

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif")
DENOISING = ("CBSD68", "CManga109", "CSet14", "CSun_Hays80", "CUrban100")
GENERATORS = ("midj", "stab")
RENDERS = "output/renders/"


def list_images(mirror: Path) -> list[str]:
    """Paths of the images in the newest commit of a mirror."""
    command = ["git", "-C", str(mirror), "ls-tree", "-r", "-z", "--name-only", "HEAD"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name.lower().endswith(ENDINGS)]


def write(mirror: Path, name: str, target: Path) -> None:
    """Write one file of the newest commit; a mirror can lack large ones."""
    command = ["git", "-C", str(mirror), "cat-file", "blob", f"HEAD:{name}"]
    found = subprocess.run(command, check=False, capture_output=True)
    if found.returncode:
        print("missing in the mirror:", name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(found.stdout)


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
    for name in list_images(denoising):
        if name.split("/")[0] in DENOISING:
            write(denoising, name, options.out / name)
    for name in list_images(ffdnet):
        if name.startswith("testsets/Kodak24/"):
            write(ffdnet, name, options.out / "kodak" / Path(name).name)
    renders = [name for name in list_images(imagen) if name.startswith(RENDERS) and name.count("/") == 3]
    prompts = sorted({name.split("/")[2] for name in renders})
    for name in renders:
        prompt, file = name.split("/")[2:]
        folder = options.held_out if prompts.index(prompt) % 2 else options.out / "generated"
        if file.startswith(GENERATORS) and folder is not None:
            write(imagen, name, folder / f"{prompt}-{file}")


if __name__ == "__main__":
    main()
