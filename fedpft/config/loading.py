"""Defaults < YAML file < its parts < ``key=value`` overrides, merged once by OmegaConf and saved with the run."""

import copy
import difflib
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from fedpft.config.checks import ConfigError, require
from fedpft.config.parts import KEY, part_files, take_words
from fedpft.config.run import Config
from fedpft.config.texts import escaped, read_assignment, read_yaml, undotted

Settings = TypeVar("Settings")

LARGEST_INTEGER = 2**63
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class _Composed(Config):
    """A config while it is merged: interpolations may name its parts."""

    parts: dict[str, str] = field(default_factory=dict, metadata={"type": dict[str, int | str]})


@cache
def _packed_defaults() -> bytes:
    """Return all keys with types and defaults; made once, because that takes longer than all merging."""
    return pickle.dumps(OmegaConf.structured(_Composed))


def _merged(*layers: Any) -> DictConfig:
    """Return the defaults with these layers over them; unpacking is several times as fast as OmegaConf's copy."""
    merged = OmegaConf.unsafe_merge(pickle.loads(_packed_defaults()), *copy.deepcopy(layers))
    assert isinstance(merged, DictConfig)
    return merged


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge defaults, a YAML file, its parts and ``key=value`` overrides into a validated :class:`Config`.

    Raises:
        ConfigError: unreadable file, no such part, unknown key, wrong type or a value out of range, in one line.

    """
    file = [] if path is None else [read_file(path, _Composed)]
    command_line = [read_override(item, _Composed) for item in overrides]
    layers = [*file, *command_line]
    try:
        words: dict[str, str] = {}
        for layer in layers:
            words |= take_words(layer)
        parts = [_read_part(part) for part in part_files(words, None if path is None else Path(path).parent)]
        layers = [*file, *parts, *command_line]
        composed = OmegaConf.to_object(_merged({KEY: words}, *layers))
    except ConfigError:
        raise
    except Exception as error:  # OmegaConf's errors carry many lines; the user gets the first
        raise ConfigError(_one_line(error, path, layers)) from None
    config = Config(**{entry.name: getattr(composed, entry.name) for entry in fields(Config)})
    _check_lists(config)
    return config


@cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_lists(config: Any, prefix: str = "") -> None:
    """Raise a ConfigError for a list with an item of another type, which OmegaConf lets through."""
    of: Any = type(config)
    for name, hint in _type_hints(of).items():
        value, key = getattr(config, name), prefix + name
        if is_dataclass(value):
            _check_lists(value, f"{key}.")
        elif get_origin(hint) is tuple:
            (kind, *_) = get_args(hint)
            allowed = {str: "a list of texts", int: "a list of integers"}[kind]
            require(all(type(item) is kind for item in value), key, list(value), allowed)


def resolved(config: Settings) -> Settings:
    """Return settings that were made in Python as a file would have given them: types checked, `${name}` filled in.

    Args:
        config: a dataclass with `name` and `output_dir`; `${name}` in the latter is its name, all other text is text.

    Raises:
        ConfigError: a value of another type, or one that cannot work.

    """
    kind: Any = type(config)
    settings = escaped(asdict(config))  # type: ignore[call-overload]
    settings["output_dir"] = settings["output_dir"].replace("\\${name}", "${name}")
    try:
        checked: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), settings))
    except ConfigError:
        raise
    except Exception as error:  # see load_config
        key = getattr(error, "full_key", None) or kind.__name__
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
    _check_lists(checked)
    return checked


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML that :func:`load_config` reads back to an equal config."""
    return dump_structured(config)


def dump_structured(settings: Any) -> str:
    """Return settings of any kind, a dataclass, as YAML in which no text is taken for anything else."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(settings))))


def config_keys() -> list[str]:
    """Return every dotted key that a config file or override may set."""
    return [key for key, section in _walk(Config) if section is None]


def _walk(config_class: type, prefix: str = "") -> Iterator[tuple[str, type | None]]:
    """Yield every dotted key, with its dataclass if it is a section."""
    for entry in fields(config_class):
        section = entry.default_factory if is_dataclass(entry.default_factory) else None
        assert section is None or isinstance(section, type)
        yield prefix + entry.name, section
        if section is not None:
            yield from _walk(section, f"{prefix}{entry.name}.")


def read_file(path: str | Path, kind: Any = None) -> DictConfig:
    """Return a YAML file's keys: those of a dataclass, which may be dotted, or any.

    Raises:
        ConfigError: there is none, it is not YAML, or a list.

    """
    try:
        layer = read_yaml(Path(path).read_text(encoding="utf-8-sig"), kind)
    except FileNotFoundError:
        raise ConfigError(f"config file {str(path)!r}: not found") from None
    except Exception as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{path}: found a list, allowed: sections and keys such as `federated: {{rounds: 4}}`")
    if kind is not None:
        plain: Any = OmegaConf.to_container(layer)
        nested = undotted(plain, kind)
        layer = layer if nested == plain else OmegaConf.create(nested)
    return layer


def read_override(item: str, kind: Any) -> DictConfig:
    """Return the key of a `key=value`, one of a dataclass.

    Raises:
        ConfigError: it is not readable.

    """
    if "=" not in item.lstrip("="):
        raise ConfigError(f"override {item!r}: allowed: key=value, e.g. federated.rounds=4")
    with suppress(UnicodeError):  # where the system's encoding is ASCII, what a UTF-8 terminal sent are single bytes
        item = item.encode("ascii", "surrogateescape").decode("utf-8")
    try:
        return read_assignment(item, kind)
    except Exception as error:
        raise ConfigError(f"override {item!r}: not readable as YAML: {' '.join(str(error).split())}") from None


def _read_part(file: Path) -> DictConfig:
    """Read a part; its errors name the file, because the user named only a word."""
    part = read_file(file, _Composed)
    try:
        for section, word in take_words(part).items():
            raise ConfigError(f"{section}: found {word!r}, allowed: keys; a part names no other part")
        _merged(part)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{file}: {_one_line(error, file, [part])}") from None
    return part


def _one_line(error: Exception, path: str | Path | None, layers: Sequence[Any]) -> str:
    key = getattr(error, "full_key", None) or ""
    if isinstance(error, ConfigKeyError):
        close = difflib.get_close_matches(key, [known for known, _ in _walk(Config)], n=1, cutoff=0.6)
        section = key.rpartition(".")[0]
        siblings = [known.rpartition(".")[2] for known, _ in _walk(Config) if known.rpartition(".")[0] == section]
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(siblings)}"
        return f"{key}: unknown key; {hint}"
    first = str(error).splitlines()[0]
    if match := re.search(r"not a subclass of (\w+). value: (.*)", first):
        section = next(key for key, kind in _walk(Config) if kind and kind.__name__ == match[1])
        return f"{section}: found {match[2]!r}, allowed: a section with keys of its own"
    key = key or _key_at_fault(layers)
    if key or isinstance(error, OmegaConfBaseException):
        return f"{key or path or 'overrides'}: {first}"
    return f"{path or 'overrides'}: {' '.join(str(error).split())}"


def _key_at_fault(layers: Sequence[Any]) -> str:
    """Return the first key whose value alone cannot be set, or no number of 64 bits; for errors that name none."""
    for key in config_keys():
        for layer in layers:
            with suppress(OmegaConfBaseException):  # of a section that is none: has a message of its own
                value = OmegaConf.select(layer, key, default=_ABSENT)
                if value is _ABSENT:
                    continue
                try:
                    _merged(_nested(key, value))
                except Exception:
                    return key
                if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
                    return key
    return ""


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value
