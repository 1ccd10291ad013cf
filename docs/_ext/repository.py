"""The repository's other texts as pages of the book; links between texts lead from page to page.

On disk, and where a repository is browsed, the links of all texts are relative paths of files. In the book

    a text of `TEXTS`      becomes a page under docs/repository/, which is made anew by every build
    any other file         is a download
    a folder               is its README's page, or no link
"""

import os
import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
PAGES = "repository"
TEXTS = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "experiments/README.md",
    "experiments/benchmarks/*/README.md",
    "ray_cluster/*.md",
)
"""Patterns of those that become pages."""

DIAGRAM = re.compile(r"```mermaid\n.*?\n```\n+", re.DOTALL)
"""Drawn where a repository is browsed; the book has a figure of its own on the page of results."""

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""A link to a file: its words, the path, what follows `#`."""


def texts() -> dict[Path, str]:
    """Return the texts that become pages -> the pages' names."""
    found = sorted(file for pattern in TEXTS for file in ROOT.glob(pattern))
    return {file: f"/{PAGES}/{file.relative_to(ROOT)}" for file in found}


def write_pages() -> None:
    """Write the pages, and remove those of texts that are no more."""
    wanted = {DOCS / page.lstrip("/"): file for file, page in texts().items()}
    for page in set((DOCS / PAGES).rglob("*.md")) - wanted.keys():
        page.unlink()
    for page, file in wanted.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        content = relinked(DIAGRAM.sub("", file.read_text(encoding="utf-8")), file.parent, page.parent)
        if not page.exists() or page.read_text(encoding="utf-8") != content:
            page.write_text(content, encoding="utf-8")


def relinked(text: str, folder: Path, page_folder: Path | None = None) -> str:
    """Return Markdown whose links are those of the book.

    Args:
        text: links are relative to `folder`.
        folder: that of the text's file.
        page_folder: that of its page; None: the same.

    """
    pages = texts()

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        file = (folder / target).resolve()
        if file.is_dir():
            file = file / "README.md"
        if file in pages:
            return f"[{words}]({pages[file]}{anchor})"
        if not file.exists():
            return words
        if file.is_relative_to(DOCS):
            return f"[{words}](/{file.relative_to(DOCS)}{anchor})"
        return f"[{words}]({os.path.relpath(file, page_folder or folder)})"

    return LINK.sub(link, text)
