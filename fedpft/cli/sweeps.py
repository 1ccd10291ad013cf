"""Commands for many runs at once."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from fedpft.cli.arguments import Format, print_json
from fedpft.cli.console import say_on
from fedpft.config.suite import load_suite
from fedpft.config.sweep import load_sweep
from fedpft.config.trials import planned_trials
from fedpft.interrupt import Interrupted
from fedpft.sweeps.suite import missing_trials, run_suite, suite_trials, table_of, uncounted_trials

sweep_app = typer.Typer()

SweepPath = Annotated[Path, typer.Argument(metavar="SWEEP", help="YAML file, e.g. experiments/sweeps/compression.yaml")]
SweepOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the sweep; of its runs: run.KEY=VALUE."),
]
ResumeSweep = Annotated[bool, typer.Option("--resume", help="Go on with the sweep in output_dir.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check every trial's config and list them; run nothing.")]
SuitePath = Annotated[Path, typer.Argument(metavar="SUITE", help="YAML file, e.g. experiments/suites/digits.yaml")]
SuiteOverrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the suite; of its runs: run.KEY=VALUE.")
]
SuiteFormat = Annotated[Literal["text", "markdown", "latex", "json"], typer.Option("--format", help="Of the table.")]
SuiteDryRun = Annotated[bool, typer.Option("--dry-run", help="List the missing cells' runs, print what there is.")]


@sweep_app.command()
def sweep(
    sweep_path: SweepPath,
    overrides: SweepOverrides = None,
    resume: ResumeSweep = False,
    dry_run: DryRun = False,
    form: Format = "text",
) -> None:
    """Run an experiment at many points of a search space, with several seeds; exit code 1 if a trial failed."""
    settings = load_sweep(sweep_path, overrides or [])
    trials = planned_trials(settings)
    from fedpft.report.sweep import SweepScreen, print_sweep, print_trials

    console = Console(stderr=form == "json")
    chosen = settings.search == "optuna"
    total = settings.num_samples * max(1, len(settings.seeds)) if chosen else len(trials)
    if dry_run:
        names = [] if chosen else [trial.name for trial in trials]
        if form == "json":
            print_json({"trials": names, "total": total, "output_dir": settings.output_dir})
        else:
            print_trials(console, names, total, settings.output_dir)
        return
    from fedpft.sweeps.sweep import run_sweep

    try:
        with SweepScreen(console, settings.metric, total) as screen:
            summary = run_sweep(settings, screen, resume=resume, say=say_on(console))
    except Interrupted as stop:
        again = ["fedpft", "sweep", str(sweep_path), *(overrides or []), "--resume"]
        stop.add_note(f"; go on with: {shlex.join(again)}")
        raise
    if form == "json":
        print_json(summary)
        raise typer.Exit(int(any(trial["error"] for trial in summary["trials"])))
    print_sweep(console, summary)
    say_on(console)(f"sweep    {settings.output_dir}/sweep.json")
    if any(trial["status"] == "finished" for trial in summary["trials"]):
        command = shlex.join(["fedpft", "compare", settings.output_dir])
        say_on(console)(f"compare  {command}")
    raise typer.Exit(int(any(trial["error"] for trial in summary["trials"])))


@sweep_app.command()
def suite(
    suite_path: SuitePath, overrides: SuiteOverrides = None, form: SuiteFormat = "text", dry_run: SuiteDryRun = False
) -> None:
    """Run the cells of a table that are not finished, print it and write suite.html; exit code 1 if a cell failed."""
    settings = load_suite(suite_path, overrides or [])
    trials = suite_trials(settings)
    from fedpft.report.suite import suite_numbers, suite_table
    from fedpft.report.suite_page import PAGE_FILE, suite_page
    from fedpft.report.sweep import SweepScreen, print_trials

    errors: dict[str, str | None] = {}
    missing = missing_trials(trials)
    progress = Console(stderr=True)  # the table alone goes to stdout
    if dry_run:
        print_trials(progress, [trial.name for trial in missing], len(trials), settings.output_dir)
    elif missing:
        with SweepScreen(progress, "fm", len(missing)) as screen:
            errors = run_suite(settings, screen)
    errors |= uncounted_trials(trials)
    for name, error in errors.items():
        if error:
            say_on(progress)(f"{name} failed: {error}")
    rows, columns = ([head.label for head in heads] for heads in (settings.rows, settings.columns))
    cells = table_of(settings)
    if not dry_run and any(cell.values for row in cells for cell in row):
        page = Path(settings.output_dir) / PAGE_FILE
        page.write_text(suite_page(settings.title, rows, columns, cells, settings.numeric_setting), encoding="utf-8")
        say_on(progress)(f"page     {page}")
    if form == "json":
        print_json({"title": settings.title, "rows": rows, "columns": columns, "cells": suite_numbers(cells)})
    else:
        print(suite_table(settings.title, rows, columns, cells, form))
    raise typer.Exit(int(any(errors.values())))
