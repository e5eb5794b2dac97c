"""Hooks of mkdocs.yml: documents outside docs/ become pages, links to the repository's files lead to GitHub."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "weights/README.md": "model-card.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
}
"""Pages of the site by the document that they are."""

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def rewrite_links(text: str, source: str, page: str, repo_url: str) -> str:
    """Turn the links of a document, which are right in the repository, into those of the site.

    Args:
        text: Markdown.
        source: The document's path in the repository.
        page: The page's path in the site.
        repo_url: Address of the repository, under which other files are found.

    Raises:
        FileNotFoundError: A link leads to no file of the repository.
    """

    def replace(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z][a-z+.-]*:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (REPOSITORY / path).exists():
            raise FileNotFoundError(f"{source}: a link leads to {target}, and there is no {path}")
        inside = PAGES.get(path) or (path.removeprefix("docs/") if _in_site(path) else None)
        if inside is None:
            return f"{match[1]}{repo_url}/blob/main/{path}{match[3]}"
        return match[1] + posixpath.relpath(inside, posixpath.dirname(page) or ".") + match[3]

    return LINK.sub(replace, text)


def _in_site(path: str) -> bool:
    return path.startswith("docs/") and not path.startswith("docs/examples/") and not path.endswith((".py", ".json"))


def on_files(files: Any, config: Any) -> Any:
    """Add the documents outside docs/."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(REPOSITORY / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite a page's links."""
    path = page.file.src_uri
    source = next((source for source, name in PAGES.items() if name == path), f"docs/{path}")
    return rewrite_links(markdown, source, path, config.repo_url.rstrip("/"))
