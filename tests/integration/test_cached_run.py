"""A run that finds its sub-FM in the cache is the run that built it."""

import json
import os
import re
import shutil

import pytest

from fedpft.config import load_config
from fedpft.federated.observer import SilentObserver
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from tests.tiny import tiny_text_run


class Titles(SilentObserver):
    """Keeps the stages' titles."""

    def __init__(self):
        self.titles = []

    def stage(self, title):
        self.titles.append(title)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start(folder):
    """Return a function that runs with a cache of its own: the result, the stages and the bytes of what was tuned."""
    settings = [*tiny_text_run(folder), f"cache.dir={folder / 'cache'}", "method.uncompressed_layers=[0]"]
    settings += ["federated.rounds=2", "align.neurons.interval=1"]

    def run_(name, *overrides):
        titles = Titles()
        config = load_config(None, [*settings, f"output_dir={folder / name}", *overrides])
        result = run(config, titles).result
        files = ("adapter/adapter_model.safetensors", "sub_fm/model.safetensors", "sub_fm/config.json")
        rounds = [json.loads(line) for line in (folder / name / "rounds.jsonl").read_text().splitlines()]
        measured = re.compile("seconds|utilisation|memory/")
        rounds = [{key: value for key, value in record.items() if not measured.search(key)} for record in rounds]
        assert result == json.loads((folder / name / "result.json").read_text())
        return result, titles.titles, [(folder / name / file).read_bytes() for file in files] + rounds

    return run_


@pytest.fixture(scope="module")
def built(start):
    """Run for the first time."""
    return start("built")


def test_from_the_cache_or_built_or_without_a_cache_the_run_is_bit_identical(start, built, folder):
    built, built_stages, built_files = built
    read, read_stages, read_files = start("read")
    without, without_stages, without_files = start("without", "cache.enabled=false")
    assert [result["construction"]["cached"] for result in (built, read, without)] == [False, True, False]
    assert built_files == read_files == without_files
    (key,) = (path.name for path in (folder / "cache").iterdir() if path.is_dir())
    assert built["construction"]["key"] == read["construction"]["key"] == key
    assert without["construction"]["key"] is None
    for digest in (lambda result: result["fm_digest"], lambda result: result["construction"]["digest"]):
        assert len({digest(result) for result in (built, read, without)}) == 1
    for loss in ("align_loss_first", "align_loss_last"):
        assert built["construction"][loss] == read["construction"][loss] == without["construction"][loss] > 0
    work = {"construct sub-FM", "align layers"}
    assert work <= set(built_stages)
    assert "sub-FM from cache" in read_stages
    assert work & set(read_stages) == set()
    assert "sub-FM from cache" not in built_stages + without_stages


def test_other_federated_learning_starts_from_the_same_sub_fm(start, built):
    others = ("federated={rounds: 1, lr: 1e-3, num_clients: 6}", "lora.rank=4", "align.neurons.kind=none")
    other, *_ = start("other", *others)
    assert other["construction"]["cached"]
    assert other["construction"]["key"] == built[0]["construction"]["key"]


def test_a_damaged_entry_does_not_change_the_run(start, built, folder, tmp_path):
    shutil.copytree(folder / "cache", tmp_path / "cache")
    (tensors,) = (tmp_path / "cache").glob("*/sub_fm.safetensors")
    os.truncate(tensors, 100)
    with pytest.warns(UserWarning, match="damaged"):
        result, _, again = start("again", f"cache.dir={tmp_path / 'cache'}")
    assert not result["construction"]["cached"]
    assert again == built[2]


def test_plan_neither_reads_nor_fills_the_cache(tmp_path):
    settings = [*tiny_text_run(tmp_path), f"cache.dir={tmp_path / 'cache'}"]
    plan(load_config(None, settings), counts_memory=False)
    assert not (tmp_path / "cache").exists()
