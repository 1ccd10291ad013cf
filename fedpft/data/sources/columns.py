"""Whatever a data set calls its columns -> `text` (, `text_pair`) or `image`, and `label` in 0..C-1."""

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpft.data.sources.errors import fail

TEXT, TEXT_PAIR, IMAGE, LABEL = "text", "text_pair", "image", "label"
PROMPT, RESPONSE, PROMPT_LENGTH = "prompt", "response", "prompt_length"
"""Of instruction data, see `fedpft.data.tasks.instructions`."""

MAX_NUMBERED_LABELS = 100_000
"""Integers from here on are ids of something, not classes; numbered classes get a head and a name each."""


def require_column(dataset: datasets.Dataset, column: str, key: str, *, may_be_empty: bool = False) -> None:
    """Raise a ConfigError unless `column` exists (the message names those that do) and has a value in every row.

    Args:
        dataset: the rows.
        column: its name.
        key: config key that errors name.
        may_be_empty: whether an empty string is a value; in a csv file it is all that a missing one leaves.

    """
    if column not in dataset.column_names:
        fail(key, column, f"a column of the data: {', '.join(dataset.column_names)}")
    values = dataset.data.column(column)
    if nulls := values.null_count:
        fail(key, f"{nulls} nulls in column {column}", "no nulls")
    if not may_be_empty and _are_strings(values) and (empty := pc.sum(pc.equal(values, "")).as_py()):
        fail(key, f"{empty} empty values in column {column}", "a value in every row")


def rename_inputs(dataset: datasets.Dataset, columns: Sequence[str], targets: Sequence[str]) -> datasets.Dataset:
    """Rename `columns` to `targets`, dropping other columns that already bear such a name."""
    taken = [name for name in targets if name in dataset.column_names and name not in columns]
    mapping = {old: new for old, new in zip(columns, targets, strict=True) if old != new}
    return dataset.remove_columns(taken).rename_columns(mapping) if mapping else dataset.remove_columns(taken)


def require_text(dataset: datasets.Dataset, column: str, key: str) -> None:
    """Raise a ConfigError unless `column` exists, without nulls, and holds strings, perhaps empty ones."""
    require_column(dataset, column, key, may_be_empty=True)
    dtype = getattr(dataset.features[column], "dtype", "nested")
    if dtype not in ("string", "large_string"):
        fail(key, f"column {column} of type {dtype}", "a column of strings")


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
    if all(_are_strings(v) for v in values):
        names = list(names) if names else sorted(pc.unique(values[0]).to_pylist())
        codes = [_codes_of_strings(v, names, column, key) for v in values]
    elif all(pa.types.is_integer(v.type) or pa.types.is_boolean(v.type) for v in values):
        names = list(names) if names else _numbers(values[0], column, key)
        for low, high in map(_range, values):
            if low < 0 or high >= len(names):
                found = f"label {low if low < 0 else high} in column {column}"
                fail(key, found, f"0..{len(names) - 1}, the labels of the training data")
        codes = [v.cast(pa.int64()).to_numpy(zero_copy_only=False) for v in values]
    else:
        allowed = "integers or strings, or task.kind=regression" if _are_numbers(values[0]) else "integers or strings"
        fail(key, f"column {column} of type {values[0].type}", allowed)
    return [_with_labels(s, column, c) for s, c in zip(splits, codes, strict=True)], tuple(names)


def normalise_numbers(
    splits: Sequence[datasets.Dataset], column: str, key: str
) -> tuple[list[datasets.Dataset], tuple[str, ...]]:
    """Replace `column` in every split by a float32 column `label`, and return the column's name as the label's.

    Raises:
        ConfigError: missing column, nulls, no numbers, or numbers that are not finite in float32.

    """
    labelled = []
    for split in splits:
        require_column(split, column, key)
        values = split.data.column(column)
        if not _are_numbers(values):
            fail(key, f"column {column} of type {values.type}", "numbers, because task.kind is regression")
        with np.errstate(over="ignore"):  # infinity is refused below
            numbers = values.to_numpy().astype(np.float32)
        if len(odd := np.flatnonzero(~np.isfinite(numbers))):
            fail(key, f"{values[int(odd[0])].as_py()} in row {odd[0]} of column {column}", "finite numbers")
        labelled.append(_with_labels(split, column, numbers))
    return labelled, (column,)


def _with_labels(dataset: datasets.Dataset, column: str, labels: np.ndarray) -> datasets.Dataset:
    return dataset.remove_columns([n for n in dataset.column_names if n in (column, LABEL)]).add_column(LABEL, labels)


def _are_numbers(values: pa.Array | pa.ChunkedArray) -> bool:
    return pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)


def _are_strings(values: pa.Array | pa.ChunkedArray) -> bool:
    return pa.types.is_string(values.type) or pa.types.is_large_string(values.type)


def _range(values: pa.Array) -> tuple[int, int]:
    low, high = pc.min_max(values).as_py().values()
    return int(low), int(high)


def _numbers(values: pa.Array, column: str, key: str) -> list[str]:
    """Name the labels of training data that has integers only: 0 to the largest."""
    low, high = _range(values)
    if low < 0 or high >= MAX_NUMBERED_LABELS:
        allowed = f"0..{MAX_NUMBERED_LABELS - 1}, or strings"
        fail(key, f"label {low if low < 0 else high} in column {column}", allowed)
    return [str(i) for i in range(high + 1)]


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
