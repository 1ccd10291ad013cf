"""A folder to start from: a config, and for own data an example of their form, made from Python's own texts."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import datasets

from fedpft.config import ConfigError
from fedpft.data.corpora.public import python_reference
from fedpft.data.embedded.stdlib_docs import stdlib_docs_task
from fedpft.data.embedded.stdlib_summaries import stdlib_summaries_task

CONFIG_FILE = "config.yaml"


def write_starter(name: str, folder: Path) -> list[Path]:
    """Write a starter's files into a new or empty folder and return them, the config first.

    Args:
        name: a file's in `fedpft/starters`, without its ending.
        folder: where.

    Raises:
        ConfigError: the folder has files, or cannot be written.

    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"FOLDER: found {str(folder)!r}, which exists, allowed: a new or empty folder")
    config = folder / CONFIG_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text((files("fedpft") / "starters" / f"{name}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        return [config, *_EXAMPLES[name](folder)] if name in _EXAMPLES else [config]
    except OSError as error:
        raise ConfigError(
            f"FOLDER: found {str(folder)!r} ({error.strerror}), allowed: one that can be written"
        ) from None


def _own_data(folder: Path) -> list[Path]:
    train, evaluation, names = stdlib_docs_task()
    written = []
    for split, rows in (("train", train), ("validation", evaluation)):
        named = datasets.Dataset.from_dict(
            {"text": rows["text"][:], "label": [names[label] for label in rows["label"]]}
        )
        written.append(_place(folder / "data" / f"{split}.csv"))
        named.to_csv(written[-1], index=False)
    return [*written, _public_texts(folder)]


def _language_model(folder: Path) -> list[Path]:
    train, evaluation, _ = stdlib_summaries_task()
    written = []
    for split, rows in (("train", train), ("validation", evaluation)):
        prompts = [f"What does {row['function']}({row['arguments']}) do?" for row in rows]
        written.append(_place(folder / "data" / f"{split}.jsonl"))
        datasets.Dataset.from_dict({"prompt": prompts, "response": rows["summary"][:]}).to_json(written[-1])
    return [*written, _public_texts(folder)]


_EXAMPLES: Mapping[str, Callable[[Path], list[Path]]] = {"own-data": _own_data, "language-model": _language_model}
"""Starter -> what writes its data; the others' come with the packages that they need."""


def _public_texts(folder: Path) -> Path:
    path = _place(folder / "public" / "train.txt")
    path.write_text("\n".join(python_reference()["text"]) + "\n", encoding="utf-8")
    return path


def _place(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return path
