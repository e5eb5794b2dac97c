"""Unpack PCUID, SR4KIQA and HECD from bare git mirrors and write a labels.csv for each.

    python tools/prepare_small_sets.py SET MIRROR OUT

SET is pcuid, sr4kiqa or hecd, MIRROR a git directory, OUT a new folder.

    pcuid    JOU-UIP/PCUID        underwater photographs; MOS 0..100; needs openpyxl
    sr4kiqa  mb21100/SR4KIQA      super-resolved images of 3840 x 2160; MOS 1..5
    hecd     seanmullery/HECD     recoloured photographs; mean z-scores, scaled to 0..1 over the whole set

labels.csv: image, mos (higher is better; pcuid and sr4kiqa divided to 0..1), split (train / test) and scene. A scene
is never in both splits: of PCUID 25 of every 100 images in a row (neighbours are often of one place), of SR4KIQA six of
the 24 scenes, of HECD every fourth photograph. None of the three repositories has a licence for its images: never
commit one.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

SR4KIQA_TEST = ("Animal1", "Building2", "CityStreetNight", "Nature4", "People4", "TextCompOut1")
Row = tuple[str, float, str, bool]
"""Image, score in 0..1, scene, whether it is a test image."""


def list_files(mirror: str | Path) -> list[str]:
    """Names of all files of a mirror's newest commit."""
    command = ["git", "-C", str(mirror), "ls-tree", "-r", "-z", "--name-only", "HEAD"]
    listing = subprocess.run(command, check=True, capture_output=True).stdout
    return [name.decode() for name in listing.split(b"\0") if name]


def unpack(mirror: str | Path, place: Callable[[str], Path | None]) -> None:
    """Write files of the newest commit that the mirror holds, each to the path that `place` gives for its name."""
    git = ["git", "-C", str(mirror)]
    with subprocess.Popen([*git, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for name in list_files(mirror):
            file = place(name)
            if file is None:
                continue
            process.stdin.write(f"HEAD:{name}\n".encode())
            process.stdin.flush()
            header = process.stdout.readline().split()
            if header[-1] == b"missing":
                print("missing in the mirror:", name)
                continue
            content = process.stdout.read(int(header[2]))
            process.stdout.read(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def pcuid(folder: Path) -> Iterator[Row]:
    """Rows of PCUID; its table names images by number."""
    import openpyxl

    files = {re.sub(r"\D", "", file.stem): file for file in folder.glob("300-*/*.jpg")}
    sheet = openpyxl.load_workbook(folder / "MOS.xlsx").active
    for name, mos, *_ in sheet.iter_rows(values_only=True):
        number = re.sub(r"\D", "", str(name).rsplit(".", 1)[0])
        if number in files:
            block = (int(number) - 1) // 25
            yield files[number].relative_to(folder).as_posix(), float(mos) / 100, str(block), block % 4 == 0


def sr4kiqa(folder: Path) -> Iterator[Row]:
    """Rows of SR4KIQA; a scene is a folder."""
    files = {file.name: file for file in folder.glob("*/*") if file.suffix in (".jpg", ".png")}
    with (folder / "MOS.csv").open(newline="") as handle:
        for name, _, mos in csv.reader(handle):
            if name in files:
                scene = files[name].parent.name
                yield f"{scene}/{name}", (float(mos) - 1) / 4, scene, scene in SR4KIQA_TEST


def hecd(folder: Path) -> Iterator[Row]:
    """Rows of HECD; a scene is an original photograph."""
    with (folder / "Data/mean_zscores.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    values = [float(row["Mean zScore"]) for row in table]
    low, high = min(values), max(values)
    scenes = sorted({row["Ground Truth File"] for row in table})
    for row, value in zip(table, values, strict=True):
        image, scene = "HECDImages/" + row["Recolour File"], row["Ground Truth File"]
        if (folder / image).is_file():
            yield image, (value - low) / (high - low), scene.removesuffix("_gt.jpg"), scenes.index(scene) % 4 == 0


def main(name: str, mirror: str, out: str) -> None:
    """Unpack one set and write its table."""
    folder = Path(out)
    unpack(mirror, folder.joinpath)
    rows = sorted({"pcuid": pcuid, "sr4kiqa": sr4kiqa, "hecd": hecd}[name](folder))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image", "mos", "split", "scene"])
        for image, score, scene, test in rows:
            writer.writerow([image, round(score, 5), "test" if test else "train", scene])
    print(len(rows), "images,", sum(row[3] for row in rows), "of them for testing")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("pcuid", "sr4kiqa", "hecd"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
