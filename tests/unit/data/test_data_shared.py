"""Rows that every node reads itself: the same as those that are sent, made once, checked, and never others."""

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fedpft.config import ConfigError, load_config
from fedpft.construct.store import Store, clear_cache
from fedpft.data.collate import prepared_rows
from fedpft.data.shared import SharedTask, opened
from fedpft.federated.adversary.clients import Adversaries
from fedpft.federated.adversary.poison import poisoned
from fedpft.run.inputs import load_data
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_causal_run, tiny_text_run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Let each test begin with an empty cache."""
    monkeypatch.setenv("FEDPFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def image_run(folder: Path) -> list[str]:
    """Write two classes of images of several sizes; return the settings of a run on them."""
    rng = np.random.default_rng(0)
    for split, size in (("train", 12), ("validation", 6), ("public", 6)):
        for number in range(size):
            root = folder / ("public/train" if split == "public" else f"images/{split}")
            file = root / "ab"[number % 2] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9 + number % 3, 8, 3), dtype=np.uint8)).save(file)
    return [
        "fm.path=scratch://vit",
        "fm.config={hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2, intermediate_size: 24, "
        "image_size: 8, patch_size: 4}",
        f"task={{name: custom, path: {folder / 'images'}, image_column: image, label_column: label}}",
        f"public={{name: custom, path: {folder / 'public'}, image_column: image}}",
        "federated={num_clients: 3, clients_per_round: 3}",
    ]


def json_run(folder: Path) -> list[str]:
    """Return the settings of a run whose clients are the values of a column, on a file whose types differ by row."""
    settings = tiny_text_run(folder)
    frame = pd.read_csv(folder / "task" / "train.csv").assign(who=[f"p{row % 4}" for row in range(48)])
    (folder / "task" / "train.csv").unlink()
    frame.to_json(folder / "task" / "train.jsonl", orient="records", lines=True)
    natural = "federated.partition={kind: natural, column: who}"
    return [*settings, natural, "federated.num_clients=4", "task.max_train_examples=40"]


def parquet_run(folder: Path) -> list[str]:
    """Return the settings of a run on shards, of which a part is held out to evaluate on."""
    settings = tiny_text_run(folder)
    frame = pd.read_csv(folder / "task" / "train.csv")
    for number in range(2):
        frame.iloc[number::2].to_parquet(folder / "task" / f"train-0000{number}-of-00002.parquet", row_group_size=7)
    for name in ("train", "validation"):
        (folder / "task" / f"{name}.csv").unlink()
    return [*settings, "task.eval_ratio=0.25"]


RUNS = {
    "csv": tiny_text_run,
    "json, natural": json_run,
    "parquet, held out": parquet_run,
    "instructions": lambda folder: [*tiny_causal_run(folder, label_column="topic"), "fm.max_length=12"],
    "images": image_run,
}


def loaded(settings: list[str], data: str = "shared"):
    return load_data(load_config(None, [*settings, f"task.data={data}"]), SilentProgress())


def batches(data) -> list[dict[str, torch.Tensor]]:
    """Return what models see: a batch of each client's rows, and the evaluation set."""
    shards = [(data.train, data.partition.shard(client)) for client in range(data.partition.num_clients)]
    every = [*shards, (data.evaluation, range(len(data.evaluation)))]
    return [data.collate(prepared_rows(dataset, indices, data.collate)) for dataset, indices in every]


@pytest.mark.parametrize("write", RUNS.values(), ids=RUNS)
@pytest.mark.filterwarnings("ignore:fm.max_length")
def test_rows_read_by_nodes_are_those_that_are_sent(write, tmp_path, cache):
    settings = write(tmp_path)
    sent, first, again = loaded(settings, "broadcast"), loaded(settings), loaded(settings)
    for shared in (first, again):
        assert np.array_equal(sent.partition.order, shared.partition.order)
        assert sent.label_names == shared.label_names
        for expected, found in zip(batches(sent), batches(shared), strict=True):
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[name], found[name]) for name in expected)
    (entry,) = (path for path in cache.iterdir() if path.is_dir() and path.name != "digests")
    assert {file.name for file in entry.iterdir()} == {"train.arrow", "evaluation.arrow", "entry.json"}
    assert opened(first.shared).cache_files, "mapped"


def test_a_description_travels_in_place_of_rows(tmp_path):
    data = loaded(tiny_text_run(tmp_path))
    arrived = pickle.loads(pickle.dumps(data.shared))
    assert opened(arrived)[:] == data.train[:]


def test_a_warning_about_the_rows_is_said_again_when_they_come_from_the_cache(tmp_path):
    settings = [*tiny_causal_run(tmp_path), "fm.max_length=12"]
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"fm.max_length: dropped \d+ of 48 training"):
            loaded(settings)


def test_a_changed_file_or_setting_never_meets_the_rows_of_before(tmp_path):
    settings = tiny_text_run(tmp_path)
    keys = {loaded(settings).shared.task.key, loaded([*settings, "fm.max_length=8"]).shared.task.key}
    file = tmp_path / "task" / "train.csv"
    file.write_text(file.read_text() + "w1 w2,1\n")
    data = loaded(settings)
    assert len(data.train) == 49
    assert len(keys | {data.shared.task.key}) == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(file.read_bytes().replace(b"\x04\x00\x00\x00", b"\x05\x00\x00\x00")),
        lambda file: file.unlink(),
        lambda file: file.with_name("entry.json").write_text("{}"),
    ],
    ids=["cut", "changed", "gone", "no entry"],
)
def test_a_damaged_cache_is_noticed_and_made_again(harm, tmp_path):
    settings = tiny_text_run(tmp_path)
    first = loaded(settings)
    expected = first.train[:]
    harm(first.shared.task.folder / "train.arrow")
    with pytest.warns(UserWarning, match="is damaged: its rows are made again"):
        assert loaded(settings).train[:] == expected


