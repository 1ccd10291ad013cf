"""Whatever a data set calls its columns -> `text` (, `text_pair`) or `image`, and `label`."""

import json
from collections.abc import Mapping

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpft.data.sources.errors import fail
from fedpft.data.sources.subsets import without

TEXT, TEXT_PAIR, IMAGE, LABEL = "text", "text_pair", "image", "label"
PIXELS = "pixels"
"""An image as the FM's processor makes it, in NumPy's own format for files."""
PROMPT, RESPONSE, PROMPT_LENGTH = "prompt", "response", "prompt_length"
"""Of instruction data, see `fedpft.data.tasks.instructions`."""


def require_column(dataset: datasets.Dataset, column: str, key: str, *, may_be_empty: bool = False) -> None:
    """Raise a ConfigError unless `column` exists (the message names those that do) and has a value in every row.

    Args:
        dataset: the rows.
        column: its name.
        key: config key that errors name.
        may_be_empty: whether an empty string is a value; in a csv file it is all that a missing one leaves.

    """
    if column not in dataset.column_names:
        shown = (name if name == name.strip() else repr(name) for name in dataset.column_names)
        fail(key, column, f"a column of the data: {', '.join(shown)}")
    missing = missing_rows(dataset, column, may_be_empty=may_be_empty)
    if not missing.any():
        return
    first = f"the first is in row {missing.argmax()}"
    if nulls := dataset.data.column(column).null_count:
        fail(key, f"{nulls} nulls in column {column}", f"no nulls; {first}")
    fail(key, f"{missing.sum()} empty values in column {column}", f"a value in every row; {first}")


def missing_rows(dataset: datasets.Dataset, column: str, *, may_be_empty: bool = False) -> np.ndarray:
    """Return (rows,) bool: where the column is null or, unless it `may_be_empty`, an empty string."""
    values = dataset.data.column(column)
    missing = pc.is_null(values)
    if not may_be_empty and are_strings(values):
        missing = pc.or_(missing, pc.fill_null(pc.equal(values, ""), False))
    return missing.to_numpy()


def with_values(dataset: datasets.Dataset, columns: Mapping[str, bool], split: str, key: str) -> datasets.Dataset:
    """Return a data set without the rows that lack a value, and count them in a warning.

    Args:
        dataset: the rows.
        columns: name -> whether an empty string is a value; those that are missing are for others to refuse.
        split: what the rows are called there.
        key: config key that errors name.

    Raises:
        ConfigError: no row is left.

    """
    flaws: dict[int, str] = {}
    for column, may_be_empty in columns.items():
        if column in dataset.column_names:
            missing = np.flatnonzero(missing_rows(dataset, column, may_be_empty=may_be_empty))
            flaws |= {int(row): f"no {column} in row {row}" for row in missing}
    return without(dataset, flaws, split, key)


def require_text(dataset: datasets.Dataset, column: str, key: str) -> None:
    """Raise a ConfigError unless `column` exists, without nulls, and holds strings, perhaps empty ones."""
    require_column(dataset, column, key, may_be_empty=True)
    if not are_strings(dataset.data.column(column)):
        fail(key, f"column {column} of type {type_name(dataset, column)}", "a column of strings")


def type_name(dataset: datasets.Dataset, column: str) -> str:
    """Return what a column holds, in a word; of JSON of several types, which and where they first occur."""
    feature = dataset.features[column]
    if not isinstance(feature, datasets.Json):
        return str(dataset.data.column(column).type)
    first: dict[str, int] = {}
    for row, value in enumerate(dataset.data.column(column).to_pylist()):
        if value is not None:
            first.setdefault(type(json.loads(value) if isinstance(value, str) else value).__name__, row)
    return "JSON: " + ", ".join(f"{name} in row {row}" for name, row in first.items())


def are_strings(values: pa.Array | pa.ChunkedArray) -> bool:
    """Whether an Arrow array holds strings."""
    return pa.types.is_string(values.type) or pa.types.is_large_string(values.type)


def rename_inputs(dataset: datasets.Dataset, inputs: Mapping[str, str], *without: str) -> datasets.Dataset:
    """Return the data set with some of its columns under other names, all others under their own.

    Args:
        dataset: the rows.
        inputs: new name -> column; no column twice. Others that bear such a name are dropped.
        without: further columns to drop, unless they are inputs.

    """
    others = [name for name in dataset.column_names if name not in (*inputs, *inputs.values(), *without)]
    chosen = dataset.select_columns([*inputs.values(), *others])
    return chosen.rename_columns({column: name for name, column in inputs.items() if name != column})
