"""What keeps Ray from starting or from being joined, found in seconds and told in one line."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.services import get_ray_address_from_environment

from fedpft.config import ConfigError
from fedpft.storage.own_folder import own_folder

LONGEST_FOLDER = 40
"""Bytes of the folder in which a Ray of our own has its sockets: a socket's path has 107 at most, Ray adds 64."""
REACH_SECONDS = 5.0
"""For a machine to answer at a cluster's address."""
WORDS = ("auto", "local")
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
_HELD_BACK = (signal.SIGTERM, signal.SIGHUP)


def check_address(address: str) -> None:
    """Look whether a cluster's address has the form of one, and whether a Ray answers there.

    Raises:
        ConfigError: it does not.

    """
    try:
        found = get_ray_address_from_environment(address, None) if address == "auto" else address
    except ConnectionError:  # there is none: Ray says so itself, at once
        return
    if found in WORDS:
        return
    where = "" if found == address else f"that is {found!r}; "
    match = _ADDRESS.fullmatch(found)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise refusal(address, where + "it has not that form")
    host, port = match["host"].strip("[]"), int(match["port"])
    try:
        with socket.create_connection((host, port), timeout=REACH_SECONDS) as connection:
            is_ray = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_grpc(connection)
    except (OSError, UnicodeError) as error:
        raise refusal(address, where + f"{host} port {port} cannot be reached: {error}") from None
    if not is_ray:
        raise refusal(address, where + f"what answers at port {port} is no Ray cluster; its own port is mostly 6379")


def _speaks_grpc(connection: socket.socket) -> bool:
    """Return whether the other side takes a gRPC client: its first answer is a frame with HTTP/2's settings (4)."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    try:
        answer = connection.recv(9)
    except TimeoutError:
        return False
    return len(answer) >= 4 and answer[3] == 4


def refusal(address: str, reason: str) -> ConfigError:
    """Return the error of an address that is none of a running cluster."""
    line = " ".join(reason.split())
    return ConfigError(f"pool.address: found {address!r}, allowed: auto or host:port of a running Ray cluster; {line}")


def local_settings() -> dict[str, Any]:
    """Return where a Ray of our own has its files.

    Raises:
        ConfigError: there is no folder for them.

    """
    if os.environ.get("RAY_TMPDIR"):
        return {}
    try:
        return {"_temp_dir": str(own_folder(LONGEST_FOLDER))}
    except OSError as error:
        raise ConfigError(f"TMPDIR: {error}; or pool.kind=sequential, which needs no Ray") from None


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that are started meanwhile, and theirs, take no notice of SIGTERM and SIGHUP.

    `timeout`, systemd, Slurm and a terminal that closes send them to all processes of a run. The driver ends Ray in its
    own way; a Ray that ended by itself would leave the driver waiting for it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
