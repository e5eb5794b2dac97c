"""A Pillow plugin for photos that take a third of a second each: 40 x 40 raw pixels after the word SLOW."""

import time

from PIL import Image, ImageFile


class SlowImageFile(ImageFile.ImageFile):
    format = "SLOW"
    format_description = "a decoder that takes its time"

    def _open(self) -> None:
        time.sleep(0.3)
        self._mode, self._size = "RGB", (40, 40)
        self.tile = [ImageFile._Tile("raw", (0, 0, 40, 40), 4, ("RGB", 0, 1))]


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(b"SLOW")


Image.register_open(SlowImageFile.format, SlowImageFile, _accept)
