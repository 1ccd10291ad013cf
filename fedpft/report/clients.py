"""The accuracy that clients may expect (`federated.expected_accuracy`), for people: a figure, and words for it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedpft.report.scores import metric_value

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

TITLE = "Expected accuracy of the clients"
SPREAD = {"mean": "mean", "p10": "10th percentile", "min": "worst client"}
"""Key in `client_expected_accuracy` -> what people read."""

ABOUT = (
    "The plugged-in FM's accuracy on each class of the evaluation set, weighted by the client's own label counts: what "
    "a client may expect if its examples of a class are like the evaluation set's. No client's examples were evaluated."
)

_HEIGHT, _ROW_HEIGHT, _MARGIN = 70, 60, {"l": 20, "r": 15, "t": 10, "b": 45}


def client_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of the final table's row; none for a run without classes."""
    if spread := result.get("client_expected_accuracy"):
        low, worst = (metric_value(spread[key], "accuracy") for key in ("p10", "min"))
        note = f"10th perc. {low}, worst {worst}"
        yield "accuracy, mean client", metric_value(spread["mean"], "accuracy"), note


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
