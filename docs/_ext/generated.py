"""What the book does not say by hand: a line `{{ NAME }}` of a page becomes the text that `GENERATORS[NAME]` returns.

    sphinx's source-read -> expand(page) -> Markdown, from which Sphinx makes sections, tables and links

So the page of settings is what the dataclasses say, the page of commands what the command line says, and the pages of
results what the records under experiments/results say, whenever the book is built.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import command_line
import figures
import messages
import repository
import results
import settings

GENERATORS: Mapping[str, Callable[[], str]] = {
    "settings: run": settings.run_settings,
    "settings: sweep": settings.sweep_settings,
    "settings: suite": settings.suite_settings,
    "commands": command_line.commands,
    "messages": messages.leaving,
    "results: summary": results.summary,
    "results: methods": results.methods,
    "results: alignment": results.alignment,
    "results: plug-in": results.plug_in,
    "results: simulation": results.simulation,
    "results: quickstart": results.quickstart,
    "results: robust": results.robust,
    "figure: methods": figures.methods,
    "figure: alignment": figures.alignment,
    "figure: simulation": figures.simulation,
    "figure: together": figures.together,
    "figure: robust": figures.robust,
}
"""What stands in a page -> what makes the text in its place."""

PLACE = re.compile(r"^\{\{ (.+) \}\}$", re.MULTILINE)


def expand(text: str) -> str:
    """Return a page's text with what is generated in it."""
    return PLACE.sub(lambda match: GENERATORS[match[1]](), text)


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""

    def read(_app: Any, name: str, source: list[str]) -> None:
        source[0] = expand(source[0])
        if not name.startswith(repository.PAGES):
            source[0] = repository.relinked(source[0], Path(app.env.doc2path(name)).parent)

    repository.write_pages()
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
