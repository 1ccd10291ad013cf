"""The board as a process: a socket, a token where one is needed, and a server until Ctrl-C."""

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from fedpft.board.access import is_loopback
from fedpft.board.cluster import Cluster
from fedpft.board.index import Index
from fedpft.config import ConfigError

TOKEN_VARIABLE = "FEDPFT_BOARD_TOKEN"
"""Environment variable with the token; without it every board draws its own."""
DEFAULT_PORT = 8642


def serve(
    folders: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    with_token: bool = False,
    cluster: Cluster | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the board of some folders until the process is interrupted.

    Args:
        folders: each a run's, or one with runs anywhere below it; need not exist yet.
        host: address to listen on.
        port: 0: any that is free.
        with_token: ask for a token even where only this machine reaches the board; elsewhere it always does.
        cluster: whose jobs are shown beside the folders.
        say: takes the line with the address.

    Raises:
        ConfigError: a folder that is none, an address or port that cannot be had.

    """
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"FOLDERS: found the file {str(folder)!r}, allowed: folders of runs")
    try:
        import uvicorn

        from fedpft.board.app import make_app
    except ImportError as error:
        raise ConfigError(f"board: found no {error.name}, which it needs: pip install 'fedpft[board]'") from None

    token = _token() if with_token or not is_loopback(host) else None
    with _listening(host, port) as listening:
        address = _address(host, listening.getsockname()[1])
        say(f"board    {address}" + (f"?token={token}" if token else ""))
        app = make_app(Index(folders, cluster=cluster), token, lambda: server.should_exit)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",  # the same server, whatever else is installed
                http="h11",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=3,
                server_header=False,
                lifespan="off",
            )
        )
        server.run(sockets=[listening])


def _token() -> str:
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and (len(given) < 16 or not given.isascii()):
        raise ConfigError(f"{TOKEN_VARIABLE}: found {len(given)} signs, allowed: at least 16 of ASCII")
    return given or secrets.token_urlsafe(24)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host / --port: found {host}:{port}, {reason}; allowed: a free port, 0 for any") from None


def _address(host: str, port: int) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"
