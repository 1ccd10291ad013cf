"""The page of a finished run: what came out, and how it developed."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpft.config import Config, load_config
from fedpft.config.compare import HARMLESS
from fedpft.config.flat import flat_settings
from fedpft.federated.dropped import never_trained_line
from fedpft.metrics.table import metric_row
from fedpft.report.clients import VIEWS, View, accuracy_boxes, client_note
from fedpft.report.compute import cost_rows
from fedpft.report.fidelity import heat_map, kept_rows
from fedpft.report.html import PALETTE, document, note, paragraph, plot, section, table
from fedpft.report.partition import partition_figure
from fedpft.report.privacy import privacy_rows
from fedpft.report.scores import CURVES, MODELS, attack_rows, metric_title, metric_value, shown_models, why_stopped
from fedpft.report.wording import duration, rounds_done
from fedpft.storage.output import PARTITION_FILE, ROUNDS_FILE, write_text

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure


def write_page(output_dir: Path) -> dict[str, Path]:
    """Write `report.html` from the run's `result.json` and `rounds.jsonl`; a page that fails is a warning, no error.

    Returns:
        `{"report": path}`, or nothing if there is no page.

    """
    path = output_dir / "report.html"
    try:
        result = json.loads((output_dir / "result.json").read_text(encoding="utf-8"))
        records = [json.loads(line) for line in (output_dir / ROUNDS_FILE).read_text(encoding="utf-8").splitlines()]
        counted = output_dir / PARTITION_FILE
        partition = json.loads(counted.read_text(encoding="utf-8")) if counted.exists() else None
        config = load_config(output_dir / "config.yaml")
        write_text(path, page(result, config, records, partition))
    except Exception as error:  # the run's results are safe already
        warnings.warn(f"no report.html: {type(error).__name__}: {error}", stacklevel=2)
        return {}
    return {"report": path}


def page(
    result: Mapping[str, Any],
    config: Config,
    records: Sequence[Mapping[str, Any]],
    partition: Mapping[str, Any] | None = None,
) -> str:
    """Return the page's HTML.

    Args:
        result: the run's `result.json`.
        config: its settings.
        records: the lines of its `rounds.jsonl`.
        partition: its `partition.json`, if there is one.

    """
    return document(result["name"], run_parts(result, config, records, partition))


def run_parts(
    result: Mapping[str, Any],
    config: Config,
    records: Sequence[Mapping[str, Any]],
    partition: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Yield what is under the title; of an unfinished run (:func:`result_so_far`) that for which there are numbers."""
    about = f"{result['method']}, {rounds_done(result)}, seed {result['seed']}: {config.fm.path} on "
    about += f"{config.task.name}, {config.federated.num_clients} clients"
    figures = {}
    if "metric" in result:
        metric, title = result["metric"], metric_title(result["metric"])
        shown = {key: model for key, model in shown_models(MODELS, result).items() if key in result}
        numbers = "".join(
            f"<div><dt>{model}</dt><dd>{metric_value(result[key], metric)}</dd></div>" for key, model in shown.items()
        )
        yield paragraph(f"{about}; {title}:")
        yield f"<dl>{numbers}</dl>"
        for title, value, what in attack_rows(result):
            yield paragraph(f"{title[0].upper()}{title[1:]}: {value} {what}.")
        if why := why_stopped(result):
            yield paragraph(f"Stopped early: {why}.")
        if line := never_trained_line(result):
            yield paragraph(line)
        yield _metric_table(result["metrics"], {key: shown[key] for key in shown if key in result["metrics"]})
        curves = shown_models(CURVES, result).values()
        curve = f"{metric_title(metric)} of the {' and of the '.join(curves)}"
        figures[f"{curve[0].upper()}{curve[1:]}"] = _metric_figure(result, records)
    else:
        yield paragraph(about)
    if any("train_loss" in record for record in records):
        figures["Training loss of the clients"] = _loss_figure(records)
    before = [{"round": 0, "fidelity": result["fidelity"]["before"]}] if "fidelity" in result else []
    if measured := [*before, *(record for record in records if "fidelity" in record)]:
        figures["Fidelity: how close the sub-FM is to the FM"] = heat_map(measured)
    if partition is not None:
        figures["Partition: label shares in each client"] = partition_figure(partition)
    yield from (section(title, plot(figure, title)) for title, figure in figures.items())
    yield from (_client_section(result, view) for view in VIEWS)
    yield _kept_section(result)
    yield _privacy_section(result)
    if "wall_seconds" in result:
        yield section("What it costs", table(["cost", "value"], _cost_rows(result), "costs"))
    yield section("Settings other than the defaults", table(["key", "value"], _setting_rows(config), "settings"))


