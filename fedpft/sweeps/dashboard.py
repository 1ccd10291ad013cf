"""A workspace and a report in Weights & Biases over the runs of a project, or of one group of it, e.g. a sweep.

Both are made of the same sections. Every name in a panel is one that a run logs (`tracking.names`) or a setting's key.
W&B keeps no names of its own for them, so a small file remembers where they are: the next time they are updated.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fedpft.config import ConfigError
from fedpft.config.compare import HARMLESS
from fedpft.config.flat import flat_settings
from fedpft.config.sweep import SweepConfig
from fedpft.config.trials import planned_trials
from fedpft.metrics.table import Goal
from fedpft.report.clients import EXPECTED
from fedpft.report.compare.groups import differing_keys
from fedpft.storage.output import write_json

METRIC = "result/fm"
"""The plugged-in FM's primary metric after the last round."""

PRICES = {
    "result/bytes_up_total": "bytes that clients sent, all rounds",
    "result/bytes_down_total": "bytes that clients received, all rounds",
    "result/client_flops_per_round": "FLOPs of a client and round",
    "result/client_memory_bytes": "bytes of memory of a client",
    "result/num_params_sub_fm": "parameters of the proxy",
    "result/wall_seconds": "seconds of the run",
}
"""Name in a run's summary -> what it is; the metric is plotted against each."""

_UNUSUAL = re.compile(r"[^\w .,:/()-]")  # W&B takes no symbols in a workspace's name
_MAX_RUNS = 100
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """What is shown."""

    project: str
    entity: str | None = None
    """None: the one that W&B takes for the user's own."""
    group: str | None = None
    """None: all runs of the project."""
    settings: Sequence[str] = ("method.name", "method.retained_ratio")
    """Dotted keys of the run's config that are set against the outcome."""
    goal: Goal = "max"
    """Which way the primary metric is better."""

    @property
    def name(self) -> str:
        """Of workspace and report."""
        return _UNUSUAL.sub("-", f"fedpft: {self.group or 'all runs'}")


def sweep_dashboard(sweep: SweepConfig) -> Dashboard:
    """Return the dashboard of a sweep's trials, with the settings in which they differ.

    Raises:
        ConfigError: the config of a trial cannot work.

    """
    configs = [trial.config for trial in planned_trials(sweep)]
    keys = differing_keys([flat_settings(asdict(config)) for config in configs])
    searched = [key for key in keys if not any(fnmatch(key, other) for other in ("seed", *HARMLESS))]
    tracking = configs[0].tracking
    return Dashboard(
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        settings=searched or Dashboard.settings,
        goal=(sweep.metric == "fm" and sweep.goal) or "max",
    )


