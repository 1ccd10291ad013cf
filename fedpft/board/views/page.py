"""The frame of every page, and its parts: a page is HTML by id, so that what changed can be sent alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/assets/page.css?{assets}">
<link rel="stylesheet" href="/assets/board.css?{assets}">
{plotly}<script defer src="/assets/page.js?{assets}"></script>
<script defer src="/assets/board.js?{assets}"></script>
</head>
<body data-have="{have}" data-now="{now:.1f}">
<a class="skip" href="#main">to the content</a>
<header>
<nav aria-label="pages">{nav}</nav>
<output class="live quiet" aria-live="polite"></output>
</header>
<h1>{title}</h1>
<main id="main">
{body}
</main>
</body>
</html>
"""
_PLOTLY = '<script defer src="/assets/plotly.js?{assets}"></script>\n'


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows now."""

    title: str
    before: str = ""
    """HTML that never changes: forms, which belong to who types into them."""
    parts: Mapping[str, str]
    """Id -> HTML of one element with this id, in their order."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """The same of a table's rows, which come and go, in their order; they are put into `{rows}` of the part `table`."""
    has_figures: bool = False

    @property
    def all(self) -> dict[str, str]:
        """Parts and rows; where the rows go, a part is empty."""
        return {**self._parts(""), **self.rows}

    @property
    def hash(self) -> str:
        """What a browser has that shows this."""
        return digest("".join([*self.all.values(), *self.rows]))

    def html(self, nav: str, now: float, assets: str) -> str:
        """Return the whole page, a text of UTF-8."""
        rows = "\n".join(self.rows.values())
        page = _PAGE.format(
            title=escape(self.title),
            assets=assets,
            plotly=_PLOTLY.format(assets=assets) if self.has_figures else "",
            have=self.hash,
            now=now,
            nav=nav,
            body="\n".join([self.before, *self._parts(rows).values()]),
        )
        return _in_utf8(page)

    def _parts(self, rows: str) -> dict[str, str]:
        return {key: html.replace("{rows}", rows) if key == "table" else html for key, html in self.parts.items()}


def digest(text: str) -> str:
    """Return a few digits that change with a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def nav(here: str, links: Sequence[tuple[str, str]]) -> str:
    """Return links, `(address, title)`, the one to this page marked."""
    return " ".join(
        f'<a href="{escape(address)}"{" aria-current=page" * (title == here)}>{escape(title)}</a>'
        for address, title in links
    )


def ago(seconds: float) -> str:
    """Return a time that the browser counts on from: `2 min ago`; without it, the clock's."""
    return _moment(seconds, "ago")


def until(seconds: float) -> str:
    """Return a time that the browser counts down to: `2 min`."""
    return _moment(seconds, "until")


def _moment(seconds: float, kind: str) -> str:
    if not seconds:
        return ""
    said = datetime.fromtimestamp(seconds, UTC).astimezone()
    return f'<time data-{kind}="{seconds:.0f}" datetime="{said:%Y-%m-%dT%H:%M:%S%z}">{said:%Y-%m-%d %H:%M:%S}</time>'


def wrapped(name: str, content: str) -> str:
    """Return a part."""
    return f'<div id="{name}">{content}</div>'


def listing(label: str, titles: Sequence[str], rows: str, body_id: str = "") -> str:
    """Return a table that is a list of cards on a phone; `rows`: of :func:`listing_row`."""
    head = "".join(f'<th scope="col" role="columnheader">{title}</th>' for title in titles)
    named = f' id="{body_id}"' if body_id else ""
    return (
        f'<table class="runs" role="table" aria-label="{label}"><thead role="rowgroup">'
        f'<tr role="row">{head}</tr></thead><tbody role="rowgroup"{named}>{rows}</tbody></table>'
    )


def listing_row(name: str, titles: Sequence[str], cells: Sequence[str], row_id: str = "") -> str:
    """Return a row of HTML under all titles, the first of which is that of its name."""
    told = zip(titles[1:], cells, strict=True)
    body = "".join(f'<td role="cell" data-label="{t}"{" class=none" * (not cell)}>{cell}</td>' for t, cell in told)
    named = f' id="{row_id}"' if row_id else ""
    return f'<tr{named} role="row"><th scope="row" role="rowheader">{name}</th>{body}</tr>'


def text(value: object) -> str:
    """Return HTML of any text; what is no text of UTF-8, as names of files may be, is shown as marks."""
    return escape(_in_utf8(str(value)))


def _in_utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
