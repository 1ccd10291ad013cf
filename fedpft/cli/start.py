"""Commands to begin with: a folder to start from, what a config may name, and its schema for an editor."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from fedpft.cli.arguments import Format, print_json

start_app = typer.Typer()

StarterName = Annotated[
    Literal["quickstart", "digits", "own-data", "language-model"],
    typer.Argument(help="What to start from; own-data and language-model bring data as an example of their form."),
]
Folder = Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="New or empty; default: the starter's name.")]


@start_app.command()
def init(starter: StarterName = "quickstart", folder: Folder = None) -> None:
    """Write a folder to start from: a config, and an example of data where you would have your own."""
    from fedpft.run.starters import write_starter

    folder = folder or Path(starter)
    for path in write_starter(starter, folder):
        print(path)
    print(f"next  cd {shlex.quote(str(folder))} && fedpft run config.yaml")


@start_app.command()
def plugins(form: Format = "text") -> None:
    """List the parts that a config may name: built-in ones, and those of installed packages with where they are."""
    from fedpft.report.parts import print_parts
    from fedpft.run.parts import known_parts

    if form == "json":
        print_json({"parts": known_parts()})
    else:
        print_parts(Console(), known_parts())


@start_app.command()
def schema() -> None:
    """Print the JSON Schema of a config file: `fedpft schema > schema.json`, for completion in an editor.

    In the config's first line: # yaml-language-server: $schema=schema.json
    """
    from fedpft.config.schema import config_schema

    print(json.dumps(config_schema(), indent=2))
