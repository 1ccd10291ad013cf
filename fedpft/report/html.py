"""What every page is made of: one file that opens anywhere, in light and dark, without a network.

The page's policy forbids every request. Figures lie in it as JSON; `page.js` draws them with plotly's program, which
the page holds once. A trace with a `legendgroup` is shown and hidden with the filter's box of that value, as is any
element with that `data-group`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a8a8a")
"""Okabe and Ito's colours, which colour-blind people tell apart, but for those that vanish on white or black."""

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
<script>{plotly}</script>
</head>
<body>
<h1>{title}</h1>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole page; `title` is text, `parts` are HTML."""
    from plotly.offline import get_plotlyjs

    assets = files("fedpft.report")
    return _PAGE.format(
        policy=_POLICY,
        title=escape(title),
        style=(assets / "page.css").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        body="\n".join(part for part in parts if part),
        script=(assets / "page.js").read_text(encoding="utf-8"),
    )


def section(title: str, *parts: str) -> str:
    """Return a section with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """Return a paragraph for those who want to know exactly."""
    return f'<p class="quiet">{escape(text)}</p>'


def details(title: str, content: str) -> str:
    """Return HTML that is folded under its title."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def plot(figure: "Figure", label: str, min_width: int = 0) -> str:
    """Return a figure.

    Args:
        figure: has a height; colours of text, lines and background are the page's.
        label: what screen readers say.
        min_width: pixels below which it scrolls sideways.

    """
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    data = json.dumps(content).replace("<", "\\u003c")  # nothing in it ends the script
    style = f"height: {content['layout']['height']}px" + (f"; min-width: {min_width}px" if min_width else "")
    drawn = (
        f'<div class="plot" role="img" aria-label="{escape(label)}" style="{style}">'
        f'<script type="application/json">{data}</script></div>'
    )
    return (scrolling(drawn, label) if min_width else drawn) + _exports(label)


def _exports(label: str) -> str:
    """Return the buttons that save the figure before them: as it is shown, and the numbers in it."""
    formats = (("svg", "SVG", "image"), ("csv", "CSV", "numbers"))
    buttons = "".join(
        f'<button type="button" data-export="{form}" aria-label="save as {title}: {escape(label)}" '
        f'title="save the {what}">{title}</button>'
        for form, title, what in formats
    )
    return f'<p class="export">{buttons}</p>'


def scrolling(content: str, label: str) -> str:
    """Return content that is too wide for a phone in a region that scrolls, by keyboard too."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, groups: Sequence[str] = ()) -> str:
    """Return a table; cells are HTML, the first of each row is its head. `groups`: each row's, for the filter."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for index, (first, *cells) in enumerate(rows):
        group = f' data-group="{escape(groups[index])}"' if groups else ""
        lines.append(f'<tr{group}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    body = "".join(lines)
    return scrolling(f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>", label)


def choice(label: str, panels: Mapping[str, str]) -> str:
    """Return a list to choose from, and the panel of the chosen title; one panel needs no list. To be in a section."""
    if len(panels) == 1:
        return next(iter(panels.values()))
    options = "".join(f"<option>{escape(title)}</option>" for title in panels)
    shown = "".join(
        f'<div class="choice" data-choice="{escape(title)}">{panel}</div>' for title, panel in panels.items()
    )
    return f"<label>{escape(label)} <select>{options}</select></label>\n{shown}"
