"""A suite's table as text, Markdown or LaTeX: in each cell the published value, ours beside it."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Literal, Protocol

from fedpft.metrics.table import metric_row
from fedpft.report.intervals import half_interval

Format = Literal["text", "markdown", "latex"]


class ShownCell(Protocol):
    """What is shown of a cell."""

    @property
    def values(self) -> Sequence[float]:
        """One for each finished seed."""

    @property
    def num_seeds(self) -> int:
        """How many there should be."""

    @property
    def metric(self) -> str | None:
        """Whose values they are."""

    @property
    def published(self) -> float | None:
        """In %."""


def cell_text(cell: ShownCell) -> str:
    """Return e.g. `87.5 (paper) / 86.9 ± 0.4`, `86.9 [1 of 3 seeds]` while some are missing, `-` while all are."""
    published = [] if cell.published is None else [f"{cell.published:.1f} (paper)"]
    if not cell.values or cell.metric is None:
        return " / ".join([*published, "-"])
    unit, digits = (100, 1) if metric_row(cell.metric).is_fraction else (1, 3)
    half = half_interval(cell.values)
    ours = f"{unit * fmean(cell.values):.{digits}f}" + (f" ± {unit * half:.{digits}f}" if half is not None else "")
    if len(cell.values) < cell.num_seeds:
        ours += f" [{len(cell.values)} of {cell.num_seeds} seeds]"
    return " / ".join([*published, ours])


def suite_table(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[ShownCell]], form: Format
) -> str:
    """Return the whole table in one of the formats; `rows` and `columns` are labels."""
    head = ["", *columns]
    body = [[label, *map(cell_text, found)] for label, found in zip(rows, cells, strict=True)]
    writers: dict[Format, Callable[[str, list[str], list[list[str]]], str]] = {
        "text": _text, "markdown": _markdown, "latex": _latex,
    }  # fmt: skip
    return writers[form](title, head, body)


def suite_numbers(cells: Sequence[Sequence[ShownCell]]) -> list[list[dict[str, Any]]]:
    """Return what is in the cells, row by row, as JSON; `published` is in %, `values` are not."""
    names = ("metric", "values", "num_seeds", "published")
    return [[{name: getattr(cell, name) for name in names} for cell in row] for row in cells]


def _text(title: str, head: list[str], body: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *body)
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*[title] * bool(title), lines[0], rule, *lines[1:]])


def _markdown(title: str, head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in (head, *body)]
    rule = "|" + " --- |" * len(head)
    return "\n".join([*[f"**{title}**", ""] * bool(title), lines[0], rule, *lines[1:]])


def _latex(title: str, head: list[str], body: list[list[str]]) -> str:
    def line(row: list[str]) -> str:
        return " & ".join(_escaped(text) for text in row) + r" \\"

    return "\n".join([
        r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", r"\hline", line(head),
        r"\hline", *map(line, body), r"\hline", r"\end{tabular}", *[rf"\caption{{{_escaped(title)}}}"] * bool(title),
        r"\end{table}",
    ])  # fmt: skip


def _escaped(text: str) -> str:
    for mark in "&%$#_{}":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("±", r"$\pm$")
