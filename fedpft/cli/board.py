"""The command for the live page of all runs."""

from collections.abc import Mapping
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
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="URL of a Ray dashboard: show its jobs too."),
]


@board_app.command()
def board(
    folders: Folders = None,
    port: Port = 8642,
    host: Host = "127.0.0.1",
    token: Token = False,
    address: Address = None,
) -> None:
    """Show all runs in the browser while they run: table, comparison, sweeps; reads their folders, writes nothing."""
    from fedpft.board.cluster import Cluster
    from fedpft.board.serve import serve

    cluster = Cluster(address, _token_headers) if address else None
    say = say_on(Console())
    serve(folders or [Path("outputs")], host=host, port=port, with_token=token, cluster=cluster, say=say)


def _token_headers() -> Mapping[str, str]:
    """Return the cluster's token as Ray finds it; Ray is loaded with the first request, which no page waits for."""
    from fedpft.simulation.jobs import token_headers

    return token_headers()
