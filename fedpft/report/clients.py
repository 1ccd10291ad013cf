"""Accuracy client by client, for people: what clients may expect, and what was measured on their own examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpft.report.scores import metric_value

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to look at the accuracy of a model client by client."""

    key: str
    """In `result.json`; `values` there are the clients'."""
    title: str
    row: str
    """Of the final table."""
    spread: Mapping[str, str]
    """Key of the numbers -> what people read."""
    about: str

    def shown(self, name: str, value: float) -> str:
        """Return one of the numbers in words."""
        return f"{value:.4f}" if name == "variance" else metric_value(value, "accuracy")


EXPECTED = View(
    key="client_expected_accuracy",
    title="Expected accuracy of the clients",
    row="accuracy, mean client",
    spread={"mean": "mean", "p10": "10th percentile", "min": "worst client"},
    about=(
        "The plugged-in FM's accuracy on each class of the evaluation set, weighted by the client's own label counts: "
        "what a client may expect if its examples of a class are like the evaluation set's. No client's examples were "
        "evaluated."
    ),
)
MEASURED = View(
    key="client_accuracy",
    title="Accuracy on the clients' own held-out examples",
    row="accuracy, own examples",
    spread={"mean": "mean", "variance": "variance", "worst_decile": "worst 10 %"},
    about=(
        "The plugged-in FM's accuracy on the examples that each client holds out of training, each client counting "
        "once; a client with few of them has a coarse accuracy, which widens the spread."
    ),
)
VIEWS = (EXPECTED, MEASURED)

_HEIGHT, _ROW_HEIGHT, _MARGIN = 70, 60, {"l": 20, "r": 15, "t": 10, "b": 45}


def client_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of the final table's rows; none for a run without classes."""
    if spread := result.get(EXPECTED.key):
        note = f"10th perc. {EXPECTED.shown('p10', spread['p10'])}, worst {EXPECTED.shown('min', spread['min'])}"
        yield EXPECTED.row, EXPECTED.shown("mean", spread["mean"]), note
    if spread := result.get(MEASURED.key):
        worst, variance = (MEASURED.shown(key, spread[key]) for key in ("worst_decile", "variance"))
        note = f"worst 10 % {worst}, var. {variance}"
        yield MEASURED.row, MEASURED.shown("mean", spread["mean"]), note


def client_note(result: Mapping[str, Any]) -> str:
    """Return how many clients hold out nothing, being too small; empty if all do, or none should."""
    spread = result.get(MEASURED.key) or {}
    without = spread.get("without", 0)
    return f"{without} of {without + spread['clients']} clients are too small to hold out an example" if without else ""


def accuracy_boxes(rows: Mapping[str, Sequence[float]], colours: Sequence[str]) -> "Figure":
    """Return a box and all points for each row, the first at the top.

    Args:
        rows: name -> an accuracy for each client.
        colours: one for each row.

    """
    from plotly.graph_objects import Box, Figure

    figure = Figure()
    for (name, values), colour in zip(rows.items(), colours, strict=True):
        points = {"boxpoints": "all", "jitter": 0.6, "pointpos": 0, "marker": {"color": colour, "opacity": 0.6}}
        hover = f"{name}: %{{x:.1%}}<extra></extra>"
        figure.add_trace(Box(x=values, name=name, showlegend=False, hovertemplate=hover, hoveron="points", **points))
    is_named = len(rows) > 1
    return figure.update_layout(
        height=_HEIGHT + _ROW_HEIGHT * max(2, len(rows)),
        margin=_MARGIN,
        xaxis={"title": "accuracy", "tickformat": ".0%"},
        yaxis={"autorange": "reversed", "visible": is_named, "automargin": True},
    )
