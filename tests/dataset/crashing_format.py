"""A Pillow plugin whose decoder ends its process, never ends, or fills the memory: imported by the workers only."""

import os
import resource
import signal
import time
from pathlib import Path

from PIL import Image, ImageFile


class CrashingImageFile(ImageFile.ImageFile):
    format = "CRASH"
    format_description = "a decoder with a fault"

    def _open(self) -> None:
        fault, _, argument = self.fp.read(200).removeprefix(b"CRASH ").decode().partition(" ")
        if fault == "once":  # dies at the first try only; the second sees what the first has left
            marker = Path(argument)
            if marker.exists():
                raise SyntaxError("tried again")
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(3600)
        if fault == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
            bytearray(2**40)
        os.kill(os.getpid(), getattr(signal, fault))
        time.sleep(60)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(b"CRASH ")


Image.register_open(CrashingImageFile.format, CrashingImageFile, _accept)
