"""The page of settings: keys, types, defaults, meanings, from the dataclasses and the strings below their fields."""

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fedpft.config.run import Config
from fedpft.config.suite import HeadConfig, PaperConfig, SuiteConfig
from fedpft.config.sweep import SweepConfig

WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "anything"}


def run_settings() -> str:
    """Return every key of a run's config, a table for each section."""
    return "\n\n".join(_section(key, kind, level=2) for key, kind in sections(Config))


def sweep_settings() -> str:
    """Return every key of a sweep's file."""
    return _table(SweepConfig, "")


def suite_settings() -> str:
    """Return every key of a suite's file."""
    parts = {"": SuiteConfig, "rows[]` and `columns[]": HeadConfig, "paper": PaperConfig}
    return "\n\n".join(
        _table(kind, "") if not key else f"Below `{key}`:\n\n{_table(kind, '')}" for key, kind in parts.items()
    )


def sections(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config's dataclasses with their dotted keys, itself first, with an empty one."""
    yield prefix, kind
    for entry in fields(kind):
        if is_dataclass(entry.default_factory):
            yield from sections(entry.default_factory, f"{prefix}.{entry.name}".lstrip("."))


@cache
def meanings(kind: Any) -> dict[str, str]:
    """Return the strings below a dataclass's fields, each in one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return found


def _section(key: str, kind: Any, level: int) -> str:
    about = " ".join((inspect.getdoc(kind) or "").split())
    return f"{'#' * level} {f'`{key}`' if key else 'Top level'}\n\n{about}\n\n{_table(kind, key)}"


def _table(kind: Any, section: str) -> str:
    hints, texts = get_type_hints(kind), meanings(kind)
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for entry in fields(kind):
        if is_dataclass(entry.default_factory):
            continue  # a section with a table of its own
        name = f"{section}.{entry.name}".lstrip(".")
        cells = (f"`{name}`", _allowed(hints[entry.name]), _default(entry), texts.get(entry.name, ""))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([":::{container} keys", "", *rows, "", ":::"])


def _allowed(hint: Any) -> str:
    """Return a type in words."""
    if hint in WORDS:
        return WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in arguments)
    if origin in (Union, types.UnionType):
        kinds = [_allowed(argument) for argument in sorted(arguments, key=lambda argument: argument is type(None))]
        if {"integer", "number"} <= set(kinds):
            kinds.remove("integer")
        return " or ".join(kinds)
    if origin is tuple or origin is list:
        return f"list of {_allowed(arguments[0])}"
    if origin is dict or origin is Mapping:
        return "keys and values"
    return "keys below" if is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def _default(entry: Field[Any]) -> str:
    if entry.default is not MISSING:
        value = list(entry.default) if isinstance(entry.default, tuple) else entry.default
        return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"
    if entry.default_factory is not MISSING:
        value = entry.default_factory()
        return f"`{json.dumps(value)}`" if isinstance(value, dict | list) else ""
    return "required"
