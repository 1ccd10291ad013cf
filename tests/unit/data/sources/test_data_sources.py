"""Which files make a split, here and on the hub."""

import gzip
import warnings
from types import SimpleNamespace

import datasets
import pytest

from fedpft.config import ConfigError, TaskConfig
from fedpft.data.sources import rows as sources
from fedpft.data.sources.files import find_hub, find_local
from fedpft.data.sources.rows import load_hub, load_local
from fedpft.data.tasks.loading import load_task

KEY = "public.path"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(root, *names):
    """Write a row into each file, its own name; return the folder."""
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        dataset = datasets.Dataset.from_dict({"text": [name], "label": [index % 2]})
        getattr(dataset, f"to_{'parquet' if name.endswith('parquet') else 'json'}")(root / name)
    return str(root)


LAYOUTS = {
    "one file": ["train.parquet"],
    "shards": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
    "shards with a hash": ["train-00000-of-00002-590c64.parquet", "train-00001-of-00002-26b9e2.parquet"],
    "shards in data/": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
    "shards in a folder of the split": ["train/0000.parquet", "train/0001.parquet"],
    "numbered json": ["train-0.jsonl", "train-1.jsonl"],
}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_all_shards_of_a_split_are_read_in_the_order_of_their_names(tmp_path, names):
    others = ["validation.parquet", "train_extra-00000-of-00001.parquet", "test-00000-of-00001.parquet"]
    root = write(tmp_path / "data_set", *names, *others)
    assert load_local(root, "train", KEY)["text"][:] == names


def test_a_task_reads_the_hubs_layout(tmp_path):
    names = [f"{split}-0000{i}-of-00002.parquet" for split in ("train", "validation") for i in range(2)]
    config = TaskConfig(name="custom", path=write(tmp_path / "t", *names), text_columns=("text",), label_column="label")
    task = load_task(config, seed=0)
    assert (task.train["text"][:], task.evaluation["text"][:]) == (names[:2], names[2:])


def test_compressed_files_are_read(tmp_path):
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert load_local(str(tmp_path), "train", KEY)["text"][:] == ["a"]


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet", "train.jsonl"],
        ["train.parquet", "train-00000-of-00001.parquet"],
        ["train-0.parquet", "train-1.jsonl"],
        ["validation.parquet"],
    ],
)
def test_two_candidates_or_none_for_a_split_are_refused(tmp_path, names):
    with pytest.raises(ConfigError, match=r"public\.path: found .*, allowed: exactly one train\.\* file"):
        find_local(write(tmp_path, *names), "train", KEY)


def test_a_folder_may_be_read_whatever_its_files_are_called(tmp_path):
    root = write(tmp_path, "b.jsonl", "a.jsonl")
    assert [path.rpartition("/")[2] for path in find_local(root, "train", KEY, any_name=True).paths] == [
        "a.jsonl",
        "b.jsonl",
    ]


def test_missing_shards_are_warned_about(tmp_path):
    root = write(tmp_path, "train-00000-of-00041.parquet", "train-00002-of-00041.parquet")
    with pytest.warns(UserWarning, match="found 2 of 41 shards"):
        find_local(root, "train", KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_local(write(tmp_path / "whole", "train-00000-of-00001.parquet"), "train", KEY)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "x.doc").write_text("no image")
    with pytest.raises(ConfigError, match=r"public\.path: found '.*train without images'"):
        find_local(str(tmp_path), "train", KEY)


def test_csv_of_the_hub_stays_as_it_is_written(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.csv").write_text("text,label\n001,True\nNA,\n09.50,1e3\n")
    found = load_hub(str(tmp_path / "set"), None, "train", KEY)  # a folder is to the library what a repository is
    assert (found["text"][:], found["label"][:]) == (["001", "NA", "09.50"], ["True", "", "1e3"])
    assert found.info.builder_name == "csv"


def test_csv_of_the_hub_with_rows_longer_than_its_header_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.csv").write_text("text,label\na,b,c\nd,e,f\n")
    with pytest.raises(ConfigError, match=r"^public\.path: found .* rows of more fields than the header"):
        load_hub(str(tmp_path / "set"), None, "train", KEY)


def builder(**data_files):
    return lambda *_: SimpleNamespace(config=SimpleNamespace(data_files=data_files or None))


def test_files_of_the_hub_are_found_with_their_size_and_format(tmp_path, monkeypatch):
    write(tmp_path, "en/c4-train.00000-of-01024.json", "a.parquet")
    path = f"file://{tmp_path}/en/c4-train.00000-of-01024.json"
    monkeypatch.setattr(sources.datasets, "load_dataset_builder", builder(train=[path]))
    found = find_hub("some/corpus", "en", "train", KEY)
    assert (found.builder, found.paths) == ("json", (path,))
    assert found.num_bytes == (tmp_path / "en/c4-train.00000-of-01024.json").stat().st_size
    assert find_hub("some/corpus", "en", "test", KEY) is None
    monkeypatch.setattr(sources.datasets, "load_dataset_builder", builder())
    assert find_hub("some/corpus", "en", "train", KEY) is None
