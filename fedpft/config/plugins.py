"""Parts outside this package: by `module:name`, or by a name that an installed package gave one.

A package names its parts in the entry-point group `fedpft.plugins`, as `KIND.NAME`:

    [project.entry-points."fedpft.plugins"]
    "aggregator.my_rule" = "my_pkg.robust:my_rule"

Nothing is imported until a config asks for it.
"""

import importlib
import re
import traceback
from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fedpft.config.checks import ConfigError, require
from fedpft.interrupt import RunStoppedError

GROUP = "fedpft.plugins"
KINDS = {
    "aggregator": "federated.aggregator.kind",
    "server_optimiser": "federated.server.kind",
    "client_step": "federated.client.kind",
    "method": "method.name",
    "scorer": "method.scorer",
    "task": "task.name",
    "metric": "task.metrics",
    "tracker": "tracking.also",
}
"""Kind of part -> the setting that chooses it."""

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A part that an installed package offers."""

    kind: str
    name: str
    place: str
    """`module:name`."""
    package: str
    """Name and version."""


def plugins() -> list[Plugin]:
    """Return what installed packages offer, by kind and name; none of it is imported.

    Raises:
        ConfigError: a name in the group that is not `KIND.NAME`, or that two packages give to different parts.

    """
    found: dict[tuple[str, str], Plugin] = {}
    for entry in entry_points(group=GROUP):
        kind, _, name = entry.name.partition(".")
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
        if kind not in KINDS or not re.fullmatch(r"\w+", name):
            allowed = f"KIND.NAME, KIND one of {', '.join(KINDS)}"
            raise ConfigError(f"entry point of {package} in {GROUP}: found {entry.name!r}, allowed: {allowed}")
        plugin = Plugin(kind=kind, name=name, place=entry.value.replace(" ", ""), package=package)
        other = found.setdefault((kind, name), plugin)
        if other.place != plugin.place:
            allowed = f"a name of its own; {other.package} has it for {other.place}"
            raise ConfigError(f"entry point of {package} in {GROUP}: found {entry.name!r}, allowed: {allowed}")
    return [found[key] for key in sorted(found)]


def is_own(kind: str, name: str) -> bool:
    """Whether a name that is none of this package's is that of a part of others: `module:name` or a plug-in's."""
    return _OWN.fullmatch(name) is not None or any((p.kind, p.name) == (kind, name) for p in plugins())


def require_known(kind: str, name: str, table: Collection[str]) -> None:
    """Raise a ConfigError unless a name is in the table of the package's own parts, or that of a part of others."""
    allowed = f"{', '.join(table)}, module:name or a plug-in's name"
    require(name in table or is_own(kind, name), KINDS[kind], name, allowed)


def load_part(kind: str, name: str) -> Any:
    """Return a part of others.

    Raises:
        ConfigError: it cannot be imported here, or there is none.

    """
    key = KINDS[kind]
    place = next((p.place for p in plugins() if (p.kind, p.name) == (kind, name)), name)
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module's own code raises
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        allowed = "module:name that this process can import; of a file in this folder: with PYTHONPATH=."
        raise ConfigError(f"{key}: found {name!r} ({why}), allowed: {allowed}") from error


def make_part(kind: str, name: str, *arguments: Any) -> Any:
    """Return what a part of others makes of some arguments, the settings above all.

    Raises:
        ConfigError: it cannot be imported, or does not take them.

    """
    made: Callable[..., Any] = load_part(kind, name)
    try:
        return made(*arguments)
    except Exception as error:
        raise ConfigError(f"{KINDS[kind]}: found {name!r}, which fails: {_told(error)}") from error


def adopt(kind: str, name: str, table: MutableMapping[str, Any]) -> None:
    """Put a plug-in's row into a table that has none of this name, if there is one.

    Raises:
        ConfigError: it cannot be imported, or is no such row.

    """
    if name in table or not is_own(kind, name):
        return
    row, usual = load_part(kind, name), type(next(iter(table.values())))
    if not isinstance(row, usual):
        allowed = f"a {usual.__module__}.{usual.__qualname__}"
        raise ConfigError(f"{KINDS[kind]}: found {name!r}, a {type(row).__name__}, allowed: {allowed}")
    table[name] = row


@contextmanager
def blamed(kind: str, name: str) -> Iterator[None]:
    """Turn whatever a part of others raises into one line with its name.

    Raises:
        RunStoppedError: it raised something.

    """
    try:
        yield
    except Exception as error:
        raise RunStoppedError(f"{KINDS[kind]} = {name} failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {what} ({Path(place.filename).name}, line {place.lineno})"
