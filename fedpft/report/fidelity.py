"""What the fidelity meter found, for people: a heat map over layers and rounds, and rows of the final table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedpft.report.scores import metric_change

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

_FAR, _NONE, _NEAR, _LONG = "#fdae6b", "#f7f7f7", "#92c5de", "#bdb5dd"
PANELS = (
    ("hidden_error", "Hidden error: 0 is the FM's own state", {"colorscale": [_NONE, _FAR], "zmin": 0, "zmax": 1}),
    (
        "gradient_cosine", "Gradient cosine: 1 is the FM's direction",
        {"colorscale": [_FAR, _NONE, _NEAR], "zmin": -1, "zmax": 1},
    ),
    (
        "gradient_norm_ratio", "Gradient norm ratio: 1 is the FM's length",
        {"colorscale": [_FAR, _NONE, _LONG], "zmin": 0, "zmax": 2},
    ),
)  # fmt: skip
"""Quantity, title, and a colour range: the same in every run, and so light that grey numbers are read on all of it."""

_LAYER_HEIGHT, _GAP, _TOP, _BOTTOM = 24, 56, 30, 45  # pixels; the gap holds one panel's rounds and the next one's title


def heat_map(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Return the figure of all measurements: a panel for each quantity, layers (0 at the bottom) x rounds.

    Args:
        records: lines of rounds.jsonl in the order of rounds, at least one with `fidelity`; round 0 is the measurement
            before federated learning.

    """
    measured = [record for record in records if "fidelity" in record]
    assert measured, "a heat map needs a measurement"
    columns = {"before" if record["round"] == 0 else str(record["round"]): record["fidelity"] for record in measured}
    return panels([columns], "round")


def panels(blocks: Sequence[Mapping[str, Mapping[str, Any]]], title: str) -> "Figure":
    """Return the figure of measurements side by side: a panel for each quantity, and in it a trace for each block.

    Args:
        blocks: at least one; each has title -> a `Fidelity.record()` for every column.
        title: what columns are.

    """
    from plotly.graph_objects import Heatmap
    from plotly.subplots import make_subplots

    first_quantity = PANELS[0][0]
    num_layers = max(len(column[first_quantity]) for block in blocks for column in block.values())
    height = len(PANELS) * _LAYER_HEIGHT * num_layers + (len(PANELS) - 1) * _GAP
    titles = [title for _, title, _ in PANELS]
    figure = make_subplots(rows=len(PANELS), cols=1, subplot_titles=titles, vertical_spacing=_GAP / height)
    for row, (name, quantity, colours) in enumerate(PANELS, start=1):
        for block in blocks:
            cells = list(zip(*(column[name] for column in block.values()), strict=True))  # layers x columns
            panel = Heatmap(
                x=list(block), y=list(range(len(cells))), z=cells, name=quantity,
                **colours, showscale=False, xgap=1, ygap=1,
                text=[[_number(value) for value in layer] for layer in cells], texttemplate="%{text}",
                hovertemplate=f"{title} %{{x}}, layer %{{y}}: %{{z:.4f}}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(panel, row=row, col=1)
    # the titles: short enough for a phone, and at the left, where it is before anybody scrolls
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_xaxes(title=title, row=len(PANELS), col=1)
    figure.update_yaxes(title="layer", dtick=max(1, num_layers // 6), showgrid=False, zeroline=False)
    margin = {"l": 45, "r": 10, "t": _TOP, "b": _BOTTOM}
    return figure.update_layout(height=height + _TOP + _BOTTOM, margin=margin, template="plotly_white")


def fidelity_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row that the meter adds to the final table; none if it was off."""
    if "fidelity" not in result:
        return
    meter = result["fidelity"]
    before, after = meter["before"]["total"], meter["after"]["total"]
    yield "hidden error, last layer", _change(before["hidden_error"], after["hidden_error"]), "0: the FM's own"
    yield "gradient cosine", _change(before["gradient_cosine"], after["gradient_cosine"]), "1: the FM's direction"
    norms = _change(before["gradient_norm_ratio"], after["gradient_norm_ratio"])
    yield "gradient norm ratio", norms, "1: the FM's length"
    yield from kept_rows(result)
    share = 100 * meter["seconds"] / result["rounds_seconds"]
    yield "fidelity meter", f"{meter['seconds']:.1f} s", f"{share:.1f} % of the rounds' time"


def kept_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of what the FM's owner keeps, and what the sub-FM gives away; none without meter."""
    if (gap := result.get("fidelity", {}).get("leakage_gap")) is not None:
        yield "leakage gap", metric_change(gap, result["metric"]), gap_meaning(result)
        yield from skill_rows(result.get("skill", {}))


def gap_meaning(result: Mapping[str, Any]) -> str:
    """Return in words what the sign of the leakage gap (Delta) says."""
    gain = result["fidelity"]["leakage_gap"] * (1 if result.get("metric_goal", "max") == "max" else -1)
    whose = "the FM is better" if gain > 0 else "the FM is no better"
    return f"plugged-in FM minus sub-FM: {whose}"


def skill_rows(skill: Mapping[str, float | None]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of what the untuned sub-FM has of the FM's skill (CPL): a `SharedSkill` as JSON."""
    for name, value in skill.items():
        if value is not None:
            yield f"shared skill, {name}", f"{100 * value:.1f} %", _SKILLS[name]


_SKILLS = {
    "agreement": "same answers of FM and sub-FM, both untuned",
    "hidden": "of the untuned FM's last hidden states",
    "probe": "the same after the best linear map",
    "loss": "of the untuned FM's gain over frequencies",
}


def cosine_line(result: Mapping[str, Any], width: int) -> str:
    """Return the last gradient cosine of every layer, from layer 0, in one line; empty if off or wider than `width`."""
    if "fidelity" not in result:
        return ""
    cosines = map(_number, result["fidelity"]["after"]["gradient_cosine"])
    line = f"  gradient cosine by layer, from 0:  {' '.join(cosines)}"
    return line if len(line) <= width else ""


def _change(before: float | None, after: float | None) -> str:
    return f"{_number(before)} -> {_number(after)}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
