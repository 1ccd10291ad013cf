"""The figures of a comparison: in all of them a group has the same colour and marker, and its label as legendgroup."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedpft.metrics.table import metric_row
from fedpft.report.compare.comparison import Comparison
from fedpft.report.compare.costs import AXES
from fedpft.report.compare.groups import Group, short_key
from fedpft.report.compare.runs import Run
from fedpft.report.fidelity import PANELS, panels
from fedpft.report.html import PALETTE
from fedpft.report.scores import metric_title, metric_value

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

MARKERS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "triangle-down": "▼", "star": "★"}
"""Plotly's name -> the glyph beside a group's label. Six markers and seven colours: 42 groups before both repeat."""

_MARGIN = {"l": 55, "r": 15, "t": 15, "b": 50}
_HEIGHT = 360
_MAX_TICKS = 6  # of an axis of parallel coordinates


def group_colours(comparison: Comparison) -> dict[str, str]:
    """Return label -> colour."""
    return {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(comparison.order)}


def group_markers(comparison: Comparison) -> dict[str, str]:
    """Return label -> plotly's name of the marker."""
    names = list(MARKERS)
    return {label: names[index % len(names)] for index, label in enumerate(comparison.order)}


def curve_figure(comparison: Comparison, model: str) -> "Figure | None":
    """Return the metric of a `model` (`fm`, `sub_fm`) by round: means over seeds, bands from the lowest to the highest.

    Dotted: no seed is finished. None if no group has such a curve.
    """
    from plotly.graph_objects import Figure, Scatter

    figure, colours, markers = Figure(), group_colours(comparison), group_markers(comparison)
    for group in comparison.groups:
        by_round = _values_by_round(group, model)
        if not by_round:
            continue
        rounds, values = list(by_round), list(by_round.values())
        low, high = [min(each) for each in values], [max(each) for each in values]
        common = {"legendgroup": group.label, "name": group.label, "showlegend": False}
        if len(group.runs) > 1:
            band = {"fill": "toself", "line": {"width": 0}, "fillcolor": colours[group.label], "opacity": 0.13}
            around = {"x": [*rounds, *reversed(rounds)], "y": [*high, *reversed(low)]}
            figure.add_trace(Scatter(**around, **band, **common, mode="lines", hoverinfo="skip"))
        line = {"color": colours[group.label], "dash": "solid" if group.finished else "dot"}
        style = {"line": line, "marker": {"symbol": markers[group.label], "size": 8}}
        figure.add_trace(Scatter(x=rounds, y=[fmean(each) for each in values], **style, **common, mode="lines+markers"))
    if not figure.data:
        return None
    last = max(max(trace.x) for trace in figure.data)
    rounds_axis = {"title": "round", "rangemode": "tozero", "dtick": max(1, last // 6)}
    figure.update_layout(height=_HEIGHT, margin=_MARGIN, xaxis=rounds_axis)
    figure.update_yaxes(range=_range([value for trace in figure.data for value in trace.y]))
    return _with_metric_axis(figure, comparison)


def pareto_figure(comparison: Comparison, axis: str) -> "Figure":
    """Return metric against a price: the front as a line, dominated groups faded, bars from lowest to highest seed."""
    from plotly.graph_objects import Figure, Scatter

    priced = [group for group in comparison.groups if axis in comparison.costs[group.label]]
    means = {group.label: comparison.estimates[group.label].mean for group in priced}
    prices = {group.label: comparison.costs[group.label][axis] for group in priced}
    front, what = comparison.front(axis), AXES[axis]
    line = {"color": "#8a8a8a", "dash": "dot"}
    figure = Figure(
        Scatter(
            x=[prices[label] for label in front], y=[means[label] for label in front],
            mode="lines", line=line, name="front", hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip
    colours, markers = group_colours(comparison), group_markers(comparison)
    for group in priced:
        label, mean, values = group.label, means[group.label], group.values.values()
        bars = {"symmetric": False, "array": [max(values) - mean], "arrayminus": [mean - min(values)], "thickness": 1.5}
        said = f"{metric_value(mean, comparison.metric)}, {comparison.price(label, axis)}"
        point = Scatter(
            x=[prices[label]], y=[mean], error_y=bars, mode="markers", name=label, legendgroup=label, showlegend=False,
            marker={"color": colours[label], "symbol": markers[label], "size": 14},
            opacity=1 if label in front else 0.4, hovertemplate=f"{label}<br>{said}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(point)
    unit = {"exponentformat": "SI", "ticksuffix": what.unit}
    if what.shown is None:
        unit = _percent(comparison)
    better = "less" if what.goal == "min" else "more"
    price_axis = {"title": f"{what.title}; {better} is better", "range": _range(prices.values()), **unit}
    figure.update_layout(height=_HEIGHT, margin=_MARGIN, xaxis=price_axis)
    figure.update_yaxes(range=_range([value for group in priced for value in group.values.values()]))
    return _with_metric_axis(figure, comparison)


def parallel_figure(comparison: Comparison) -> "Figure | None":
    """Return a line for each run across the settings that differ and the metric; None without differences."""
    from plotly.graph_objects import Figure, Scatter

    keys = [key for key, _ in comparison.setting_rows()]
    if not keys:
        return None
    runs = [(group.label, run) for group in comparison.groups for run in group.runs if not run.is_elsewhere]
    axes = [_Axis(short_key(key), [json.loads(run.settings.get(key, "null")) for _, run in runs]) for key in keys]
    axes.append(_Axis(metric_title(comparison.metric), [run.value for _, run in runs], comparison.metric))
    figure, colours, markers = Figure(), group_colours(comparison), group_markers(comparison)
    for index, (label, run) in enumerate(runs):
        line = Scatter(
            x=list(range(len(axes))), y=[axis.heights[index] for axis in axes], mode="lines+markers", opacity=0.75,
            line={"color": colours[label]}, showlegend=False,
            marker={"symbol": markers[label] + "-open" * (not run.is_finished), "size": 8},
            legendgroup=label, name=label, hovertemplate=f"{label}, {_which(run)}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(line)
    for place, axis in enumerate(axes):
        figure.add_vline(x=place, line={"width": 1, "color": "#8a8a8a"}, layer="below")
        for height, text in axis.ticks:
            figure.add_annotation(x=place, y=height, text=text, showarrow=False, xanchor="left", xshift=6, yshift=11)
    names = {"tickvals": list(range(len(axes))), "ticktext": [axis.name for axis in axes], "showgrid": False}
    figure.update_layout(
        height=_HEIGHT, margin=_MARGIN | {"l": 50, "r": 70}, xaxis={**names, "range": [-0.1, len(axes) - 0.85]},
        yaxis={"visible": False, "range": [-0.05, 1.12]},
    )  # fmt: skip
    return figure


class _Axis:
    """One axis of parallel coordinates: each run's height in [0, 1], and what is written beside it."""

    def __init__(self, name: str, values: Sequence[Any], metric: str | None = None) -> None:
        self.name = name
        distinct = list(dict.fromkeys(map(_written, values)))
        are_few = len(distinct) <= _MAX_TICKS and metric is None
        are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if are_numbers and not are_few:
            low, high = min(values), max(values)
            self.heights = [(value - low) / (high - low) if high > low else 0.5 for value in values]
        else:  # at equal distances, where what is written beside them has room
            order = list(map(_written, sorted(set(values)))) if are_numbers else distinct
            self.heights = [order.index(_written(value)) / max(1, len(order) - 1) for value in values]
        texts = [metric_value(value, metric) if metric else _written(value) for value in values]
        ticks = sorted(dict(zip(self.heights, texts, strict=True)).items())
        self.ticks = ticks if are_few else [ticks[0], ticks[-1]]


def fidelity_figure(comparison: Comparison) -> "Figure | None":
    """Return the meter's last measurement, layers x groups, means over seeds; None where no run has one."""
    columns = {group.label: _mean_fidelity(group) for group in comparison.groups}
    measured = {label: column for label, column in columns.items() if column}
    if not measured:
        return None
    figure, labels = panels([{label: column} for label, column in measured.items()], "group"), list(measured)
    for trace in figure.data:  # plotly misplaces traces of one column each on an axis of words
        trace.legendgroup = trace.x[0]
        trace.hovertemplate = trace.hovertemplate.replace("%{x}", trace.x[0])
        trace.x = [labels.index(trace.x[0])]
    figure.update_xaxes(type="linear", range=[-0.5, len(labels) - 0.5], tickvals=[])
    words = [label.replace(", ", ",<br>") for label in labels]
    figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=words, title="", row=len(PANELS), col=1)
    return figure


def spread_figure(comparison: Comparison) -> "Figure | None":
    """Return a box for each group: training loss of each client, the last time it trained, all seeds together."""
    from plotly.graph_objects import Box, Figure

    figure, colours = Figure(), group_colours(comparison)
    for group in comparison.groups:
        losses = [loss for run in group.runs for loss in last_losses(run).values()]
        if losses:
            box = {"marker": {"color": colours[group.label]}, "boxpoints": "all", "jitter": 0.4, "pointpos": 0}
            common = {"name": group.label.replace(", ", ",<br>"), "legendgroup": group.label, "showlegend": False}
            figure.add_trace(Box(y=losses, **box, **common))
    layout = {"height": _HEIGHT, "margin": _MARGIN, "yaxis": {"title": "training loss", "rangemode": "tozero"}}
    return figure.update_layout(**layout) if figure.data else None


def last_losses(run: Run) -> dict[int, float]:
    """Return each client's mean training loss in the last round that it finished."""
    return {
        client: loss
        for record in run.records
        for client, loss in zip(record.get("clients", ()), record.get("client_losses", ()), strict=False)
    }


def partitions(comparison: Comparison) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each partition that runs recorded once, with the seeds and groups that had it."""
    owners: dict[str, list[tuple[int, str]]] = {}
    for group in comparison.groups:
        for run in group.runs:
            if run.partition is not None:
                owners.setdefault(json.dumps(run.partition), []).append((run.seed, group.label))
    for content, pairs in owners.items():
        seeds, labels = sorted({seed for seed, _ in pairs}), {label: None for _, label in pairs}
        who = "all groups" if len(labels) == len(comparison.groups) else ", ".join(labels)
        yield f"seed {', '.join(map(str, seeds))}: {who}", json.loads(content)


def _values_by_round(group: Group, model: str) -> dict[int, list[float]]:
    """Return round -> the metric of every run of the group that was evaluated then; round 0 is the untuned FM."""
    by_round: dict[int, list[float]] = {}
    for run in group.runs:
        start = {"round": 0}
        if model == "fm" and "untuned_fm" in run.result:
            start["fm"] = run.result["untuned_fm"]
        for record in (start, *run.records):
            if model in record:
                by_round.setdefault(record["round"], []).append(record[model])
    return dict(sorted(by_round.items()))


def _which(run: Run) -> str:
    return f"seed {run.seed}" + ("" if run.is_finished else f", so far: round {run.result['rounds']}")


def _mean_fidelity(group: Group) -> dict[str, list[float | None]]:
    found = [run.result["fidelity"]["after"] for run in group.runs if "fidelity" in run.result]
    if not found:
        return {}
    layers = {name: zip(*(each[name] for each in found), strict=True) for name, _, _ in PANELS}
    return {name: [_mean(layer) for layer in each] for name, each in layers.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def _with_metric_axis(figure: "Figure", comparison: Comparison) -> "Figure":
    return figure.update_yaxes(title=metric_title(comparison.metric), **_percent(comparison))


def _percent(comparison: Comparison) -> dict[str, str]:
    """Return what an axis in the metric's unit needs."""
    return {"tickformat": ".0~%"} if metric_row(comparison.metric).is_fraction else {}


def _range(values: Collection[float]) -> list[float] | None:
    """Return an axis's range around values that are equal, where plotly's is as wide as it likes; else None."""
    low, high = min(values), max(values)
    middle = (low + high) / 2
    around = abs(middle) / 10 or 1.0
    return [middle - around, middle + around] if high - low < around / 100 else None


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "not set" if value is None else str(value).rstrip("/").rpartition("/")[2]
