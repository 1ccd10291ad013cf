"""A suite as a page: its table, and a figure where the columns are values of one numeric setting."""

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING

from fedpft.metrics.table import metric_row
from fedpft.report.compare.figures import MARKERS
from fedpft.report.html import PALETTE, document, note, plot, section, table
from fedpft.report.scores import metric_title
from fedpft.report.suite import ShownCell, cell_text

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

PAGE_FILE = "suite.html"


def suite_page(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[ShownCell]],
    axis: tuple[str, Sequence[float]] | None,
) -> str:
    """Return the page's HTML.

    Args:
        title: of the suite.
        rows: labels.
        columns: labels.
        cells: row by row.
        axis: a setting and its value in each column (`SuiteConfig.numeric_setting`); None: there is no figure.

    """
    body = [
        [escape(label), *(escape(cell_text(cell)) for cell in found)] for label, found in zip(rows, cells, strict=True)
    ]
    parts = [section("Table", table(["", *map(escape, columns)], body, title))]
    by_row = dict(zip(rows, cells, strict=True))
    figure = None if axis is None else suite_figure(by_row, *axis)
    if axis is not None and figure is not None:
        said = "Means over the finished seeds; bars from the lowest to the highest seed."
        parts.append(section(f"By {axis[0]}", plot(figure, f"{title}: a line for each row"), note(said)))
    return document(title, parts)


def suite_figure(cells: Mapping[str, Sequence[ShownCell]], setting: str, values: Sequence[float]) -> "Figure | None":
    """Return the metric against a setting, a line for each row: means over seeds, bars from lowest to highest.

    Args:
        cells: row -> one cell for each column.
        setting: its dotted key.
        values: of the setting, one for each column.

    Returns:
        None: no cell is finished, or columns have different metrics.

    """
    metrics = {cell.metric for row in cells.values() for cell in row if cell.values and cell.metric}
    if len(metrics) != 1:
        return None
    from plotly.graph_objects import Figure, Scatter

    figure, markers = Figure(), list(MARKERS)
    for index, (label, row) in enumerate(cells.items()):
        points = sorted((value, cell.values) for value, cell in zip(values, row, strict=True) if cell.values)
        means = [fmean(each) for _, each in points]
        bars = {
            "symmetric": False,
            "array": [max(each) - mean for (_, each), mean in zip(points, means, strict=True)],
            "arrayminus": [mean - min(each) for (_, each), mean in zip(points, means, strict=True)],
            "thickness": 1.5,
        }
        style = {
            "line": {"color": PALETTE[index % len(PALETTE)]},
            "marker": {"symbol": markers[index % len(markers)], "size": 9},
        }
        line = Scatter(
            x=[value for value, _ in points], y=means, error_y=bars, mode="lines+markers", name=label, **style
        )
        figure.add_trace(line)
    (metric,) = metrics
    percent = {"tickformat": ".0~%"} if metric_row(metric).is_fraction else {}
    figure.update_layout(height=420, margin={"l": 55, "r": 15, "t": 15, "b": 50}, xaxis={"title": setting})
    return figure.update_yaxes(title=metric_title(metric), **percent)
