"""Where rows come from: a local file or folder, or the hub; always whole in memory, images as bytes.

In memory because the rows travel to Ray actors, perhaps on machines without these files.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

import datasets
import numpy as np
from datasets.table import embed_table_storage

from fedpft.config import ConfigError
from fedpft.seeding import numpy_rng

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
FORMATS = ", ".join(BUILDERS)
READ_OPTIONS = {"csv": {"keep_default_na": False}}
"""Texts are taken as they stand: "", "None" and "NA" are no nulls."""

Row = TypeVar("Row")


def fail(key: str, found: object, allowed: str) -> NoReturn:
    """Raise the one-line ConfigError that every module of this package uses."""
    raise ConfigError(f"{key}: found {found!r}, allowed: {allowed}")


def find_row(name: str, table: Mapping[str, Row], key: str) -> Row:
    """Return a table's row; ConfigError with the nearest name, or all names, when there is none."""
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
        names = ", ".join([*table, "custom"])
        fail(key, name, f"{names}" + (f" (did you mean {close[0]}?)" if close else ""))
    return table[name]


def is_local(path: str) -> bool:
    """Whether a path means a file or folder of this machine, and not a hub id."""
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def load_local(path: str, split: str, key: str) -> datasets.Dataset:
    """Read one split of a file (the split is ignored), a folder of `<split>.*` files, or an image folder.

    Args:
        path: file, or folder with `<split>.parquet|csv|json|jsonl|txt`, or with `<split>/<class>/*.png` and the like.
        split: stem of the file or name of the subfolder.
        key: config key that errors name.

    Raises:
        ConfigError: nothing there, two files for one split, a format without reader, a file that cannot be read.

    """
    root = Path(path).expanduser()
    if not root.exists():
        fail(key, path, "an existing file or folder")
    if root.is_dir() and (root / split).is_dir():
        return _embed_images(_read("imagefolder", str(root.resolve() / split / "**"), key, drop_labels=False))
    candidates = sorted(root.glob(f"{split}.*")) if root.is_dir() else [root]
    readable = [file for file in candidates if file.suffix in BUILDERS]
    if len(readable) != 1:
        names = ", ".join(sorted(f.name for f in root.iterdir())[:8]) if root.is_dir() else root.name
        fail(key, f"{path} ({names})", f"exactly one {split}.* file ({FORMATS}) or an image folder {split}/")
    return _read(BUILDERS[readable[0].suffix], str(readable[0].resolve()), key)


def has_split(path: str, split: str) -> bool:
    """Whether a local folder has files or images for a split."""
    root = Path(path).expanduser()
    return (root / split).is_dir() or any(root.glob(f"{split}.*"))


def load_hub(path: str, config_name: str | None, split: str, key: str, revision: str | None = None) -> datasets.Dataset:
    """Download one split of a hub data set; without a revision the newest.

    Raises:
        ConfigError: hub unreachable, or no such data set, configuration or split.

    """
    try:
        return datasets.load_dataset(path, config_name, split=split, revision=revision, keep_in_memory=True)
    except Exception as error:  # the hub client raises errors of four libraries; the user can act on all alike
        reason = " ".join(str(error).split())[:200]
        found = f"hub data set {path} {config_name or ''}".rstrip() + f", split {split} ({reason})"
        raise ConfigError(f"{key}: found {found}, allowed: a reachable hub id or a local folder in {key}") from error


def subset(dataset: datasets.Dataset, indices: object) -> datasets.Dataset:
    """Return the chosen rows as a data set of its own: pickling it does not carry the rows left out."""
    return dataset.select(indices, keep_in_memory=True).flatten_indices(keep_in_memory=True)


def hold_out(dataset: datasets.Dataset, ratio: float, key: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return a data set without, and the fraction `ratio` of it, rows in their order; the same split every time.

    Raises:
        ConfigError: a side would be empty; `key` is the ratio's.

    """
    num_rows, num_held_out = len(dataset), round(ratio * len(dataset))
    if not 0 < num_held_out < num_rows:
        fail(key, ratio, f"a fraction with 1 to {num_rows - 1} of the {num_rows} training examples")
    order = numpy_rng(0, "hold_out").permutation(num_rows)  # not the run's seed: runs with other seeds are compared
    sides = order[num_held_out:], order[:num_held_out]
    kept, held_out = (subset(dataset, np.sort(side)) for side in sides)
    return kept, held_out


def _read(builder: str, files: str, key: str, **options: object) -> datasets.Dataset:
    try:
        return datasets.load_dataset(
            builder,
            data_files={"train": files},
            split="train",
            keep_in_memory=True,
            **options,
            **READ_OPTIONS.get(builder, {}),
        )
    except Exception as error:  # Arrow, pandas and datasets each have their own
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ConfigError(f"{key}: found {files!r} ({reason}), allowed: a readable, non-empty {builder}") from error


def _embed_images(dataset: datasets.Dataset) -> datasets.Dataset:
    embedded = dataset.with_format("arrow").map(
        embed_table_storage, batched=True, batch_size=256, keep_in_memory=True, features=dataset.features
    )
    return embedded.with_format(None)
