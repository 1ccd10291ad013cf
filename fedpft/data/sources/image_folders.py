"""Folders of images: `CLASS/*.png`, however deep within the class folder, or images with a table that describes them.

A class is a folder, and all images in it and in folders within it are of that class. Links are followed. A table
`metadata.csv` (or .tsv, .jsonl, .parquet) has a column `file_name`, relative to where it lies, and any others; then
images are what it lists, and those without a `label` column in it have their folder's.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from fedpft.data.sources.errors import fail

IMAGE_TABLE = "metadata"
"""Stem of the table that may lie beside the images and label them."""
FILE_NAME = "file_name"
_TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_SHOWN = 5


@dataclass(frozen=True)
class FoundImages:
    """What is in a folder of images; hidden files and folders are not."""

    images: tuple[Path, ...]
    """In the order of their paths."""
    tables: tuple[Path, ...]
    """`metadata.*`."""
    others: tuple[Path, ...]
    """Files that are no images, and links to nowhere."""
    empty: tuple[Path, ...]
    """Folders directly below without an image."""


def find_images(folder: Path, key: str) -> FoundImages:
    """Look through a folder.

    Raises:
        ConfigError: a link to a folder that it is in, or a folder that cannot be read.

    """
    try:
        files = sorted(_walk(folder, (folder.resolve(),), key), key=str)
    except OSError as error:
        fail(key, f"{error.filename} ({error.strerror})", "folders that can be read")
    images = [file for file in files if file.suffix.lower() in ImageFolder.EXTENSIONS and file.is_file()]
    tables = [file for file in files if file.stem == IMAGE_TABLE and file.suffix.lower() in _TABLE_SUFFIXES]
    known, full = {*images, *tables}, {class_name(image, folder) for image in images}
    classes = (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith("."))
    return FoundImages(
        images=tuple(images),
        tables=tuple(tables),
        others=tuple(file for file in files if file not in known),
        empty=tuple(entry for entry in classes if entry.name not in full),
    )


def class_name(image: Path, folder: Path) -> str | None:
    """Return the class folder of an image; None: the image lies in the split's own folder."""
    parts = image.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None


def warn_of_left_out(found: FoundImages, unlisted: Sequence[Path], folder: Path) -> None:
    """Say which files and folders give no example."""
    for what, paths in (
        ("no images", found.others),
        ("folders without images", found.empty),
        (f"images not in {IMAGE_TABLE}.*", unlisted),
    ):
        if paths:
            names = [str(path.relative_to(folder)) for path in paths[:_SHOWN]]
            shown = ", ".join(names) + (", ..." if len(paths) > _SHOWN else "")
            warnings.warn(f"{folder}: left out, as they are {what} ({len(paths)}): {shown}", stacklevel=2)


def _walk(folder: Path, above: tuple[Path, ...], key: str) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry
        elif (target := entry.resolve()) in above:
            fail(key, f"{entry}, a link to {target}, which it is in", "folders that end somewhere")
        else:
            yield from _walk(entry, (*above, target), key)
