"""Values of csv, tsv and JSON files are what is written there, and what is wrong in a file is named with its place."""

import csv
import io
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpft.config import ConfigError
from fedpft.data.sources.csv_files import csv_tables
from fedpft.data.sources.json_files import join_tables, json_tables
from fedpft.data.sources.rows import load_local

KEY = "task.path"
FAST = settings(max_examples=60, derandomize=True, deadline=None, database=None)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
LIKE_OTHERS = [
    "001",
    "09.50",
    "1e5",
    "NA",
    "",
    "None",
    "True",
    "2021-01-10",
    "012",
    "nan",
    " 1 ",
    '"',
    "a,b",
    "\ufeff",
    "\0",
]


def load(folder, **files):
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_local(str(folder), "train", KEY)


def refusal(folder, **files):
    with pytest.raises(ConfigError) as error:
        load(folder, **files)
    assert "\n" not in str(error.value)
    return str(error.value)


@FAST
@given(st.lists(st.tuples(TEXTS | st.sampled_from(LIKE_OTHERS), TEXTS), max_size=8), st.sampled_from(",\t"), st.data())
def test_every_field_of_a_csv_file_is_read_as_it_was_written(rows, delimiter, data):
    end, mark = data.draw(st.sampled_from(["\n", "\r\n"])), data.draw(st.sampled_from(["", "\ufeff"]))
    buffer = io.StringIO(newline="")
    bare = "\r" not in "".join(map("".join, rows))  # which the library's writer leaves without quotes
    quoting = csv.QUOTE_MINIMAL if bare and data.draw(st.booleans()) else csv.QUOTE_ALL
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("text", "label"), *rows])
    stream = io.BytesIO((mark + buffer.getvalue()).encode())
    table = pa.concat_tables(csv_tables(stream, data.draw(st.integers(1, 4)), delimiter))
    assert list(zip(*table.to_pydict().values(), strict=True)) == rows
    assert table.schema.types == [pa.string()] * 2


JSON_VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXTS
JSON_VALUES |= st.sampled_from(LIKE_OTHERS) | st.lists(st.integers(), max_size=2)


@FAST
@given(st.lists(st.fixed_dictionaries({"a": JSON_VALUES}, optional={"b": TEXTS}), min_size=2), st.booleans())
def test_every_value_of_a_json_file_is_read_as_it_was_written(rows, as_lines):
    text = "\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows, indent=1)
    table = join_tables([*json_tables(io.BytesIO(text.encode()), 2)])
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()
        if column.type == datasets.Json.pa_type:
            values = [None if value is None else json.loads(value) for value in values]
        assert values == [row.get(name) for row in rows]


def test_the_kind_of_a_column_does_not_depend_on_how_many_rows_are_read_at_once():
    text = "\n".join(json.dumps({"a": value}) for value in [None, 1, 2, 0.5, "x"])
    types = [join_tables([*json_tables(io.BytesIO(text.encode()), size)]).schema for size in (1, 2, 5)]
    assert types[0] == types[1] == types[2]


