"""The documents as a site; `.ci/lint` builds it and fails on a link that leads nowhere."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
URL = "https://example.org/rali"


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", REPOSITORY / "tools" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("README.md", "index.md", "docs/datasets.md", "datasets.md"),
        ("README.md", "index.md", "docs/images/scored.jpg", "images/scored.jpg"),
        ("README.md", "index.md", "weights/README.md", "model-card.md"),
        ("README.md", "index.md", "LICENSE", f"{URL}/blob/main/LICENSE"),
        ("README.md", "index.md", "tools/make_figures.py", f"{URL}/blob/main/tools/make_figures.py"),
        (
            "docs/training.md",
            "training.md",
            "../rali_core/training/align.py",
            f"{URL}/blob/main/rali_core/training/align.py",
        ),
        ("docs/training.md", "training.md", "../weights/README.md#licence", "model-card.md#licence"),
        ("docs/reference/models.md", "reference/models.md", "../model-file.md", "../model-file.md"),
        ("weights/README.md", "model-card.md", "../docs/training.md", "training.md"),
        ("README.md", "index.md", "https://arxiv.org/abs/2510.11369", "https://arxiv.org/abs/2510.11369"),
        ("README.md", "index.md", "#install", "#install"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(
    site: ModuleType, source: str, page: str, link: str, expected: str
) -> None:
    assert site.rewrite_links(f"see [this]({link}).", source, page, URL) == f"see [this]({expected})."


def test_a_link_that_leads_nowhere_is_an_error(site: ModuleType) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"README.md: a link leads to docs/gone.md, and there is no docs/gone.md"
    ):
        site.rewrite_links("[x](docs/gone.md)", "README.md", "index.md", URL)


def test_every_document_is_a_page_of_the_navigation(site: ModuleType) -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    documents = {str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")}
    assert listed == documents | set(site.PAGES.values())


@pytest.mark.parametrize("package", ["", "dataset", "diffusers_hook", "rewards"])
def test_every_public_name_has_a_place_in_the_reference(package: str) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    for module in documented:
        path = REPOSITORY.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file(), module
    tree = ast.parse((REPOSITORY / "rali_core" / package / "__init__.py").read_text(encoding="utf-8"))
    homes = {
        ".".join(filter(None, ("rali_core", package, node.module)))
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert homes
    assert homes <= documented
