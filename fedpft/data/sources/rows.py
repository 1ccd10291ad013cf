"""Rows of the files that `fedpft.data.sources.files` finds, read whole: in memory, images as bytes.

In memory because a task's rows travel to Ray actors, perhaps on machines without these files. A public corpus too
large for that is drawn from its files, block by block: `fedpft.data.corpora.blocks`.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets
from datasets.table import embed_table_storage

from fedpft.config import ConfigError
from fedpft.data.sources.errors import hub_error, one_line
from fedpft.data.sources.files import IMAGE_FOLDER, Files, find_local

READ_OPTIONS = {"csv": {"keep_default_na": False}}
"""Texts are taken as they stand: "", "None" and "NA" are no nulls."""


def load_local(path: str, split: str, key: str) -> datasets.Dataset:
    """Read one split of what :func:`fedpft.data.sources.files.find_local` finds.

    Raises:
        ConfigError: as there, or a file that cannot be read.

    """
    return read_whole(find_local(path, split, key), key)


def load_hub(
    path: str,
    config_name: str | None,
    split: str,
    key: str,
    hint: str = "",
    *,
    revision: str | None = None,
    keep_in_memory: bool = True,
) -> datasets.Dataset:
    """Download one split of a hub data set; not kept in memory, its rows are read from disk when they are needed.

    Without a revision it is the newest one.

    Raises:
        ConfigError: hub unreachable, or no such data set, configuration or split; `hint` says what else it may need.

    """
    try:
        return datasets.load_dataset(path, config_name, split=split, revision=revision, keep_in_memory=keep_in_memory)
    except Exception as error:  # the hub client raises errors of four libraries; the user can act on all alike
        raise hub_error(path, config_name, split, key, hint, error) from error


def read_whole(files: Files, key: str) -> datasets.Dataset:
    """Read local files into memory.

    Raises:
        ConfigError: a file that cannot be read, shards with different columns, no rows.

    """
    assert files.builder is not None
    if files.builder == IMAGE_FOLDER:
        return _embed_images(_read(IMAGE_FOLDER, [f"{files.folder}/**"], key, drop_labels=False))
    return _read(files.builder, files.paths, key, **READ_OPTIONS.get(files.builder, {}))


def read_images(chosen: Sequence[str], folder: Files) -> datasets.Dataset:
    """Read chosen images of an image folder into memory: `image`, encoded, and `label`, the number of its subfolder."""
    classes = sorted({Path(path).parent.name for path in folder.paths})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    labels = [Path(path).parent.name for path in chosen]
    return _embed_images(datasets.Dataset.from_dict({"image": list(chosen), "label": labels}, features=features))


def _read(builder: str, files: Sequence[str], key: str, **options: object) -> datasets.Dataset:
    try:
        return datasets.load_dataset(
            builder, data_files={"train": list(files)}, split="train", keep_in_memory=True, **options
        )
    except Exception as error:  # Arrow, pandas and datasets each have their own
        found = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        reason = one_line(error.__cause__ or error)
        raise ConfigError(f"{key}: found {found!r} ({reason}), allowed: a readable, non-empty {builder}") from error


def _embed_images(dataset: datasets.Dataset) -> datasets.Dataset:
    embedded = dataset.with_format("arrow").map(
        embed_table_storage, batched=True, batch_size=256, keep_in_memory=True, features=dataset.features
    )
    return embedded.with_format(None)
