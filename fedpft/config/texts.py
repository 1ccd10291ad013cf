"""Text as written: where a key's type is text, YAML's `on`, `1_000`, `123e456` or `2024-01-01` is what stands there.

YAML gives plain words a type before it is known which key they are for, and `1_000` cannot be had back from 1000. So
the types of a dataclass are laid over the parsed nodes, and what is text there is quoted before OmegaConf reads it.
"""

import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as OmegaConf
_NULL, _STR, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("null", "str", "merge"))
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_BEGIN_OF_NUMBERS = tuple("+-.0123456789")  # to OmegaConf 1e3 is a number, to YAML a text
_SURROGATES = re.compile(r"\\u(d[89ab]..)\\u(d[c-f]..)")
_BACKSLASHES = re.compile(r"(\\*)\$\{")


class SettingsOf:
    """The type of a dictionary whose keys, dotted or nested, are those of another dataclass.

    Args:
        kind: the dataclass.
        laws: whether each key has a law of values, `{grid: [...]}`, in place of a value.

    """

    def __init__(self, kind: type, *, laws: bool = False) -> None:
        self.kind, self.laws = kind, laws


def read_yaml(text: str, kind: Any) -> DictConfig | ListConfig:
    """Read a file's text, keys of the dataclass `kind`."""
    with suppress(Exception):  # whatever is wrong is told below, with its line in the text as written
        node = yaml.compose(text, Loader=_LOADER)
        if isinstance(node, yaml.MappingNode) and _quote(node, kind):
            return OmegaConf.load(io.StringIO(yaml.serialize(node)))
    return OmegaConf.load(io.StringIO(text))


def read_assignment(item: str, kind: Any) -> DictConfig:
    """Read a `key=value`; a text may also be what YAML could not read, such as `@x` or `a: b`."""
    key, _, value = item.partition("=")
    hint = _at(kind, key.strip())
    try:
        node = yaml.compose(value, Loader=_LOADER)
    except yaml.YAMLError:
        node = None
    is_null = isinstance(node, yaml.ScalarNode) and node.tag == _NULL and node.value == value.strip()
    is_null &= _required(hint) is not hint  # what cannot be null is a text that says so
    written = isinstance(node, yaml.ScalarNode) and not node.style and not is_null
    block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if _is_text(hint) and value.strip() and (node is None or written or block):
        return OmegaConf.from_dotlist([f"{key}={quoted(value.strip())}"])
    if node is not None and _quote(node, hint):
        value = yaml.serialize(node)
    return OmegaConf.from_dotlist([f"{key}={value}"])


def quoted(value: Any) -> str:
    """Return a value as JSON that is YAML, too: signs beyond 16 bits are one code there, not two."""

    def whole(pair: re.Match[str]) -> str:
        high, low = (int(half, 16) for half in pair.groups())
        return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"

    return _SURROGATES.sub(whole, json.dumps(value))


def escaped(value: Any) -> Any:
    """Return settings in which OmegaConf takes no text for an interpolation."""
    if isinstance(value, str):
        return _BACKSLASHES.sub(lambda found: f"{2 * found[1]}\\${{", value)
    if isinstance(value, Mapping):
        return {key: escaped(one) for key, one in value.items()}
    return [escaped(one) for one in value] if isinstance(value, list | tuple) else value


def undotted(settings: Mapping[Any, Any], kind: Any) -> dict[Any, Any]:
    """Return a file's settings with `federated.rounds: 3` as `federated: {rounds: 3}`; the later of two keys counts."""
    nested: dict[Any, Any] = {}
    for key, value in settings.items():
        first, _, rest = key.partition(".") if isinstance(key, str) and is_dataclass(kind) else (key, "", "")
        hint = _at(kind, first) if is_dataclass(kind) else None
        inner = {rest: value} if rest else value
        if isinstance(inner, Mapping) and (rest or is_dataclass(hint)):
            before = nested.get(first)
            inner = _merged(before if isinstance(before, Mapping) else {}, undotted(inner, hint))
        nested[first] = inner
    return nested


def _merged(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[Any, Any]:
    both = {
        key: _merged(first[key], value) if isinstance(value, Mapping) and isinstance(first.get(key), Mapping) else value
        for key, value in second.items()
    }
    return {**first, **both}


def _quote(node: yaml.Node, hint: Any) -> bool:
    """Make plain words that are texts quoted ones; return whether there were any."""
    changed = False
    if isinstance(node, yaml.ScalarNode):
        is_text = _is_text(hint) or (_may_be_text(hint) and node.tag not in _NUMBERS)
        looks_else = node.tag not in (_NULL, _STR) or node.value[:1] in _BEGIN_OF_NUMBERS
        changed = is_text and not node.style and looks_else
        if changed:
            node.tag, node.style = _STR, '"'
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            changed |= _quote(item, _item(hint))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            changed |= _quote(value, hint if key.tag == _MERGE else _at(hint, str(key.value)))
    return changed


def _at(hint: Any, key: str) -> Any:
    """Return the type of a dotted key in a section of this type; None: any."""
    hint = _required(hint)
    first, _, rest = key.partition(".")
    if isinstance(hint, SettingsOf):
        if hint.laws:
            found = _at(hint.kind, key)
            return dict[str, list[found]] if found is not None else None  # type: ignore[valid-type]
        return _at(hint.kind, key)
    if isinstance(hint, type) and is_dataclass(hint):
        found = _fields(hint).get(first)
    elif get_origin(hint) is dict:
        found = get_args(hint)[1]
    else:
        return None
    return _at(found, rest) if rest else found


def _item(hint: Any) -> Any:
    hint = _required(hint)
    return get_args(hint)[0] if get_origin(hint) in (tuple, list) else None


def _required(hint: Any) -> Any:
    """Return X of `X | None`."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if get_origin(hint) in (Union, UnionType) and len(kinds) == 1 else hint


def _is_text(hint: Any) -> bool:
    """Return whether the type is text, or one of some words."""
    hint = _required(hint)
    if get_origin(hint) is Literal:
        return all(isinstance(word, str) for word in get_args(hint))
    return hint is str


def _may_be_text(hint: Any) -> bool:
    """Return whether the type is text or a number, or a section, in whose place a word names a part."""
    return is_dataclass(hint) or (get_origin(hint) in (Union, UnionType) and str in get_args(hint))


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields; one with `settings_of` in its metadata has keys of another's."""
    special = {name: entry.metadata["type"] for name, entry in kind.__dataclass_fields__.items() if entry.metadata}
    return get_type_hints(kind) | special
