"""Parts of a config: a word in place of a section, `fm: roberta` or `fm=roberta`, names a file `fm/roberta.yaml`.

    defaults < the file's own keys < its parts, in the order of the sections of `Config` < keys of the command line

Parts stand in folders beside the config file. A part may set keys of every section (a vision FM brings its public
images) but names no other part. Words of the command line replace the file's, section by section. A file with both a
word and keys for a section writes the words as `parts: {fm: roberta}`. Its `name` may tell them: `${parts.fm}`.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedpft.config.checks import ConfigError, require
from fedpft.config.run import Config

KEY = "parts"
SECTIONS = tuple(entry.name for entry in fields(Config) if is_dataclass(entry.default_factory))


def take_words(layer: DictConfig) -> dict[str, str]:
    """Remove the words from a file's or override's keys and return them by section.

    Raises:
        ConfigError: `parts` holds anything but words for sections.

    """
    there = layer.keys()
    plain = [section for section in SECTIONS if section in there and not OmegaConf.is_interpolation(layer, section)]
    short = {section: layer.pop(section) for section in plain if _is_word(layer.get(section))}
    written = layer.pop(KEY, OmegaConf.create())
    require(isinstance(written, DictConfig), KEY, written, "sections and words such as `{fm: bert}`")
    for section, word in written.items():
        require(section in SECTIONS, KEY, section, f"a section: {', '.join(SECTIONS)}")
        require(_is_word(word), f"{KEY}.{section}", word, "a word, the name of a part")
    return dict(written) | short


def part_files(words: Mapping[str, str], folder: Path | None) -> list[Path]:
    """Return the files of the parts, in the order of the sections.

    Args:
        words: the parts' names by section.
        folder: that of the config file; None: there is no such file.

    Raises:
        ConfigError: a part that does not exist.

    """
    return [_part_file(section, words[section], folder) for section in SECTIONS if section in words]


def _part_file(section: str, word: str, folder: Path | None) -> Path:
    keys = "a section with keys of its own"
    if folder is None:
        raise ConfigError(f"{section}: found {word!r}, allowed: {keys}; parts stand beside a config file, here is none")
    found = {file.stem: file for file in sorted((folder / section).glob("*.yaml"))}
    if word in found:
        return found[word]
    close = difflib.get_close_matches(word, found, n=1, cutoff=0.5)
    options = f"parts in {folder / section}: {', '.join(found)}" if found else f"no part, {folder / section} has none"
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(f"{section}: found {word!r}, allowed: {keys}, or {options}{hint}")


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w[\w.+-]*", value) is not None
