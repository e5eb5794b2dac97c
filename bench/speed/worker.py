"""A scorer's process: `python -m bench.speed.worker NAME`."""

import sys

from rali_core.benchmark import serve

from .baselines import make

if __name__ == "__main__":
    serve(lambda: make(sys.argv[1]))
