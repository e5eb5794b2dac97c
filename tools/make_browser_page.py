"""Put the page of docs/try, a model and ONNX Runtime for browsers into one folder that works without a network.

    pip install ".[export]"
    python tools/make_browser_page.py              # into build/try
    python tools/make_browser_page.py --serve      # the same, and http://localhost:8000 shows it

onnxruntime-web comes from npm (`npm pack`), or out of a folder that holds its files (`--runtime DIR`). For the site of
the documents: `mkdocs build`, then `python tools/make_browser_page.py -o site/try`.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rali_core.constants import COVERAGES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "try"
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MODEL_FILE = "model.onnx"


def fetch_runtime(folder: Path) -> None:
    """Fetch the runtime's files from npm into a folder.

    Raises:
        FileNotFoundError: There is no npm here, or the package lacks a file.
        OSError: npm could not fetch it.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"npm is needed to fetch {RUNTIME}: install Node.js, or name a folder that holds "
            f"{' and '.join(RUNTIME_FILES)} with --runtime"
        )
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [npm, "pack", RUNTIME, "--silent"], cwd=work, capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode:
            raise OSError(f"npm could not fetch {RUNTIME}: {done.stderr.strip() or done.stdout.strip()}")
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise FileNotFoundError(f"{RUNTIME} holds no dist/{name}")
                (folder / name).write_bytes(member.read())


def make_page(
    folder: Path, *, model: str | None = None, precision: str = "float16", coverage: str | None = None,
    runtime: Path | None = None,
) -> None:  # fmt: skip
    """Put everything into a folder.

    Args:
        folder: Made where it does not exist; files of an earlier run are replaced.
        model: Name or file; by default the bundled model.
        precision: `"float32"` or `"float16"`, half the size.
        coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own setting.
        runtime: Folder that holds onnxruntime-web's files; by default they are fetched from npm.
    """
    from rali_core.checkpoint import load_model
    from rali_core.hub import find_model
    from rali_core.onnx_export import check_packages, describe_export, export_onnx

    check_packages()
    folder.mkdir(parents=True, exist_ok=True)
    if runtime is None:
        fetch_runtime(folder)
    else:
        for name in RUNTIME_FILES:
            shutil.copyfile(runtime / name, folder / name)
    loaded = load_model(find_model(model))
    made = export_onnx(loaded.model, folder / MODEL_FILE, info=loaded.info, precision=precision, coverage=coverage)  # type: ignore[arg-type]
    about = describe_export(loaded.model, loaded.info, made.coverage, made.precision)
    (folder / "model.json").write_text(json.dumps({"file": MODEL_FILE, **about}), encoding="utf-8")
    for file in PAGE.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with the two headers without which browsers allow one thread only."""

    def end_headers(self) -> None:
        """Add the headers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def make_server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of this machine only; port 0 takes any that is free."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(folder)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder, and serve it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/try"), metavar="DIR",
                        help="folder (default: build/try)")  # fmt: skip
    parser.add_argument("--model", metavar="NAME_OR_FILE", help="default: the bundled model")
    parser.add_argument("--precision", choices=("float32", "float16"), default="float16", help="default: float16")
    parser.add_argument("--coverage", choices=COVERAGES, help="default: the model's own")
    parser.add_argument("--runtime", type=Path, metavar="DIR", help="folder with onnxruntime-web's files")
    parser.add_argument("--serve", type=int, nargs="?", const=8000, metavar="PORT", help="show it at this port (8000)")
    options = parser.parse_args(arguments)
    try:
        make_page(options.output, model=options.model, precision=options.precision, coverage=options.coverage,
                  runtime=options.runtime)  # fmt: skip
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{options.output} is complete ({sum(file.stat().st_size for file in options.output.iterdir()) / 1e6:.0f} MB)"
    )
    if options.serve is not None:
        with make_server(options.output, options.serve) as server:
            print(f"http://localhost:{server.server_address[1]} (Ctrl-C ends it)", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
