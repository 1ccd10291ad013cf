"""The command that sends runs to Weights & Biases."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedpft.cli.console import say_on

sync_app = typer.Typer()

Folders = Annotated[
    list[Path], typer.Argument(metavar="RUN_OR_FOLDER...", help="Folders of runs, sweeps, suites, or folders of those.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent.")]


@sync_app.command()
def sync(folders: Folders, dry_run: DryRun = False) -> None:
    """Send runs that are over to W&B, each as one W&B run, whatever was resumed; again: only what is new."""
    from fedpft.run.sync import sync as send

    say, failed = say_on(Console()), False
    for folder, said, is_well in send(folders, dry_run=dry_run):
        say(f"{folder}: {said}")
        failed |= not is_well
    raise typer.Exit(int(failed))