def build(dashboard: Dashboard) -> tuple[Any, Any]:
    """Return workspace and report, as objects of wandb-workspaces that know no server yet.

    Raises:
        ConfigError: wandb-workspaces is not installed.

    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError:
        found = "a Python without wandb-workspaces"
        raise ConfigError(f"dashboard: found {found}, allowed: after pip install 'fedpft[dashboard]'") from None
    entity, project = dashboard.entity or "", dashboard.project
    filters = [expr.Metric("Group") == dashboard.group] if dashboard.group else []
    columns = [f"summary:{METRIC}", *(f"config:{_in_config(key)}" for key in dashboard.settings)]
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=dashboard.name,
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, _, panels in _sections(dashboard)],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=_MAX_RUNS),
        runset_settings=ws.RunsetSettings(filters=filters, pinned_columns=columns),
    )
    blocks: list[Any] = [wr.P("The federated runs, server and clients, by round; made by `fedpft dashboard`.")]
    for title, about, panels in _sections(dashboard):
        runs = wr.Runset(name=dashboard.group or project, filters=filters)  # those of the report's own project
        blocks += [wr.H2(title), wr.P(about), wr.PanelGrid(runsets=[runs], panels=panels)]
    report = wr.Report(
        entity=entity, project=project, title=dashboard.name, description=f"Runs of {project}", blocks=blocks,
        width="fluid",
    )  # fmt: skip
    return workspace, report


def specs(dashboard: Dashboard) -> dict[str, Any]:
    """Return what W&B would get, as JSON: `workspace` and `report`."""
    workspace, report = build(dashboard)
    made = {"workspace": workspace, "report": report}
    return {
        name: one._to_model().model_dump(mode="json", by_alias=True, exclude_none=True) for name, one in made.items()
    }


def save(dashboard: Dashboard, known: Path) -> dict[str, str]:
    """Create workspace and report in W&B, or update those of this name; return the URLs of both.

    Args:
        dashboard: what is shown.
        known: JSON file that remembers the URLs from one time to the next.

    Raises:
        ConfigError: W&B cannot be reached or refuses; one line that tells what can be done without it.

    """
    build(dashboard)  # whatever is wrong with it is known before anything is sent
    import wandb
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

    try:
        wandb.setup(wandb.Settings(silent=True))
        api = wandb.Api(timeout=_TIMEOUT_SECONDS)  # looks for the key, and whether it is good
        entity = dashboard.entity or api.default_entity
        if not entity:
            raise ConfigError("--entity: found none, and W&B knows no default one; allowed: a user or team")
        workspace, report = build(replace(dashboard, entity=entity))
        urls: dict[str, dict[str, str]] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        name = f"{entity}/{dashboard.project}/{dashboard.name}"
        before = urls.get(name, {})
        if old := _found(Report.from_url, before.get("report")):
            report.id = old.id
        report.save()  # first, because it makes the project if there is none
        if old := _found(Workspace.from_url, before.get("workspace")):
            for part in ("sections", "settings", "runset_settings"):
                setattr(old, part, getattr(workspace, part))
            workspace = old
        workspace.save()
    except wandb.Error as error:
        line = str(error).splitlines()[0].rstrip(".")
        ways = "`wandb login`, then `wandb sync` of offline runs; --spec FILE writes the dashboard without W&B"
        raise ConfigError(f"dashboard: W&B says: {line}; allowed: {ways}") from None
    saved = {"workspace": workspace.url, "report": report.url}
    known.parent.mkdir(parents=True, exist_ok=True)
    write_json(known, urls | {name: saved})
    return saved


def _found(load: Callable[[str], Any], url: str | None) -> Any:
    """Return what is at the URL; None if it was deleted since."""
    try:
        return load(url) if url else None
    except (LookupError, TypeError, ValueError):  # what wandb-workspaces makes of an empty answer
        return None


def _sections(dashboard: Dashboard) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield title, explanation and new panels of each section."""
    import wandb_workspaces.reports.v2 as wr

    def lines(title: str, *names: str, x: str = "round") -> Any:
        return wr.LinePlot(title=title, x=x, y=list(names))

    def layers(title: str, name: str) -> Any:
        return wr.LinePlot(title=title, x="round", metric_regex=f"^{name}/layer_")

    metric = wr.SummaryMetric(METRIC)
    yield (
        "Server",
        "Primary metric of the plugged-in FM and of the sub-FM, and the clients' mean loss, by round.",
        [
            lines("metric by round", "server/fm", "server/sub_fm"),
            lines("training loss", "server/train_loss"),
            lines("learning rate", "server/lr"),
        ],
    )
    yield (
        "Clients",
        "Losses of the round's clients, and what a client spends.",
        [
            lines("loss: mean, best and worst client", "clients/loss_mean", "clients/loss_min", "clients/loss_max"),
            lines("FLOPs of a client", "clients/flops_mean", "clients/flops_max"),
            lines("memory of a client", "clients/memory_bytes_max"),
            wr.BarPlot(
                title="accuracy that clients may expect: mean, 10th percentile, worst (classifiers)",
                metrics=[f"result/client_expected_accuracy.{key}" for key in EXPECTED.spread],
            ),
        ],
    )
    yield (
        "Alignment and fidelity",
        "How close the sub-FM is to the FM: the closer, the more tuning it carries over.",
        [
            lines("alignment loss by step", "align/step_loss", x="align/step"),
            lines("alignment between rounds: loss before and after", "server/align_loss_before", "server/align_loss"),
            lines("hidden error, last layer: 0 is the FM's own", "fidelity/hidden_error"),
            lines("gradient cosine: 1 is the FM's direction", "fidelity/gradient_cosine"),
            lines("leakage gap: plugged-in FM minus sub-FM", "server/leakage_gap"),
            layers("hidden error by layer", "fidelity/hidden_error"),
            layers("gradient cosine by layer", "fidelity/gradient_cosine"),
            wr.MediaBrowser(title="fidelity by layer and round", media_keys=["fidelity/heat_map"]),
        ],
    )
    best: dict[str, Any] = {"running_ymax": True} if dashboard.goal == "max" else {"running_ymin": True}
    yield (
        "Cost",
        "The line joins the best metric that a price or less has bought: the Pareto front.",
        [
            *(wr.ScatterPlot(title=what, x=wr.SummaryMetric(name), y=metric, **best) for name, what in PRICES.items()),
            lines("bytes by round", "comm/bytes_up", "comm/bytes_down"),
            lines("seconds by round", "time/round_seconds", "time/fit_seconds"),
        ],
    )
    axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=key) for key in dashboard.settings]
    axes.append(wr.ParallelCoordinatesPlotColumn(metric=metric, display_name="metric"))
    yield (
        "Settings",
        "Every run across the settings that differ, and which of them matter.",
        [
            wr.ParallelCoordinatesPlot(title="settings and outcome", columns=axes, layout=wr.Layout(w=16, h=8)),
            wr.ParameterImportancePlot(with_respect_to=METRIC, layout=wr.Layout(h=8)),
        ],
    )


def _in_config(key: str) -> str:
    """Return a setting's key as W&B's table of runs has it: `method.value.retained_ratio`."""
    first, *others = key.split(".")
    return ".".join([first, "value", *others])