def test_places_that_come_at_once_make_the_rows_once(tmp_path, monkeypatch, cache):
    shared = loaded(tiny_text_run(tmp_path)).shared
    expected = shared.open()[:]
    moved = replace(shared, task=replace(shared.task, cache=tmp_path / "another"))
    made, prepare = [], SharedTask._prepared
    monkeypatch.setattr(SharedTask, "_prepared", lambda task: made.append(task) or prepare(task))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: moved.open()[:], range(4)))
    assert len(made) == 1
    assert all(rows == expected for rows in found)


def test_what_a_killed_maker_left_is_no_entry(tmp_path):
    shared = loaded(tiny_text_run(tmp_path)).shared
    moved = replace(shared, task=replace(shared.task, cache=tmp_path / "another"))
    unfinished = moved.task.folder.with_name(f".{moved.task.key}")
    unfinished.mkdir(parents=True)
    (unfinished / "train.arrow").write_bytes(b"half")
    assert moved.open()[:] == shared.open()[:]
    assert not unfinished.exists()


def test_a_node_that_sees_other_files_is_named(tmp_path):
    shared = loaded(tiny_text_run(tmp_path)).shared
    there = replace(shared, task=replace(shared.task, cache=tmp_path / "another"))
    assert len(there.open())
    file = tmp_path / "task" / "train.csv"
    file.write_text(file.read_text().replace("w1", "w2"))
    elsewhere = replace(shared, task=replace(shared.task, cache=tmp_path / "a third"))
    with pytest.raises(ConfigError, match=rf"task\.data: found 'node \S+ with another file than the driver: {file}'"):
        elsewhere.open()
    with pytest.raises(ConfigError, match=r"task\.data: found 'node \S+ that makes other rows of"):
        replace(shared, digest="0").open()


def test_rows_that_are_in_memory_or_in_a_package_can_only_be_sent():
    for task in ("{name: custom, path: 'memory://0', text_columns: [text]}", "{name: stdlib_docs}"):
        with pytest.raises(ConfigError, match=r"^task\.data: found 'shared', allowed: broadcast, because"):
            loaded([f"task={task}"])


def test_rows_of_adversaries_come_behind_those_of_the_file(tmp_path):
    settings = [*tiny_text_run(tmp_path), "federated.adversary={kind: label_flip, fraction: 0.25}"]
    config = load_config(None, settings)
    adversaries = Adversaries(config=config.federated.adversary, seed=0, clients=frozenset({1}))
    made = [poisoned(config, loaded(settings, way), adversaries) for way in ("broadcast", "shared")]
    (sent, partition), (shared, same) = made
    assert opened(shared)[:] == opened(sent)[:]
    assert np.array_equal(partition.order, same.order)


def test_rows_that_somebody_has_mapped_are_not_cleared_away(tmp_path, cache):
    data = loaded(tiny_text_run(tmp_path))
    (entry,) = Store(cache).entries()
    assert (entry.key, entry.content["num_examples"]) == (data.shared.task.key, 48)
    assert str(tmp_path / "task") in entry.content["origin"]
    assert clear_cache(cache.parent)[1].num_in_use == 1
    assert len(data.train[:]["label"]) == 48
    del data
    gc.collect()
    assert clear_cache(cache.parent)[1].num_entries == 1
    assert Store(cache).entries() == []


def hub_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """Let a folder stand in for a data set on the hub; return the settings of a run on it, and its training file."""
    settings, load = tiny_text_run(folder), datasets.load_dataset

    def hub(path: str, *arguments: object, revision: str | None = None, **how: object) -> datasets.Dataset:
        assert path == "some/task"
        return load(str(folder / "task"), *arguments, **how)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hub")
    return [*settings, "task.path=some/task"], folder / "task" / "train.csv"


def test_rows_of_the_hub_are_those_that_are_sent(tmp_path, monkeypatch):
    settings, _ = hub_run(tmp_path, monkeypatch)
    sent, shared = loaded(settings, "broadcast"), loaded(settings)
    for expected, found in zip(batches(sent), batches(shared), strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert sorted(shared.shared.task.contents) == ["some/task  train", "some/task  validation"]
    elsewhere = replace(shared.shared, task=replace(shared.shared.task, cache=tmp_path / "another"))
    assert opened(pickle.loads(pickle.dumps(elsewhere)))[:] == sent.train[:]


def test_a_node_to_which_the_hub_gives_other_rows_is_named(tmp_path, monkeypatch):
    settings, file = hub_run(tmp_path, monkeypatch)
    shared = loaded(settings).shared
    file.write_text(file.read_text().replace("w1", "w2"))
    there = replace(shared, task=replace(shared.task, cache=tmp_path / "another"))
    with pytest.raises(
        ConfigError, match=r"^task\.data: found 'node \S+ with another file .*: some/task  train'"
    ) as error:
        there.open()
    assert "\n" not in str(error.value)