def result_so_far(config: Config, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys of `result.json` that an unfinished run's records tell; `rounds`: those done."""
    last: Mapping[str, Any] = next((record for record in reversed(records) if "fm" in record), {})
    scores = {
        key: last[key] for key in ("fm", "sub_fm", "fm_copied", "metric", "metric_goal", "metrics") if key in last
    }
    done = records[-1]["round"] if records else 0
    return {"name": config.name, "seed": config.seed, "method": config.method.name, "rounds": done, **scores}


def _client_section(result: Mapping[str, Any], view: View) -> str:
    """Return the spread over clients; nothing for a run that has none."""
    spread = result.get(view.key)
    if not spread:
        return ""
    values = [value for value in spread["values"] if value is not None]
    said = "; ".join(f"{title} {view.shown(key, spread[key])}" for key, title in view.spread.items())
    number = spread.get("clients", len(values))
    clients = f"{number} clients" + (f", {len(values)} of them drawn" if number > len(values) else "")
    figure = accuracy_boxes({"clients": values}, PALETTE[:1])
    without = f"; {client_note(result)}" if "without" in spread and client_note(result) else ""
    said = f"{said}; {clients}{without}"
    return section(escape(view.title), paragraph(said), plot(figure, view.title), note(view.about))


def _kept_section(result: Mapping[str, Any]) -> str:
    """Return what the FM's owner keeps and what the sub-FM gives away; nothing without the meter."""
    rows = _with_notes(kept_rows(result))
    return section("What the FM's owner keeps", table(["meter", "value"], rows, "kept")) if rows else ""


def _privacy_section(result: Mapping[str, Any]) -> str:
    """Return what the run guarantees its clients; nothing without a guarantee."""
    rows = _with_notes(privacy_rows(result))
    return section("Differential privacy", table(["guarantee", "value"], rows, "privacy")) if rows else ""


def _with_notes(rows: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(f'{title} <span class="quiet">{escape(about)}</span>', value) for title, value, about in rows]


def _cost_rows(result: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for title, value, about in (*cost_rows(result), ("wall time", duration(result["wall_seconds"]), "")):
        yield f'{title} <span class="quiet">{about}</span>', value


def _setting_rows(config: Config) -> Iterator[Sequence[str]]:
    """Yield key and value of what the numbers depend on and is not as it is without a config."""
    defaults = flat_settings(asdict(Config()))
    for key, value in flat_settings(asdict(config)).items():
        if value != defaults.get(key) and not any(fnmatch(key, pattern) for pattern in HARMLESS):
            yield escape(key).replace(".", ".<wbr>"), escape(value.strip('"'))


def _metric_table(metrics: Mapping[str, Mapping[str, float]], models: Mapping[str, str]) -> str:
    """Return the table of all metrics of all models; nothing if there is but the primary one."""
    if len(metrics["fm"]) == 1:
        return ""
    rows = (
        [escape(metric_title(name)), *(metric_value(metrics[model][name], name) for model in models)]
        for name in metrics["fm"]
    )
    return table(["", *models.values()], rows, "all metrics")


def _metric_figure(result: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> "Figure":
    start = {"round": 0, **({"fm": result["untuned_fm"]} if "untuned_fm" in result else {})}
    if "fidelity" in result:
        start["sub_fm"] = start["fm"] - result["fidelity"]["leakage_gap_before"]
    evaluated = [record for record in (start, *records) if "fm" in record]
    models = shown_models(CURVES, result)
    lines = {title: [record.get(key) for record in evaluated] for key, title in models.items()}
    figure = _line_figure([record["round"] for record in evaluated], lines)
    if metric_row(result["metric"]).is_fraction:
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def _loss_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    losses = [record.get("train_loss") for record in records]
    return _line_figure([record["round"] for record in records], {"loss": losses}).update_yaxes(rangemode="tozero")


def _line_figure(rounds: Sequence[int], lines: Mapping[str, Sequence[float | None]]) -> "Figure":
    from plotly.graph_objects import Figure, Scatter

    figure = Figure([Scatter(x=rounds, y=values, name=name, mode="lines+markers") for name, values in lines.items()])
    return figure.update_layout(
        height=300, colorway=PALETTE, margin={"l": 45, "r": 10, "t": 30, "b": 45}, showlegend=len(lines) > 1,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        xaxis={"title": "round", "dtick": max(1, rounds[-1] // 6), "rangemode": "tozero"},
    )  # fmt: skip
