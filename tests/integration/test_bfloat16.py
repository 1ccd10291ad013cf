"""Whole runs whose frozen weights are bfloat16."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fedpft.config import ConfigError, load_config
from fedpft.federated.observer import SilentObserver
from fedpft.run.export import export
from fedpft.run.finished import tuned_fm, tuned_sub_fm
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.run.resume import go_on
from tests.tiny import tiny_text_run

BF16 = torch.bfloat16
SETTINGS = ["fm.dtype=bfloat16", "server.precision=bf16-mixed", "federated.rounds=3", "evaluation.interval=3"]
SETTINGS += ["method.plug_in=distill", "align.adapter={num_steps: 3, batch_size: 4}"]
MEASURED = ("seconds", "utilisation", "memory", "cached")


class StopBefore(SilentObserver):
    """Ends the run when a round begins."""

    def __init__(self, round_index):
        self.round_index = round_index

    def round_started(self, round_index, num_rounds, client_ids):
        if round_index == self.round_index:
            raise KeyboardInterrupt


def numbers(folder):
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(part in k for part in MEASURED)} for line in lines]


def tensors(folder):
    names = ("adapter/adapter_model", "sub_fm/model", "sub_fm_adapter/adapter_model")
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in names}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_text_run(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Run once, with an alignment of neurons after round 2; return config and folder."""
    folder = tmp_path_factory.mktemp("run") / "out"
    config = load_config(None, [*data, *SETTINGS, f"output_dir={folder}"])
    run(config)
    return config, folder


def test_what_a_run_leaves_is_bfloat16_but_for_a_float32_adapter(finished):
    _, folder = finished
    sub_fm = load_file(folder / "sub_fm/model.safetensors")
    assert {t.dtype for name, t in sub_fm.items() if not name.startswith("classifier")} == {BF16}
    for name in ("adapter", "sub_fm_adapter"):
        assert {t.dtype for t in load_file(folder / name / "adapter_model.safetensors").values()} == {torch.float32}


def test_a_run_is_near_the_one_in_float32(data, finished, tmp_path):
    config = load_config(None, [*data, *SETTINGS, "fm.dtype=float32", f"output_dir={tmp_path / 'out'}"])
    run(config)
    for expected, found in zip(numbers(tmp_path / "out"), numbers(finished[1]), strict=True):
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)


def test_a_run_that_was_stopped_after_an_alignment_goes_on_to_the_same_bits(data, finished, tmp_path):
    config = load_config(None, [*data, *SETTINGS, f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(KeyboardInterrupt):
        run(config, StopBefore(3))
    go_on(config)
    assert tensors(tmp_path / "out") == tensors(finished[1])
    assert numbers(tmp_path / "out") == numbers(finished[1])


def test_a_finished_runs_models_open_in_bfloat16(finished):
    config, folder = finished
    result = json.loads((folder / "result.json").read_text())
    for model in (tuned_fm(folder, config, result), tuned_sub_fm(folder)):
        assert model.base_model.model.bert.embeddings.word_embeddings.weight.dtype == BF16


def test_a_merged_export_answers_as_the_run_did(finished, tmp_path):
    folder = export(finished[1], tmp_path / "export", merge=True)
    weights = load_file(folder / "model.safetensors")
    assert {t.dtype for name, t in weights.items() if name.startswith("bert.")} == {BF16}


def test_a_plan_counts_half_the_memory_for_frozen_weights(data):
    configs = [load_config(None, [*data, *SETTINGS, f"fm.dtype={dtype}"]) for dtype in ("float32", "bfloat16")]
    plans = [plan(config, counts_memory=False) for config in configs]
    expected, found = (p["local_step"]["memory_bytes_fm"] for p in plans)
    assert 0.3 * expected < found < 0.9 * expected


def test_another_type_is_another_run(data, finished):
    other = load_config(None, [*data, *SETTINGS, "fm.dtype=float32", f"output_dir={finished[1]}"])
    with pytest.raises(ConfigError, match=r"fm\.dtype: .*bfloat16.* -> .*float32"):
        go_on(other)
