"""What holds for the project as a whole: imports, packaging, documents."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import rali_core

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted((REPOSITORY / "rali_core").rglob("*.py"))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def absolute_self_imports(code: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "rali_core"]
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "rali_core":
            found.append(node.module or "")
    return found


def test_inside_the_core_every_import_of_itself_is_relative() -> None:
    # ComfyUI loads the pack under a name made of its path: there is no top-level rali_core there.
    assert absolute_self_imports("import rali_core.head\nfrom rali_core import x\nfrom .head import y") == [
        "rali_core.head",
        "rali_core",
    ]
    assert len(SOURCES) > 20
    for path in SOURCES:
        assert absolute_self_imports(path.read_text(encoding="utf-8")) == [], path


def test_modules_import_each_other_in_no_circle(
    imported_files: Callable[[Path, Iterable[ast.AST]], set[Path]],
) -> None:
    # Neither at the top nor inside a function.
    files = [*SOURCES, *sorted((REPOSITORY / "nodes").glob("*.py"))]
    waiting = {
        path: {other for other in imported_files(path, ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
               if other.name != "__init__.py"}
        for path in files if path.name != "__init__.py"
    }  # fmt: skip
    assert sum(map(len, waiting.values())) > 200
    while free := [path for path, others in waiting.items() if not others & waiting.keys()]:
        for path in free:
            del waiting[path]
    assert sorted(map(str, waiting)) == [], "these import each other"


def test_importing_the_package_is_quick_and_touches_nothing() -> None:
    code = """
import os, sys, logging, warnings
before = (dict(os.environ), list(sys.path), list(logging.root.handlers), logging.root.level, list(warnings.filters))
import rali_core
after = (dict(os.environ), list(sys.path), list(logging.root.handlers), logging.root.level, list(warnings.filters))
assert before == after
heavy = {"torch", "open_clip", "timm", "transformers", "sklearn", "scipy", "diffusers"} & set(sys.modules)
assert not heavy, heavy
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_scoring_needs_neither_transformers_nor_what_only_training_needs(tiny_file: Path) -> None:
    # open_clip itself imports transformers where that is installed; what counts is that scoring works without.
    code = f"""
import sys
hidden = ("transformers", "sklearn", "joblib", "scipy", "onnx", "matplotlib", "pandas", "diffusers", "skimage")
for name in hidden:
    sys.modules[name] = None
import torch
from rali_core import RaliScorer
RaliScorer.from_pretrained({str(tiny_file)!r}, device="cpu").score(torch.rand(3, 40, 40))
assert all(sys.modules[name] is None for name in hidden)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_imported_and_no_other() -> None:
    for name in rali_core.__all__:
        assert getattr(rali_core, name) is not None
    assert dir(rali_core) == rali_core.__all__
    with pytest.raises(AttributeError, match="module 'rali_core' has no attribute 'Nonsense'"):
        rali_core.Nonsense  # noqa: B018


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what doctest's finder looks at in other packages
@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if re.search(r">>> (?!.*\+SKIP)", path.read_text(encoding="utf-8"))],
    ids=lambda path: path.stem,
)
def test_examples_in_docstrings_run_as_printed(path: Path) -> None:
    import doctest
    import importlib

    module = importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/library.md"])
def test_the_documents_python_examples_run(document: str, tmp_path: Path) -> None:
    blocks = python_blocks((REPOSITORY / document).read_text(encoding="utf-8"))
    assert blocks
    from skimage import data, io

    for name, array in (("a.jpg", data.astronaut()), ("b.png", data.coffee())):
        io.imsave(tmp_path / name, array, check_contrast=False)
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_links_between_the_documents_lead_somewhere() -> None:
    documents = list(REPOSITORY.glob("*.md")) + sorted((REPOSITORY / "docs").glob("*.md"))
    documents.append(REPOSITORY / "weights" / "README.md")
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_changelog_and_citation_know_this_version() -> None:
    changes, citation = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    released = re.findall(r"^## (\d[\d.]*)\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL)
    assert released[0][0] == rali_core.__version__
    assert all(1 <= len(re.findall("^- ", text, re.MULTILINE)) < 12 for _, text in released)
    assert f"\nversion: {rali_core.__version__}\n" in citation
