"""Words of the command line that several commands take."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. experiments/configs/quickstart.yaml")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that override the file; SECTION=WORD: SECTION/WORD.yaml beside it."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint in output_dir, if there is one.")
]
FinishedRun = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The output_dir of a finished run.")]
Format = Annotated[
    Literal["text", "json"], typer.Option("--format", help="Of what is printed; json: all numbers, progress to stderr.")
]


def print_json(content: Mapping[str, Any]) -> None:
    """Print a command's numbers for other programs, arrays as lists."""
    print(json.dumps(content, indent=2, default=lambda array: array.tolist()))
