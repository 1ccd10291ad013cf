"""Where rows come from: local files or the hub. Found first, then read whole: in memory, images as bytes.

In memory because a task's rows travel to Ray actors, perhaps on machines without these files. A public corpus too
large for that is drawn from its files, block by block: `fedpft.data.blocks`.
"""

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TypeVar

import datasets
import fsspec
import numpy as np
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.table import embed_table_storage

from fedpft.config import ConfigError
from fedpft.seeding import numpy_rng

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
FORMATS = ", ".join(BUILDERS)
COMPRESSIONS = frozenset({".gz", ".bz2", ".xz", ".zst"})
IMAGE_FOLDER = "imagefolder"
READ_OPTIONS = {"csv": {"keep_default_na": False}}
"""Texts are taken as they stand: "", "None" and "NA" are no nulls."""

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one split, in the order of their names."""

    builder: str | None
    """What reads them: a value of `BUILDERS` or `IMAGE_FOLDER`; None: not known here, only to `datasets`."""
    paths: tuple[str, ...]
    """Absolute paths or URLs that fsspec opens; of an image folder, the images."""
    num_bytes: int
    folder: str = ""
    """Of an image folder: where its class folders are."""


def fail(key: str, found: object, allowed: str) -> NoReturn:
    """Raise the one-line ConfigError that every module of this package uses."""
    raise ConfigError(f"{key}: found {found!r}, allowed: {allowed}")


def one_line(error: BaseException) -> str:
    """Return the first 200 characters of what a library says, without line breaks."""
    return " ".join(str(error).split())[:200]


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


def find_local(path: str, split: str, key: str, *, any_name: bool = False) -> Files:
    """Find the files of one split, without reading them.

    Args:
        path: file (the split is ignored), or folder with `<split>.parquet|csv|json|jsonl|txt`, with shards
            `<split>-00000-of-00041.*` in it, in its `data/` or in `<split>/`, or with images `<split>/<class>/*.png`.
        split: stem of the files or name of the subfolder.
        key: config key that errors name.
        any_name: whether a folder without such files may be read as a whole, whatever its files are called.

    Raises:
        ConfigError: nothing there, two candidates for one split, a format without reader.

    """
    root = Path(path).expanduser().resolve()
    if not root.exists():
        fail(key, path, "an existing file or folder")
    shards = _shards(root, split) if root.is_dir() else [root]
    if not shards and (root / split).is_dir():
        images = [file for file in _files(root / split, "**/*") if file.suffix.lower() in ImageFolder.EXTENSIONS]
        if not images:
            fail(key, f"{root / split} without images", f"images in {split}/ or {split}.* files")
        return replace(_local(IMAGE_FOLDER, images), folder=str(root / split))
    if not shards and any_name:
        shards = _data_files(root)
    builders = {_builder(file.name) for file in shards}
    alone = any(_stem(file.name) == split for file in shards)  # beside it, shards would hold its rows again
    if len(builders) != 1 or None in builders or (alone and len(shards) > 1):
        names = ", ".join(sorted(f.name for f in root.iterdir())[:8]) if root.is_dir() else root.name
        allowed = f"exactly one {split}.* file ({FORMATS}), shards {split}-* of one format or an image folder {split}/"
        fail(key, f"{path} ({names})", allowed)
    _warn_of_missing_shards(shards)
    return _local(builders.pop(), shards)


def has_split(path: str, split: str) -> bool:
    """Whether a local folder has files or images for a split."""
    root = Path(path).expanduser()
    return (root / split).is_dir() or bool(_shards(root, split))


def find_hub(path: str, config_name: str | None, split: str, key: str, hint: str = "") -> Files | None:
    """Find the files of one split of a hub data set, without reading them; None where only `datasets` knows them.

    Raises:
        ConfigError: as :func:`load_hub`.

    """
    try:
        data_files = datasets.load_dataset_builder(path, config_name).config.data_files or {}
        paths = tuple(map(str, data_files.get(split, ())))
        if not paths:
            return None
        filesystem, _ = fsspec.core.url_to_fs(paths[0])
        num_bytes = sum(filesystem.size(file) for file in paths)
    except Exception as error:  # see load_hub
        raise _hub_error(path, config_name, split, key, hint, error) from error
    builders = {_builder(file) for file in paths}
    return Files(builder=builders.pop() if len(builders) == 1 else None, paths=paths, num_bytes=num_bytes)


def load_local(path: str, split: str, key: str) -> datasets.Dataset:
    """Read one split of what :func:`find_local` finds.

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
        raise _hub_error(path, config_name, split, key, hint, error) from error


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


def _read(builder: str, files: Sequence[str], key: str, **options: object) -> datasets.Dataset:
    try:
        return datasets.load_dataset(
            builder, data_files={"train": list(files)}, split="train", keep_in_memory=True, **options
        )
    except Exception as error:  # Arrow, pandas and datasets each have their own
        found = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        reason = one_line(error.__cause__ or error)
        raise ConfigError(f"{key}: found {found!r} ({reason}), allowed: a readable, non-empty {builder}") from error


def _files(folder: Path, pattern: str = "*") -> list[Path]:
    found = (file for file in folder.glob(pattern) if file.is_file() and not file.name.startswith("."))
    return sorted(found, key=str)


def _shards(root: Path, split: str) -> list[Path]:
    named = re.compile(rf"{re.escape(split)}([-_.]\d.*)?")
    for folder in (root, root / "data"):
        if found := [file for file in _data_files(folder) if named.fullmatch(_stem(file.name))]:
            return found
    return _data_files(root / split)


def _data_files(folder: Path) -> list[Path]:
    return [file for file in _files(folder) if _builder(file.name)]


def _suffixes(name: str) -> list[str]:
    suffixes = Path(name).suffixes
    return suffixes[-2:] if suffixes and suffixes[-1] in COMPRESSIONS else suffixes[-1:]


def _stem(name: str) -> str:
    return name.removesuffix("".join(_suffixes(name)))


def _builder(name: str) -> str | None:
    return BUILDERS.get(next(iter(_suffixes(name)), ""))


def _local(builder: str | None, files: Sequence[Path]) -> Files:
    return Files(builder=builder, paths=tuple(map(str, files)), num_bytes=sum(file.stat().st_size for file in files))


def _warn_of_missing_shards(shards: Sequence[Path]) -> None:
    counts = {int(match[1]) for file in shards if (match := re.search(r"-of-(\d+)", file.name))}
    if counts and (expected := max(counts)) > len(shards):
        warnings.warn(
            f"{shards[0].parent}: found {len(shards)} of {expected} shards, the rest is left out", stacklevel=4
        )


def _hub_error(path: str, config_name: str | None, split: str, key: str, hint: str, error: Exception) -> ConfigError:
    found = f"hub data set {path} {config_name or ''}".rstrip() + f", split {split} ({one_line(error)})"
    return ConfigError(f"{key}: found {found}, allowed: a reachable hub id{hint} or a local folder in {key}")


def _embed_images(dataset: datasets.Dataset) -> datasets.Dataset:
    embedded = dataset.with_format("arrow").map(
        embed_table_storage, batched=True, batch_size=256, keep_in_memory=True, features=dataset.features
    )
    return embedded.with_format(None)
