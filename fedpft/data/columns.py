"""Whatever a data set calls its columns -> `text` (, `text_pair`) or `image`, and `label` in 0..C-1."""

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpft.data.sources import fail

TEXT, TEXT_PAIR, IMAGE, LABEL = "text", "text_pair", "image", "label"


def require_column(dataset: datasets.Dataset, column: str, key: str) -> None:
    """Raise a ConfigError naming the columns that exist when `column` is missing or holds nulls."""
    if column not in dataset.column_names:
        fail(key, column, f"a column of the data: {', '.join(dataset.column_names)}")
    if nulls := dataset.data.column(column).null_count:
        fail(key, f"{nulls} nulls in column {column}", "no nulls")


def rename_inputs(dataset: datasets.Dataset, columns: Sequence[str], targets: Sequence[str]) -> datasets.Dataset:
    """Rename `columns` to `targets`, dropping other columns that already bear such a name."""
    taken = [name for name in targets if name in dataset.column_names and name not in columns]
    mapping = {old: new for old, new in zip(columns, targets, strict=True) if old != new}
    return dataset.remove_columns(taken).rename_columns(mapping) if mapping else dataset.remove_columns(taken)


def require_text(dataset: datasets.Dataset, column: str, key: str) -> None:
    """Raise a ConfigError unless `column` exists, without nulls, and holds strings."""
    require_column(dataset, column, key)
    dtype = getattr(dataset.features[column], "dtype", "nested")
    if dtype not in ("string", "large_string"):
        fail(key, f"column {column} of type {dtype}", "a column of strings")


def as_images(dataset: datasets.Dataset, column: str, key: str) -> datasets.Dataset:
    """Make `column` an encoded `datasets.Image` column; accepts images, bytes and paths.

    Raises:
        ConfigError: missing column, nulls, or a type that cannot be an image.

    """
    require_column(dataset, column, key)
    if isinstance(dataset.features[column], datasets.Image):
        return dataset
    try:
        return dataset.cast_column(column, datasets.Image())
    except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        fail(key, f"column {column} of type {dataset.features[column]}", "a column of encoded images")


def normalise_labels(
    splits: Sequence[datasets.Dataset], column: str, names: Sequence[str] | None, key: str
) -> tuple[list[datasets.Dataset], tuple[str, ...]]:
    """Replace `column` in every split by an int64 column `label` in 0..C-1, and return the C label names.

    The first split defines the labels when `names` (from `classes.txt`) and class names in the data are absent: its
    sorted strings, or 0..its largest integer.

    Raises:
        ConfigError: missing column, nulls, neither integers nor strings, or a label out of range.

    """
    for split in splits:
        require_column(split, column, key)
    if names is None and isinstance(splits[0].features[column], datasets.ClassLabel):
        names = splits[0].features[column].names
    raw = [split.data.column(column).combine_chunks() for split in splits]
    values = [array.chunk(0) if isinstance(array, pa.ChunkedArray) else array for array in raw]
    if any(split.features[column] != splits[0].features[column] for split in splits):
        # splits read one by one number their own class folders: a class missing from one would shift all after it
        values = [_strings_of_codes(v, s.features[column], column, key) for v, s in zip(values, splits, strict=True)]
    if all(pa.types.is_string(v.type) or pa.types.is_large_string(v.type) for v in values):
        names = list(names) if names else sorted(pc.unique(values[0]).to_pylist())
        codes = [_codes_of_strings(v, names, column, key) for v in values]
    elif all(pa.types.is_integer(v.type) or pa.types.is_boolean(v.type) for v in values):
        codes = [v.cast(pa.int64()).to_numpy(zero_copy_only=False) for v in values]
        names = list(names) if names else [str(i) for i in range(int(codes[0].max()) + 1)]
    else:
        fail(key, f"column {column} of type {values[0].type}", "integers or strings")
    for array in codes:
        if wrong := array[(array < 0) | (array >= len(names))][:1].tolist():
            fail(key, f"label {wrong[0]} in column {column}", f"0..{len(names) - 1}, the labels of the training data")
    labelled = [
        s.remove_columns([n for n in s.column_names if n in (column, LABEL)]).add_column(LABEL, c)
        for s, c in zip(splits, codes, strict=True)
    ]
    return labelled, tuple(names)


def _strings_of_codes(values: pa.Array, feature: object, column: str, key: str) -> pa.Array:
    if not isinstance(feature, datasets.ClassLabel):
        return values
    if wrong := values.filter(pc.invert(pc.is_in(values, pa.array(range(len(feature.names)), values.type)))):
        fail(key, f"label {wrong[0].as_py()} in column {column}", f"0..{len(feature.names) - 1}")
    return pa.array(feature.names).take(values)


def _codes_of_strings(values: pa.Array, names: Sequence[str], column: str, key: str) -> np.ndarray:
    codes = pc.index_in(values, value_set=pa.array(names, values.type))
    if codes.null_count:
        unknown = values.filter(pc.is_null(codes))[0].as_py()
        fail(key, f"label {unknown!r} in column {column}", f"one of {', '.join(names[:12])}")
    return codes.cast(pa.int64()).to_numpy()
