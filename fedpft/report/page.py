"""One self-contained HTML page of a finished run: what came out, and how it developed."""

import json
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpft.output import ROUNDS_FILE
from fedpft.report.fidelity import heat_map
from fedpft.report.screen import ACCURACIES, MODELS
from fedpft.report.wording import shown_models

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.4 system-ui, sans-serif; color: #222; max-width: 56rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 0; }}
dl {{ display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }}
dd {{ font-size: 1.8rem; margin: 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
<dl>{numbers}</dl>
{sections}
</body>
</html>
"""


def write_page(output_dir: Path) -> dict[str, Path]:
    """Write `report.html` from the run's `result.json` and `rounds.jsonl`; a page that fails is a warning, no error.

    Returns:
        `{"report": path}`, or nothing if there is no page.

    """
    path = output_dir / "report.html"
    try:
        result = json.loads((output_dir / "result.json").read_text())
        records = [json.loads(line) for line in (output_dir / ROUNDS_FILE).read_text().splitlines()]
        path.write_text(page(result, records), encoding="utf-8")
    except Exception as error:  # the run's results are safe already
        warnings.warn(f"no report.html: {type(error).__name__}: {error}", stacklevel=2)
        return {}
    return {"report": path}


def page(result: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page's HTML, plotly's program included, so that it opens without a network."""
    metric, models = result["metric"], shown_models(MODELS, result["method"]).values()
    figures = {
        f"{metric.capitalize()} of the {' and of the '.join(models)}": _accuracy_figure(result, records),
        "Training loss of the clients": _loss_figure(records),
    }
    if "fidelity" in result:
        before = {"round": 0, "fidelity": result["fidelity"]["before"]}
        figures["Fidelity: how close the sub-FM is to the FM"] = heat_map([before, *records])
    shown = shown_models(ACCURACIES, result["method"])
    numbers = (f"<div><dt>{title}</dt><dd>{100 * result[key]:.1f} %</dd></div>" for key, title in shown.items())
    return PAGE.format(
        title=escape(result["name"]),
        subtitle=escape(f"{result['method']}, {result['rounds']} rounds, seed {result['seed']}; {metric}:"),
        numbers="".join(numbers),
        sections="\n".join(_section(*item, first=index == 0) for index, item in enumerate(figures.items())),
    )


def _section(title: str, figure: "Figure", first: bool) -> str:
    config = {"responsive": True, "displayModeBar": False}  # the bar would lie on legends and titles
    figure = figure.to_html(full_html=False, include_plotlyjs=first, config=config)
    return f"<h2>{escape(title)}</h2>\n{figure}"


def _accuracy_figure(result: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> "Figure":
    start = {"round": 0, "fm": result["untuned_fm"]}
    if "fidelity" in result:
        start["sub_fm"] = start["fm"] - result["fidelity"]["leakage_gap_before"]
    evaluated = [start, *(record for record in records if "fm" in record)]
    models = shown_models(MODELS, result["method"])
    lines = {title: [record.get(key) for record in evaluated] for key, title in models.items()}
    figure = _line_figure([record["round"] for record in evaluated], lines)
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def _loss_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    losses = [record["train_loss"] for record in records]
    return _line_figure([record["round"] for record in records], {"loss": losses}).update_yaxes(rangemode="tozero")


def _line_figure(rounds: Sequence[int], lines: Mapping[str, Sequence[float | None]]) -> "Figure":
    from plotly.graph_objects import Figure, Scatter

    figure = Figure([Scatter(x=rounds, y=values, name=name, mode="lines+markers") for name, values in lines.items()])
    return figure.update_layout(
        height=300, template="plotly_white", margin={"l": 45, "r": 10, "t": 30, "b": 45}, showlegend=len(lines) > 1,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        xaxis={"title": "round", "dtick": max(1, rounds[-1] // 6), "rangemode": "tozero"},
    )  # fmt: skip
