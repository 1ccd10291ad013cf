"""What is wrong with data, in one line each."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NoReturn, TypeVar

from fedpft.config import ConfigError

Row = TypeVar("Row")


class BadFileError(Exception):
    """What is wrong within a file, in a few words; whoever knows the file's name and its config key adds them."""


def fail(key: str, found: object, allowed: str) -> NoReturn:
    """Raise the one-line ConfigError that every module of this package uses, whatever names the data have."""
    escaped = "\\n".join(allowed.splitlines())
    raise ConfigError(f"{key}: found {found!r}, allowed: {escaped}")


def require_different(names: Iterable[str], where: str) -> None:
    """Raise a BadFileError if two columns bear one name: which of them was meant?"""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadFileError(f"{where} has {twice[0]!r} more than once")


def find_row(name: str, table: Mapping[str, Row], key: str) -> Row:
    """Return a table's row; ConfigError with the nearest name, or all names, when there is none."""
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
        names = ", ".join([*table, "custom"])
        fail(key, name, f"{names}" + (f" (did you mean {close[0]}?)" if close else ""))
    return table[name]


def one_line(error: BaseException) -> str:
    """Return the first 200 characters of what a library says, without line breaks, or else what kind of error it is."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def hub_error(path: str, config_name: str | None, split: str, key: str, hint: str, error: Exception) -> ConfigError:
    """Return what to raise when the hub client fails; `hint` says what else the data set may need."""
    why = one_line(error).replace(" (OfflineModeIsEnabled)", "")  # nobody switched it on: see fedpft.hub
    found = f"hub data set {path} {config_name or ''}".rstrip() + f", split {split} ({why})"
    return ConfigError(
        f"{key}: found {found}, allowed: a reachable hub id{hint} or a local folder in {key}, seen from {os.getcwd()}"
    )
