"""What differs between any two runs: settings, the seed, versions of packages, the machine; comparable or not."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from fedpft.config import ConfigError, load_config
from fedpft.report.compare.runs import telling_settings
from fedpft.report.html import note, section

UNKNOWN = "not recorded"
"""Stands for a value that a run does not have."""
_STATES = "checkpoints/round-*/state.json"
_NO_PACKAGES = ("CPU", "CPU instructions", "GPU", "driver threads", "clients' accelerator")


def traits(settings: Mapping[str, str], result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return name -> value of all that may set a run apart.

    Args:
        settings: dotted key -> JSON of those that its numbers depend on.
        result: the content of result.json, or what is known so far.
        folder: the run's, whose checkpoint knows the machine while there is no result.

    """
    found = {key: "not set" if value == "null" else value.strip('"') for key, value in settings.items()}
    if result.get("seed") is not None:
        found["seed"] = str(result["seed"])
    machine = {**_mapping(result, "versions"), **_mapping(result, "environment")} or _of_checkpoint(folder)
    return found | {name if name in _NO_PACKAGES else f"{name} version": str(value) for name, value in machine.items()}


def read_traits(folder: Path) -> dict[str, str]:
    """Return the traits of a run, finished or not.

    Raises:
        ConfigError: no run, or one whose settings cannot be read.

    """
    place = folder / "config.yaml"
    if not place.exists():
        raise ConfigError(f"RUN_DIR: found {str(folder)!r}, allowed: the output_dir of a run (it has a config.yaml)")
    try:
        config = load_config(place)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return traits(telling_settings(asdict(config)), {"seed": config.seed, **_object(folder / "result.json")}, folder)


def differences(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return name -> both values, where they are not the same."""
    pairs = {name: (first.get(name, UNKNOWN), second.get(name, UNKNOWN)) for name in {**first, **second}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def differences_section(runs: Sequence[tuple[Path, Mapping[str, str]]], chosen: tuple[int, int] = (0, 1)) -> str:
    """Return a section with two lists of runs to choose from, and a table that the page fills; nothing for one run.

    Args:
        runs: folder and traits of each.
        chosen: those of the first look.

    """
    if len(runs) < 2:
        return ""
    names = {name: None for _, each in runs for name in each}
    values = {name: [each.get(name, UNKNOWN) for _, each in runs] for name in names}
    data = json.dumps({name: each for name, each in values.items() if len(set(each)) > 1}).replace("<", "\\u003c")
    titles = short_names([folder for folder, _ in runs])
    lists = "".join(
        f'<label>{which} <select data-pair="{index}">{_options(titles, chosen[index])}</select></label> '
        for index, which in enumerate(("First", "second"))
    )
    table = (
        '<div class="wide" tabindex="0" role="region" aria-label="what differs"><table><thead><tr>'
        '<th scope="col">what</th><th scope="col">first</th><th scope="col">second</th></tr></thead><tbody></tbody>'
        "</table></div>"
    )
    body = f'<div class="pair"><script type="application/json">{data}</script>{lists}<output></output>{table}</div>'
    about = "Settings that numbers depend on, seed, versions of packages, processors and threads, as the runs recorded"
    return section("What differs between two runs", body, note(f"{about} them."))


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' paths without what all of them begin with."""
    common = os.path.commonpath([folder.parent for folder in folders])
    return [os.path.relpath(folder, common) for folder in folders]


def _options(titles: Sequence[str], chosen: int) -> str:
    return "".join(
        f"<option{' selected' * (index == chosen)}>{escape(title)}</option>" for index, title in enumerate(titles)
    )


def _of_checkpoint(folder: Path) -> dict[str, Any]:
    """Return what the newest checkpoint knows of its machine."""
    for place in sorted(folder.glob(_STATES), reverse=True):
        if found := _mapping(_mapping(_object(place), "state"), "environment"):
            return found
    return {}


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}
