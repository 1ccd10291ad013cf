"""Whatever holds images -> a column of encoded images that can be opened and lose nothing on the way to RGB."""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from fedpft.data.sources.columns import require_column, type_name
from fedpft.data.sources.errors import fail
from fedpft.data.sources.subsets import without

_ROWS_AT_ONCE = 1000
_WIDE_MODES = ("I", "F")
"""Pillow's modes of more than 8 bits a channel start so; its conversion to RGB clips them at 255."""

Look: TypeAlias = Callable[[datasets.Dataset, str], Mapping[int, str]]
"""Looks at the images of a column; returns what is wrong by row."""


def look_at_headers(dataset: datasets.Dataset, column: str) -> dict[int, str]:
    """Read the header of every image, at some 30,000 a second; what is broken behind it shows when it is decoded."""
    batches = enumerate(_batches(dataset, column))
    found = (
        (number * _ROWS_AT_ONCE + row, _flaw(image)) for number, batch in batches for row, image in enumerate(batch)
    )
    return {row: flaw for row, flaw in found if flaw}


def look_at_pixels(
    dataset: datasets.Dataset, column: str, report: Callable[[int, int], None] = lambda done, total: None
) -> dict[int, str]:
    """Decode every image as training does, on all cores; `report` hears how many are done, of how many."""
    flaws: dict[int, str] = {}
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow's decoders let other threads work
        for batch in _batches(dataset, column):
            flaws |= {done + row: flaw for row, flaw in enumerate(pool.map(_flaw_of_pixels, batch)) if flaw}
            done += len(batch)
            report(done, len(dataset))
    return flaws


def are_embedded(dataset: datasets.Dataset, column: str) -> bool:
    """Whether the rows hold the images' bytes, and no paths to files that may change."""
    return pc.struct_field(dataset.data.column(column), "bytes").null_count == 0


def as_images(
    dataset: datasets.Dataset,
    column: str,
    key: str,
    origin: Callable[[int], str] = "row {}".format,
    look: Look = look_at_headers,
    *,
    drop: str | None = None,
) -> datasets.Dataset:
    """Make `column` an encoded `datasets.Image` column; accepts images, bytes and paths.

    Args:
        dataset: the rows.
        column: of the images.
        key: config key that errors name.
        origin: says for errors where a row is from.
        look: how closely the images are looked at.
        drop: leave out the rows of images that will not do, and name them in a warning as this split's; None: refuse.

    Raises:
        ConfigError: missing column, nulls, a type that cannot be an image, an image that cannot be opened or has more
            than 8 bits a channel; or all of them are left out.

    """
    require_column(dataset, column, key)
    if dataset.features[column] != datasets.Image():
        kind = type_name(dataset, column)
        try:
            dataset = dataset.cast_column(column, datasets.Image())
        except (TypeError, ValueError, pa.ArrowException):
            fail(key, f"column {column} of type {kind}", "a column of encoded images")
    flaws = {
        row: f"{flaw} in {_file(dataset, column, row)}{origin(row)}" for row, flaw in look(dataset, column).items()
    }
    if drop is not None:
        return without(dataset, flaws, drop, key)
    if flaws:
        more = f" and {len(flaws) - 1} more" if len(flaws) > 1 else ""
        found = f"{flaws[min(flaws)]} of column {column}{more}"
        fail(key, found, "images of 8 bits a channel that Pillow opens")
    return dataset


def image_sizes(dataset: datasets.Dataset, column: str) -> set[tuple[int, int]]:
    """Return every (width, height) that occurs, by the headers; those to be fetched when they are read are left out."""
    return {size for batch in _batches(dataset, column) for image in batch if (size := _size(image))}


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    if image["bytes"] is None and "://" in image["path"]:
        return None
    with Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])) as opened:
        return opened.size


def _batches(dataset: datasets.Dataset, column: str) -> Iterator[list[dict[str, Any]]]:
    encoded = dataset.select_columns([column]).with_format("arrow")
    yield from (batch[column].to_pylist() for batch in encoded.iter(batch_size=_ROWS_AT_ONCE))


def _file(dataset: datasets.Dataset, column: str, row: int) -> str:
    """Return the file that an image came from, with a comma, if the data know it."""
    path = dataset.data.column(column)[row].as_py()["path"]
    return f"{path}, " if path else ""


def _flaw(image: dict[str, Any] | None) -> str | None:
    if image is None or (image["bytes"] is None and image["path"] is None):
        return "an image without bytes and path"
    if image["bytes"] is None and "://" in image["path"]:
        return None  # fetched when it is read
    try:
        with Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])) as opened:
            return f"an image of mode {opened.mode}" if opened.mode.startswith(_WIDE_MODES) else None
    except UnidentifiedImageError:
        return "no image that Pillow knows"
    except Exception as error:  # every format of Pillow has errors of its own
        return f"an image that cannot be opened ({' '.join(str(error).split())[:100]})"


def _flaw_of_pixels(image: dict[str, Any]) -> str | None:
    if (flaw := _flaw(image)) or (image["bytes"] is None and "://" in image["path"]):
        return flaw
    try:
        datasets.Image().decode_example(image).convert("RGB")
    except Exception as error:  # see _flaw
        return f"a broken image ({' '.join(str(error).split())[:100]})"
    return None
