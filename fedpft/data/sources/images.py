"""Whatever holds images -> a column of encoded images that can be opened and lose nothing on the way to RGB."""

import io
from collections.abc import Callable
from typing import Any

import datasets
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from fedpft.data.sources.columns import require_column
from fedpft.data.sources.errors import fail

_ROWS_AT_ONCE = 1000
_WIDE_MODES = ("I", "F")
"""Pillow's modes of more than 8 bits a channel start so; its conversion to RGB clips them at 255."""


def as_images(
    dataset: datasets.Dataset, column: str, key: str, origin: Callable[[int], str] = "row {}".format
) -> datasets.Dataset:
    """Make `column` an encoded `datasets.Image` column; accepts images, bytes and paths.

    The header of every image is read, at some 30,000 a second; what is broken behind it shows when it is decoded.
    `origin` says for errors where a row is from.

    Raises:
        ConfigError: missing column, nulls, a type that cannot be an image, an image that cannot be opened or has more
            than 8 bits a channel.

    """
    require_column(dataset, column, key)
    if not isinstance(dataset.features[column], datasets.Image):
        try:
            dataset = dataset.cast_column(column, datasets.Image())
        except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            fail(key, f"column {column} of type {dataset.features[column]}", "a column of encoded images")
    encoded = dataset.select_columns([column]).with_format("arrow")
    for start, batch in enumerate(encoded.iter(batch_size=_ROWS_AT_ONCE)):
        for row, image in enumerate(batch[column].to_pylist(), start * _ROWS_AT_ONCE):
            if flaw := _flaw(image):
                fail(key, f"{flaw} in {origin(row)} of column {column}", "images of 8 bits a channel that Pillow opens")
    return dataset


def _flaw(image: dict[str, Any]) -> str | None:
    if image["bytes"] is None and image["path"] is None:
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
