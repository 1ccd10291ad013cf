"""A column of labels -> classes 0..C-1 with their names, or numbers.

Classes are the labels that the training data has, in their order; or, where the data or `classes.txt` name more, those.
In csv files, where every value is a string, a label that is a plain integer in every row of all splits is one.
"""

import re
import warnings
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpft.data.sources.columns import are_strings, require_column, type_name
from fedpft.data.sources.errors import fail

MAX_NUMBERED_LABELS = 100_000
"""Integers from here on are ids of something, not classes."""
UNTYPED = frozenset({"csv", "tsv"})
"""`DatasetInfo.builder_name` of rows whose every value is a string, whatever it stands for."""
_INTEGER = r"^\s*(0|-?[1-9][0-9]{0,17})\s*$"
"""A plain one: `007` and `1.0` are names."""
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_ALLOWED_NUMBERS = f"0..{MAX_NUMBERED_LABELS - 1}, or strings"
_TRUTHS = ["False", "True"]
_SHOWN = 12


def label_codes(
    splits: Sequence[datasets.Dataset],
    column: str,
    names: Sequence[str] | None,
    key: str,
    split_names: Sequence[str] = ("training",),
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return (rows,) int64 in 0..C-1 of each split's labels, and the C names.

    Args:
        splits: rows; the first is the training data.
        column: of the labels.
        names: the lines of `classes.txt`, or None. Labels are such lines, or else integers, the lines' numbers from 0.
        key: config key that errors name.
        split_names: for errors; those that are missing are called evaluation.

    Raises:
        ConfigError: missing column, nulls, neither integers nor strings, splits of different types, or a label that the
            training data lacks.

    """
    where = [*split_names, *["evaluation"] * len(splits)][: len(splits)]
    for split in splits:
        require_column(split, column, key)
    values = [_values(split, column, key, name) for split, name in zip(splits, where, strict=True)]
    values = _read_integers(splits, values, names)
    texts = [are_strings(v) for v in values]
    if len(set(texts)) > 1:
        found = ", ".join(
            f"{'strings' if is_text else 'integers'} in the {name} data"
            for is_text, name in zip(texts, where, strict=True)
        )
        fail(key, f"column {column} with {found}", "one of both in all of them")
    values, known, names = _classes(values, _own_names(splits[0], column), names, column, key)
    codes = [_codes(v, known, column, key, name) for v, name in zip(values, where, strict=True)]
    return codes, tuple(names)


def label_numbers(
    splits: Sequence[datasets.Dataset], column: str, key: str, split_names: Sequence[str] = ("training",)
) -> list[np.ndarray]:
    """Return (rows,) float32 of each split's labels.

    Raises:
        ConfigError: missing column, nulls, no numbers, or numbers that are not finite in float32.

    """
    where = [*split_names, *["evaluation"] * len(splits)]
    return [_numbers(split, column, key, name) for split, name in zip(splits, where, strict=False)]


def plain_integers(dataset: datasets.Dataset, column: str) -> np.ndarray | None:
    """Return (rows,) int64 of a column of strings in a csv file, if a plain integer stands in every row."""
    values = dataset.data.column(column)
    return _parse(values).to_numpy() if _are_integers(dataset, values) else None


def _values(dataset: datasets.Dataset, column: str, key: str, split: str) -> pa.ChunkedArray:
    """Return the labels of a split as strings or int64; those of class names and truth values as these names."""
    values, names = dataset.data.column(column), _own_names(dataset, column)
    if names is not None:
        codes = values.cast(pa.int64())
        if wrong := [code for code in pc.unique(codes).to_pylist() if not 0 <= code < len(names)]:
            fail(key, f"label {min(wrong)} in column {column}", _allowed(range(len(names)), split))
        return pa.chunked_array([pa.array(names, pa.string()).take(chunk) for chunk in codes.chunks], pa.string())
    if pa.types.is_integer(values.type):
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:
            fail(key, f"label {pc.max(values).as_py()} in column {column}", _ALLOWED_NUMBERS)
    if are_strings(values):
        return values.cast(pa.large_string())
    hint = ", or task.kind=regression" if _are_numbers(values) else ""
    fail(key, f"column {column} of type {type_name(dataset, column)}", f"integers or strings{hint}{_also(split)}")


def _own_names(dataset: datasets.Dataset, column: str) -> list[str] | None:
    """Return the names that the data itself has for its codes, if they are codes."""
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    return _TRUTHS if pa.types.is_boolean(dataset.data.column(column).type) else None


def _read_integers(
    splits: Sequence[datasets.Dataset], values: Sequence[pa.ChunkedArray], names: Sequence[str] | None
) -> list[pa.ChunkedArray]:
    """Turn strings of csv files into the integers that they are, unless `names` has them, or another split strings."""
    if names is not None and are_strings(values[0]) and set(pc.unique(values[0]).to_pylist()) <= set(names):
        return list(values)
    numbered = [_are_integers(split, v) for split, v in zip(splits, values, strict=True)]
    if any(are_strings(v) and not is_number for v, is_number in zip(values, numbered, strict=True)):
        return list(values)
    return [_parse(v) if is_number else v for v, is_number in zip(values, numbered, strict=True)]


def _are_integers(dataset: datasets.Dataset, values: pa.ChunkedArray) -> bool:
    untyped = dataset.info.builder_name in UNTYPED and are_strings(values)
    return untyped and bool(pc.all(pc.match_substring_regex(values, _INTEGER)).as_py())


def _parse(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(values).cast(pa.int64())


def _classes(
    values: Sequence[pa.ChunkedArray], own: Sequence[str] | None, given: Sequence[str] | None, column: str, key: str
) -> tuple[list[pa.ChunkedArray], Sequence[object], Sequence[str]]:
    """Return the labels, all that there can be, in the order of their codes, and the names of these."""
    found = pc.unique(values[0]).to_pylist()
    if not are_strings(values[0]) and given is not None and {str(label) for label in found} <= set(given):
        values = [v.cast(pa.string()) for v in values]  # numbers that are names
    if are_strings(values[0]):
        if given is None and own is None:
            _warn_of_numbers(found, column, key)
            known: Sequence[object] = sorted(found)
        elif given is not None and own is not None and len(given) == len(own) and not set(given) & set(own):
            known = own  # other words for the data's own names
        else:
            known = (own or []) if given is None else given
        return list(values), known, [str(label) for label in known] if given is None else given
    if given is not None:
        return list(values), range(len(given)), given
    known = sorted(found)
    if known[0] < 0 or known[-1] >= MAX_NUMBERED_LABELS:
        fail(key, f"label {known[0] if known[0] < 0 else known[-1]} in column {column}", _ALLOWED_NUMBERS)
    return list(values), known, [str(label) for label in known]


def _codes(values: pa.ChunkedArray, known: Sequence[object], column: str, key: str, split: str) -> np.ndarray:
    codes = pc.index_in(values, value_set=pa.array(known, values.type))
    if codes.null_count:
        unknown = values.filter(pc.is_null(codes))[0].as_py()
        fail(key, f"label {unknown!r} in column {column}", _allowed(known, split))
    return codes.cast(pa.int64()).to_numpy()


def _allowed(known: Sequence[object], split: str) -> str:
    if list(known) == list(range(len(known))):
        return f"0..{len(known) - 1}, the labels of the training data{_also(split)}"
    shown = ", ".join(map(str, known[:_SHOWN])) + (", ..." if len(known) > _SHOWN else "")
    return f"one of {shown}, the labels of the training data or of classes.txt{_also(split)}"


def _also(split: str) -> str:
    return "" if split == "training" else f", in the {split} data too"


def _warn_of_numbers(found: Sequence[str], column: str, key: str) -> None:
    if any("." in label for label in found) and all(_NUMBER.fullmatch(label) for label in found):
        warnings.warn(
            f"{key}: column {column} has numbers such as {found[0]!r}, and each of the {len(found)} is a class; "
            "task.kind=regression predicts numbers",
            stacklevel=2,
        )


def _numbers(dataset: datasets.Dataset, column: str, key: str, split: str) -> np.ndarray:
    values = dataset.data.column(column)
    if dataset.info.builder_name in UNTYPED and are_strings(values):
        texts = values.to_pylist()
        for row, text in enumerate(texts):
            if not _NUMBER.fullmatch(text):
                allowed = f"numbers, because task.kind is regression{_also(split)}"
                fail(key, f"{text!r} in row {row} of column {column}", allowed)
        wide = np.array([float(text) for text in texts])
    elif _are_numbers(values):
        wide = values.to_numpy()
    else:
        allowed = f"numbers, because task.kind is regression{_also(split)}"
        fail(key, f"column {column} of type {type_name(dataset, column)}", allowed)
    with np.errstate(over="ignore"):  # infinity is refused below
        numbers = wide.astype(np.float32)
    if len(odd := np.flatnonzero(~np.isfinite(numbers))):
        found = f"{values[int(odd[0])].as_py()} in row {odd[0]} of column {column}"
        fail(key, found, f"finite numbers{_also(split)}")
    return numbers


def _are_numbers(values: pa.Array | pa.ChunkedArray) -> bool:
    return pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)