def test_a_json_file_may_hold_columns(tmp_path):
    columns = {"text": ["a", "b"], "n": [1, 2]}
    assert load(tmp_path, **{"train.json": json.dumps(columns, indent=1)}).to_dict() == columns


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train.csv", "text,label\na,1\nmovie,I loved it,1\n", "line 3: a row of 3 fields, but a header of 2: text"),
        ("train.csv", 'text,label\n"a\nb",1\nc\n', "line 4: a row of 1 fields, but a header of 2"),
        ("train.csv", "text,label\na,1,\n", "line 2: a row of 3 fields"),
        ("train.csv", 'text,label\n"a,1\nb,2\n', "unexpected end of data"),
        ("train.csv", 'text,label\n"a"b,1\n', "line 2: \\',\\' expected after"),
        ("train.csv", "text,label,text\na,1,b\n", "the header has 'text' more than once"),
        ("train.csv", b"text,label\ncaf\xe9,1\n", "no UTF-8"),
        ("train.csv", "text\na\n".encode("utf-16"), "no UTF-8"),
        ("train.csv", "", "no header"),
        ("train.csv", "text,label\n", "no rows"),
        ("train.tsv", "text\tlabel\na\tb\tc\n", "line 2: a row of 3 fields"),
        ("train.csv.gz", b"\x1f\x8b\x08", "EOFError"),
        ("train.jsonl", '{"text": "a"}\n{"text": \n', "line 2: column 9: Expecting value"),
        ("train.jsonl", '{"text": "a"}\n["a"]\n', 'line 2: no object but ["a"]'),
        ("train.json", '{"text": "a", "text": "b"}', "'text' twice in one object"),
        ("train.json", '{"text": "\\ud800"}', "a text that is no Unicode"),
        ("train.json", "[1]", "element 0: no object but 1"),
        ("train.json", "[" * 20_000, "too deep"),
        ("train.json", '"text"', "no object"),
        ("train.json", "", "no rows"),
        ("train.parquet", b"", "ArrowInvalid"),
        ("train.txt", b"caf\xe9\n", "no UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_said_in_one_line_with_its_name(tmp_path, name, content, expected):
    message = refusal(tmp_path, **{name: content})
    assert message.startswith("task.path: found ")
    assert str(tmp_path / name) in message
    assert expected in message


def test_shards_must_have_the_same_columns(tmp_path):
    assert "a column label in" in refusal(tmp_path, **{"train-0.csv": "text,label\na,1\n", "train-1.csv": "text\na\n"})


def test_columns_of_parquet_that_only_store_values_in_another_way_are_these_values(tmp_path):
    words = pa.array(["a", "b", "a"])
    columns = {"category": words.dictionary_encode(), "view": words.cast(pa.string_view())}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert load(tmp_path).to_dict() == {name: ["a", "b", "a"] for name in columns}


def test_a_column_that_no_feature_stands_for_is_left_out_and_named(tmp_path):
    odd = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"text": ["a"], "odd": odd}), tmp_path / "train.parquet")
    with pytest.warns(UserWarning, match=r"left out column odd of type map<string, int64"):
        assert load(tmp_path).column_names == ["text"]


def test_shards_of_parquet_that_number_classes_differently_are_refused(tmp_path):
    for shard, names in enumerate((["a", "b"], ["b", "a"])):
        features = datasets.Features({"label": datasets.ClassLabel(names=names)})
        datasets.Dataset.from_dict({"label": [0]}, features=features).to_parquet(tmp_path / f"train-{shard}.parquet")
    assert "shards with other classes in column label" in refusal(tmp_path)


def test_what_save_to_disk_wrote_is_read_with_and_without_splits(tmp_path):
    dataset = datasets.Dataset.from_dict({"text": ["a"]})
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    for folder in ("one", "splits"):
        assert load_local(str(tmp_path / folder), "train", KEY).to_dict() == {"text": ["a"]}
    with pytest.raises(ConfigError, match=r"one data set saved to disk, for the split validation', allowed: one saved"):
        load_local(str(tmp_path / "one"), "validation", KEY)
    (tmp_path / "one/data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^task\.path: found .*allowed: what save_to_disk wrote"):
        load_local(str(tmp_path / "one"), "train", KEY)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_data_that_replace_others_under_the_same_time_are_read_and_none_stay_behind(tmp_path, monkeypatch, suffix):
    for variable in ("HF_DATASETS_CACHE", "HF_DATASETS_DOWNLOADED_DATASETS_PATH", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, variable, tmp_path / "cache", raising=False)
    write = {"jsonl": "to_json"}.get(suffix, f"to_{suffix}")
    (tmp_path / "data").mkdir()
    for text in ("old", "new"):
        getattr(datasets.Dataset.from_dict({"text": [text]}), write)(tmp_path / f"data/train.{suffix}")
        os.utime(tmp_path / f"data/train.{suffix}", (0, 0))
        assert load_local(str(tmp_path / "data"), "train", KEY)["text"][:] == [text]
    assert not (tmp_path / "cache").exists()
