"""Words of the command line that several commands take."""

from pathlib import Path
from typing import Annotated

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
