"""The command that compares runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedpft.cli.arguments import Format, print_json
from fedpft.cli.console import say_on
from fedpft.config import ConfigError

compare_app = typer.Typer()

Compared = Annotated[
    list[Path], typer.Argument(metavar="RUN_OR_SWEEP_DIR...", help="Folders of finished runs, or folders of those.")
]
CompareDir = Annotated[Path, typer.Option("--out", help="Folder; an earlier comparison in it is kept as NAME.1.")]
Baseline = Annotated[str | None, typer.Option(help="A group's label or a run's folder; default: the first run's.")]
AllowDifferent = Annotated[
    list[str] | None, typer.Option(help="Compare although this differs: rounds, task.max_train_examples.")
]
SameWithin = Annotated[
    float | None,
    typer.Option(
        help="Also test whether groups are the same as the baseline within this: points, or the metric's unit."
    ),
]
Wandb = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ENTITY/PROJECT/RUN_ID|FOLDER",
        help="A run of another tool in W&B that logs the same metric; or a folder with runs that W&B wrote offline.",
    ),
]
WhatDiffers = Annotated[
    bool,
    typer.Option("--what-differs", help="Only list what differs between two runs: settings, versions, machine."),
]


@compare_app.command()
def compare(
    folders: Compared,
    baseline: Baseline = None,
    out: CompareDir = Path("outputs/compare"),
    allow_different: AllowDifferent = None,
    same_within: SameWithin = None,
    wandb: Wandb = None,
    what_differs: WhatDiffers = False,
    form: Format = "text",
) -> None:
    """Compare finished runs: tables, one HTML page and JSON; runs that differ in the seed alone are one group."""
    console = Console(stderr=form == "json")
    if what_differs:
        _tell_differences(folders, console, form)
        return
    from fedpft.report.compare.comparison import compare as compare_runs
    from fedpft.report.compare.files import write_comparison
    from fedpft.report.compare.record import comparison_json
    from fedpft.report.compare.screen import print_comparison

    comparison = compare_runs(folders, baseline, allow_different or (), same_within, wandb or ())
    written = write_comparison(comparison, out, say_on(console))
    if form == "json":
        print_json(comparison_json(comparison))
    else:
        print_comparison(console, comparison, written)


def _tell_differences(folders: list[Path], console: Console, form: str) -> None:
    from fedpft.report.compare.differences import differences, read_traits, short_names
    from fedpft.report.compare.screen import print_differences

    if len(folders) != 2:
        raise ConfigError(f"--what-differs: found {len(folders)} folder(s), allowed: those of two runs")
    found = differences(*map(read_traits, folders))
    if form == "json":
        print_json({name: list(pair) for name, pair in found.items()})
    else:
        print_differences(console, short_names([folder.resolve() for folder in folders]), found)
