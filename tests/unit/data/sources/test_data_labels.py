"""Which labels are classes, in which order, and what they are called."""

import datasets
import numpy as np
import pyarrow as pa
import pytest

from fedpft.config import ConfigError
from fedpft.data.sources.labels import label_codes, label_numbers, plain_integers

KEY = "task.label_column"


def split(*labels, kind=None, builder="csv", feature=None):
    column = pa.array([str(label) for label in labels] if builder == "csv" else labels, kind)
    features = datasets.Features({"y": feature}) if feature else None
    dataset = datasets.Dataset(pa.table({"y": column}), info=datasets.DatasetInfo(features=features))
    dataset.info.builder_name = builder
    return dataset


def typed(*labels, **options):
    return split(*labels, builder="parquet", **options)


def classes(*splits, names=None):
    codes, found = label_codes(splits, "y", names, KEY)
    return [array.tolist() for array in codes], found


def refusal(*splits, names=None):
    with pytest.raises(ConfigError) as error:
        label_codes(splits, "y", names, KEY)
    assert "\n" not in str(error.value)
    return str(error.value)


NAMED = {
    "plain integers of csv, whatever their digits": (split(10, 9, 10), ["9", "10"], [1, 0, 1]),
    "integers of csv with spaces": (split(" 1", "0 "), ["0", "1"], [1, 0]),
    "leading zeros": (split("001", "1", "01"), ["001", "01", "1"], [0, 2, 1]),
    "integers and a word": (split(2, 10, "x"), ["10", "2", "x"], [1, 0, 2]),
    "truth values of csv": (split("True", "False", "Unknown"), ["False", "True", "Unknown"], [1, 0, 2]),
    "decimals of csv": (split("x", "1.0"), ["1.0", "x"], [1, 0]),
    "ratings from 1": (typed(5, 1, 2, 3, 4), ["1", "2", "3", "4", "5"], [4, 0, 1, 2, 3]),
    "integers with gaps": (typed(30, 10, 10), ["10", "30"], [1, 0, 0]),
    "truth values": (typed(True, False), ["False", "True"], [1, 0]),
    "digits as strings": (typed("10", "9"), ["10", "9"], [0, 1]),
    "small unsigned integers": (typed(1, 0, kind=pa.uint8()), ["0", "1"], [1, 0]),
    "large strings": (typed("b", "a", kind=pa.large_string()), ["a", "b"], [1, 0]),
}


@pytest.mark.parametrize(("dataset", "names", "codes"), NAMED.values(), ids=NAMED)
def test_classes_are_the_labels_that_occur_in_their_order(dataset, names, codes):
    assert classes(dataset) == ([codes], tuple(names))


LISTED = {
    "names": (split("neg", "pos"), ["pos", "neg"], [1, 0]),
    "their numbers": (split(0, 1), ["pos", "neg"], [0, 1]),
    "numbers that are names": (split(1, 3), ["1", "2", "3"], [0, 2]),
    "typed numbers that are names": (typed(1, 3), ["1", "2", "3"], [0, 2]),
    "class folders in another order": (
        typed(0, 1, feature=datasets.ClassLabel(names=["a", "b"])),
        ["b", "x", "a"],
        [2, 0],
    ),
    "other words for the data's names": (
        typed(0, 1, feature=datasets.ClassLabel(names=["n01", "n02"])),
        ["cat", "dog"],
        [0, 1],
    ),
    "other words for truth values": (typed(True, False), ["no", "yes"], [1, 0]),
}


@pytest.mark.parametrize(("dataset", "names", "codes"), LISTED.values(), ids=LISTED)
def test_the_lines_of_classes_txt_are_labels_or_numbered_by_them(dataset, names, codes):
    assert classes(dataset, names=names) == ([codes], tuple(names))


def test_labels_of_csv_are_integers_only_if_they_are_in_all_splits():
    assert classes(split(10, 9), split("9")) == ([[1, 0], [0]], ("9", "10"))
    assert "label '09' in column y" in refusal(split(10, 9), split("09"))
    assert classes(split(10, 9), typed(9)) == ([[1, 0], [0]], ("9", "10"))
    assert classes(split(10, 9), typed("9")) == ([[0, 1], [1]], ("10", "9"))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ([typed(0, 1), typed("0")], "'column y with integers in the training data, strings in the evaluation data'"),
        ([typed(1, 2), typed(0)], "label 0 in column y', allowed: one of 1, 2, the labels of the training data or of"),
        ([typed(0, 1), typed(2)], "label 2 in column y', allowed: 0..1, the labels of the training data, in the eval"),
        ([typed(0, 1), typed(0.5)], "column y of type double', allowed: integers or strings, or task.kind=regression"),
        ([typed(0, None)], "found '1 nulls in column y', allowed: no nulls; the first is in row 1"),
        ([split("a", "")], "found '1 empty values in column y', allowed: a value in every row; the first is in row 1"),
        ([typed(None, None)], "found '2 nulls in column y'"),
        ([typed(0, 2**64 - 1, kind=pa.uint64())], "label 18446744073709551615 in column y"),
        ([typed(b"a", b"b")], "column y of type binary'"),
        ([typed([1], [2])], "column y of type list"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_classes_are_named_with_their_split(splits, expected):
    assert expected in refusal(*splits)


def test_a_label_of_several_json_types_is_named_with_the_rows():
    codes = pa.ExtensionArray.from_storage(datasets.Json.pa_type, pa.array(["1", '"1"', "null"]))
    dataset = datasets.Dataset(pa.table({"y": codes}))
    assert "column y of type JSON: int in row 0, str in row 1" in refusal(dataset)


def test_numbers_of_csv_that_would_each_be_a_class_are_warned_about():
    with pytest.warns(UserWarning, match=r"has numbers such as '0\.5', .* task\.kind=regression predicts numbers"):
        classes(split(0.5, 0.7, 1))


def test_numbers_of_csv_are_read_for_regression_and_what_is_none_is_named():
    (numbers,) = label_numbers([split("1.5", " -2", "1e3", ".5")], "y", KEY)
    assert numbers.tolist() == [1.5, -2.0, 1000.0, 0.5]
    assert numbers.dtype == np.float32
    for odd in ("high", "nan", "1_0", "1,5", "0x1"):
        with pytest.raises(ConfigError, match=rf"'{odd}' in row 1 of column y\", allowed: numbers, because task\.kind"):
            label_numbers([split("1", odd)], "y", KEY)


def test_plain_integers_are_of_csv_alone():
    assert plain_integers(split(7, 10), "y").tolist() == [7, 10]
    assert plain_integers(split("07", "10"), "y") is None
    assert plain_integers(typed("7", "10"), "y") is None
