"""Where rows come from: local files or the hub. They are found here, without reading them."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import fsspec

from fedpft.data.sources.errors import fail, hub_error
from fedpft.data.sources.image_folders import find_images
from fedpft.hub import hub_or_cache

BUILDERS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".txt": "text",
}  # fmt: skip
FORMATS = ", ".join(BUILDERS)
COMPRESSIONS = frozenset({".gz", ".bz2", ".xz", ".zst"})
IMAGE_FOLDER = "imagefolder"
SAVED = "arrow"
"""A folder that `datasets` wrote with `save_to_disk`."""
_SAVED_STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one split, in the order of their names."""

    builder: str | None
    """What reads them: a value of `BUILDERS`, `IMAGE_FOLDER` or `SAVED`; None: not known here, only to `datasets`."""
    paths: tuple[str, ...]
    """Absolute paths or URLs that fsspec opens; of an image folder, the images."""
    num_bytes: int
    folder: str = ""
    """Of an image folder: where its class folders are; of a saved data set: where it is."""


def is_local(path: str) -> bool:
    """Whether a path means a file or folder of this machine, and not a hub id."""
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def find_local(path: str, split: str, key: str, *, any_name: bool = False) -> Files:
    """Find the files of one split, without reading them.

    Args:
        path: file (the split is ignored), or folder with `<split>.parquet|csv|tsv|json|jsonl|txt`, with shards
            `<split>-00000-of-00041.*` in it, in its `data/` or in `<split>/`, with images `<split>/<class>/*.png`, or
            what `save_to_disk` wrote.
        split: stem of the files or name of the subfolder.
        key: config key that errors name.
        any_name: whether a folder without such files may be read as a whole, whatever its files are called.

    Raises:
        ConfigError: nothing there, two candidates for one split, a format without reader.

    """
    root = Path(path).expanduser().resolve()
    if not root.exists():
        fail(key, path, "an existing file or folder")
    if saved := _saved(root, split):
        return replace(_local(SAVED, _data_files(saved, ".arrow")), folder=str(saved))
    if (root / _SAVED_STATE).is_file():
        fail(key, f"{path}, one data set saved to disk, for the split {split}", "one saved with its splits")
    shards = _shards(root, split) if root.is_dir() else [root]
    if not shards and (root / split).is_dir():
        images = find_images(root / split, key).images
        if images:
            return replace(_local(IMAGE_FOLDER, images), folder=str(root / split))
        shards = _data_files(root / split)
        if not shards:
            fail(key, f"{root / split} without images", f"images in {split}/ or {split}.* files")
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


def _saved(root: Path, split: str) -> Path | None:
    """Return the folder that `save_to_disk` wrote for a split: its own, or the whole where that has no splits."""
    candidates = [root / split, *([root] if split == "train" else [])]
    return next((folder for folder in candidates if (folder / _SAVED_STATE).is_file()), None)


def find_hub(path: str, config_name: str | None, split: str, key: str, hint: str = "") -> Files | None:
    """Find the files of one split of a hub data set, without reading them; None where only `datasets` knows them.

    Raises:
        ConfigError: as :func:`fedpft.data.sources.rows.load_hub`.

    """
    try:
        with hub_or_cache(path, "dataset"):
            data_files = datasets.load_dataset_builder(path, config_name).config.data_files or {}
        paths = tuple(map(str, data_files.get(split, ())))
        if not paths:
            return None
        filesystem, _ = fsspec.core.url_to_fs(paths[0])
        num_bytes = sum(filesystem.size(file) for file in paths)
    except Exception as error:  # see load_hub
        raise hub_error(path, config_name, split, key, hint, error) from error
    builders = {_builder(file) for file in paths}
    return Files(builder=builders.pop() if len(builders) == 1 else None, paths=paths, num_bytes=num_bytes)


def _shards(root: Path, split: str) -> list[Path]:
    named = re.compile(rf"{re.escape(split)}([-_.]\d.*)?")
    for folder in (root, root / "data"):
        if found := [file for file in _data_files(folder) if named.fullmatch(_stem(file.name))]:
            return found
    return []


def _data_files(folder: Path, suffix: str = "") -> list[Path]:
    """Return the files of a folder that have a reader, or the suffix, in the order of their names."""
    found = (file for file in folder.glob("*") if file.is_file() and not file.name.startswith("."))
    return sorted((file for file in found if (file.suffix == suffix if suffix else _builder(file.name))), key=str)


def _suffixes(name: str) -> list[str]:
    suffixes = Path(name).suffixes
    return suffixes[-2:] if suffixes and suffixes[-1] in COMPRESSIONS else suffixes[-1:]


def _stem(name: str) -> str:
    return name.removesuffix("".join(_suffixes(name)))


def _builder(name: str) -> str | None:
    return BUILDERS.get(next(iter(_suffixes(name)), "").lower())


def _local(builder: str | None, files: Sequence[Path]) -> Files:
    return Files(builder=builder, paths=tuple(map(str, files)), num_bytes=sum(file.stat().st_size for file in files))


def _warn_of_missing_shards(shards: Sequence[Path]) -> None:
    counts = {int(match[1]) for file in shards if (match := re.search(r"-of-(\d+)", file.name))}
    if counts and (expected := max(counts)) > len(shards):
        warnings.warn(
            f"{shards[0].parent}: found {len(shards)} of {expected} shards, the rest is left out", stacklevel=4
        )
