"""Accuracy client by client, group by group: who pays for a good mean."""

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedpft.report.clients import View, accuracy_boxes
from fedpft.report.compare.groups import Group
from fedpft.report.compare.runs import Run

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure


def client_spread(group: Group, view: View) -> dict[str, float]:
    """Return the view's numbers, each the mean over finished runs; empty unless all of them have it."""
    found = [_of_run(run, view) for run in group.finished]
    return {key: fmean(each[key] for each in found) for key in view.spread} if found and all(found) else {}


def client_figure(groups: Mapping[str, Group], colours: Mapping[str, str], view: View) -> "Figure":
    """Return a box for each group: every client of every seed once.

    Args:
        groups: label -> group with a :func:`client_spread`.
        colours: by label.
        view: of which the clients' values are.

    """
    names = {label: label.replace(", ", ",<br>") for label in groups}
    rows = {
        names[label]: [value for run in group.finished for value in _of_run(run, view)["values"] if value is not None]
        for label, group in groups.items()
    }
    figure = accuracy_boxes(rows, [colours[label] for label in groups])
    for trace, label in zip(figure.data, groups, strict=True):
        trace.legendgroup = label
    return figure


def _of_run(run: Run, view: View) -> Mapping[str, Any]:
    return run.result.get(view.key) or {}
