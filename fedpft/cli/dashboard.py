"""The command for Weights & Biases' own pages."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from fedpft.config import TrackingConfig
from fedpft.config.sweep import load_sweep

dashboard_app = typer.Typer()

KNOWN = Path("outputs/dashboards.json")
"""Where workspaces and reports of earlier calls are."""

Sweep = Annotated[
    Path | None,
    typer.Argument(metavar="[SWEEP]", help="YAML of a sweep, whose project, group and searched keys count."),
]
Project = Annotated[str | None, typer.Option(help="W&B project; default: the sweep's, else fedpft.")]
Entity = Annotated[str | None, typer.Option(help="User or team that owns it; default: the sweep's, else your own.")]
Group = Annotated[str | None, typer.Option(help="Only runs of this group; default: the sweep's, else all runs.")]
GoalOption = Annotated[
    Literal["max", "min"] | None, typer.Option("--goal", help="Which way the metric is better; default: max.")
]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="Write what W&B would get to this file, send nothing.")]


@dashboard_app.command()
def dashboard(
    sweep: Sweep = None,
    project: Project = None,
    entity: Entity = None,
    group: Group = None,
    goal: GoalOption = None,
    spec: SpecFile = None,
) -> None:
    """Create or update a W&B workspace and report: metric by round, clients, fidelity, cost, settings."""
    from fedpft.storage.output import write_json
    from fedpft.sweeps.dashboard import Dashboard, save, specs, sweep_dashboard

    shown = sweep_dashboard(load_sweep(sweep)) if sweep else Dashboard(project=TrackingConfig().project)
    given: dict[str, Any] = {"project": project, "entity": entity, "group": group, "goal": goal}
    shown = replace(shown, **{key: value for key, value in given.items() if value is not None})
    if spec is None:
        places: dict[str, Any] = save(shown, KNOWN)
    else:
        content = specs(shown)
        spec.parent.mkdir(parents=True, exist_ok=True)
        write_json(spec, content)
        places = {"spec": spec}
    console = Console()
    for name, place in places.items():
        console.print(f"{name:<9} {place}", markup=False, highlight=False, soft_wrap=True)
