"""A run that finds its sub-FM in the cache is the run that built it."""

import json
import os
import re

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


@pytest.fixture
def start(tmp_path):
    """Return a function that runs with a cache of its own: the result, the stages and the bytes of what was tuned."""
    settings = [*tiny_text_run(tmp_path), f"cache.dir={tmp_path / 'cache'}"]

    def run_(name, *overrides):
        titles = Titles()
        config = load_config(None, [*settings, f"output_dir={tmp_path / name}", *overrides])
        result = run(config, titles).result
        files = ("adapter/adapter_model.safetensors", "sub_fm/model.safetensors", "sub_fm/config.json")
        rounds = [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]
        measured = re.compile("seconds|utilisation|memory/")
        rounds = [{key: value for key, value in record.items() if not measured.search(key)} for record in rounds]
        assert result == json.loads((tmp_path / name / "result.json").read_text())
        return result, titles.titles, [(tmp_path / name / file).read_bytes() for file in files] + rounds

    return run_


@pytest.mark.parametrize("layers", ["[]", "[0]"], ids=["uniform", "layer 0 whole"])
def test_from_the_cache_or_built_or_without_a_cache_the_run_is_bit_identical(start, tmp_path, layers):
    setting = f"method.uncompressed_layers={layers}"
    built, built_stages, built_files = start("built", setting)
    read, read_stages, read_files = start("read", setting)
    without, without_stages, without_files = start("without", setting, "cache.enabled=false")
    assert [result["construction"]["cached"] for result in (built, read, without)] == [False, True, False]
    assert built_files == read_files == without_files
    (key,) = (path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())
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


def test_other_federated_learning_starts_from_the_same_sub_fm(start):
    built = start("built")[0]
    other = start("other", "federated={rounds: 1, lr: 1e-3, num_clients: 6}", "lora.rank=4", "align.neurons.kind=none")[
        0
    ]
    assert other["construction"]["cached"]
    assert other["construction"]["key"] == built["construction"]["key"]


def test_a_damaged_entry_does_not_change_the_run(start, tmp_path):
    files = start("built")[2]
    (tensors,) = (tmp_path / "cache").glob("*/sub_fm.safetensors")
    os.truncate(tensors, 100)
    with pytest.warns(UserWarning, match="damaged"):
        result, _, again = start("again")
    assert not result["construction"]["cached"]
    assert again == files


def test_plan_neither_reads_nor_fills_the_cache(tmp_path):
    settings = [*tiny_text_run(tmp_path), f"cache.dir={tmp_path / 'cache'}"]
    plan(load_config(None, settings))
    assert not (tmp_path / "cache").exists()
