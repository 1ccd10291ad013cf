"""The command for the live page of all runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedpft.cli.console import say_on

board_app = typer.Typer()

Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="With runs anywhere below them; default: outputs.")
]
Port = Annotated[int, typer.Option(help="0: any that is free.")]
Host = Annotated[str, typer.Option(help="Address to listen on; one that others reach asks for a token.")]
Token = Annotated[bool, typer.Option("--token", help="Ask for a token on this machine too, where others log in.")]


@board_app.command()
def board(folders: Folders = None, port: Port = 8642, host: Host = "127.0.0.1", token: Token = False) -> None:
    """Show all runs in the browser while they run: table, comparison, sweeps; reads their folders, writes nothing."""
    from fedpft.board.serve import serve

    say = say_on(Console())
    serve(folders or [Path("outputs")], host=host, port=port, with_token=token, say=say)
