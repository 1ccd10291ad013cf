"""One self-contained HTML page of a finished run: what came out, and how it developed."""

import json
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpft.metrics import metric_row
from fedpft.output import ROUNDS_FILE
from fedpft.report.compute import compute_rows
from fedpft.report.fidelity import heat_map
from fedpft.report.scores import CURVES, MODELS, metric_title, metric_value, shown_models

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
table {{ display: block; overflow-x: auto; }}
th, td {{ text-align: right; padding: 0.1rem 1.5rem 0.1rem 0; }} tr > :first-child {{ text-align: left; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
<dl>{numbers}</dl>
{table}
<p>{costs}</p>
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
    metric, title = result["metric"], metric_title(result["metric"])
    curves = shown_models(CURVES, result["method"]).values()
    figures = {
        f"{title[0].upper()}{title[1:]} of the {' and of the '.join(curves)}": _metric_figure(result, records),
        "Training loss of the clients": _loss_figure(records),
    }
    if "fidelity" in result:
        before = {"round": 0, "fidelity": result["fidelity"]["before"]}
        figures["Fidelity: how close the sub-FM is to the FM"] = heat_map([before, *records])
    shown = shown_models(MODELS, result["method"])
    numbers = (
        f"<div><dt>{model}</dt><dd>{metric_value(result[key], metric)}</dd></div>" for key, model in shown.items()
    )
    return PAGE.format(
        title=escape(result["name"]),
        subtitle=escape(f"{result['method']}, {result['rounds']} rounds, seed {result['seed']}; {title}:"),
        numbers="".join(numbers),
        table=_metric_table(result["metrics"], shown),
        costs=escape("; ".join(f"{title} {value} ({note})" for title, value, note in compute_rows(result))),
        sections="\n".join(_section(*item, first=index == 0) for index, item in enumerate(figures.items())),
    )


def _metric_table(metrics: Mapping[str, Mapping[str, float]], models: Mapping[str, str]) -> str:
    """Return the table of all metrics of all models; nothing if there is but the primary one."""
    if len(metrics["fm"]) == 1:
        return ""
    head = "".join(f"<th>{model}</th>" for model in ("", *models.values()))
    rows = (
        f"<td>{escape(metric_title(name))}</td>"
        + "".join(f"<td>{metric_value(metrics[model][name], name)}</td>" for model in models)
        for name in metrics["fm"]
    )
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in (head, *rows))}</table>"


def _section(title: str, figure: "Figure", first: bool) -> str:
    config = {"responsive": True, "displayModeBar": False}  # the bar would lie on legends and titles
    figure = figure.to_html(full_html=False, include_plotlyjs=first, config=config)
    return f"<h2>{escape(title)}</h2>\n{figure}"


def _metric_figure(result: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> "Figure":
    start = {"round": 0, "fm": result["untuned_fm"]}
    if "fidelity" in result:
        start["sub_fm"] = start["fm"] - result["fidelity"]["leakage_gap_before"]
    evaluated = [start, *(record for record in records if "fm" in record)]
    models = shown_models(CURVES, result["method"])
    lines = {title: [record.get(key) for record in evaluated] for key, title in models.items()}
    figure = _line_figure([record["round"] for record in evaluated], lines)
    if metric_row(result["metric"]).is_fraction:
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


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
