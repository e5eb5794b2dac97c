"""A contender's process: `python -m bench.speed.worker NAME`."""

import sys

from rali_core.benchmark import serve

from .contenders import make

if __name__ == "__main__":
    serve(lambda: make(sys.argv[1]))
