"""Runs from Python: the numbers of the command line, data in memory, a method of one's own, and what a result gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedpft
from fedpft.federated.observer import SilentObserver
from fedpft.methods.proxy_tuning import ProxyTuning
from tests.tiny import tiny_batch, tiny_text_run


class OwnMethod(ProxyTuning):
    """FedPFT with nothing of its own but the name."""


class Watching(SilentObserver):
    """Counts rounds."""

    rounds = 0

    def round_finished(self, record: Any) -> None:
        self.rounds += 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the same run three times: its files, its data in memory, and an own method."""
    folder = tmp_path_factory.mktemp("api")
    config = fedpft.load_config(None, [*tiny_text_run(folder), "federated.rounds=2", "align.neurons.interval=1"])
    tables = {
        "train": pd.read_csv(folder / "task/train.csv"),
        "validation": pd.read_csv(folder / "task/validation.csv"),
        "public": pd.read_csv(folder / "public/train.csv")[["text"]],
    }
    undescribed = replace(
        config,
        output_dir=str(folder / "memory"),
        task=fedpft.TaskConfig(),
        public=fedpft.PublicConfig(chunk_length=10),
    )
    own = replace(config, output_dir=str(folder / "own"), name="own")
    watching = Watching()
    return {
        "files": fedpft.run(config, progress=watching),
        "memory": fedpft.run(undescribed, data=tables, progress=False),
        "own": fedpft.run(own, method=OwnMethod, progress=False),
        "watching": watching,
        "tables": tables,
        "undescribed": undescribed,
    }


def test_data_in_memory_give_the_bits_of_files(runs: dict[str, Any]) -> None:
    files, memory = runs["files"].adapter, runs["memory"].adapter
    assert files.keys() == memory.keys()
    assert all(torch.equal(files[name], memory[name]) for name in files)
    assert runs["files"].metrics == runs["memory"].metrics


def test_a_result_has_the_run_s_numbers(runs: dict[str, Any]) -> None:
    result = runs["files"]
    assert list(result.rounds.index) == [1, 2]
    assert result.rounds["fm"].iloc[-1] == result.metrics["fm"]["accuracy"] == result.summary["fm"]
    assert runs["watching"].rounds == 2
    again = fedpft.load_result(str(result.path))
    assert again.metrics == result.metrics
    shown = result._repr_html_()
    assert "plugged-in FM" in shown
    assert "report.html" in shown
    assert "2 rounds" in repr(result)


def test_a_result_s_models_are_those_that_were_tuned(runs: dict[str, Any]) -> None:
    result = runs["files"]
    batch = tiny_batch("bert")
    tuned, sub_fm = result.tuned_fm(), result.sub_fm()
    adapters = [{n: p for n, p in model.named_parameters() if "lora_" in n} for model in (tuned, sub_fm)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    with torch.no_grad():
        assert tuned(**batch).logits.shape == sub_fm(**batch).logits.shape == (4, 2)
        plain = tuned(**batch).logits
        untuned = result.tuned_fm().unload()
    plugged = fedpft.plug_in(untuned, result)
    with torch.no_grad():
        assert torch.equal(plugged(**batch).logits, plain)


def test_an_own_method_is_named_and_never_cached(runs: dict[str, Any]) -> None:
    own = runs["own"]
    assert own.summary["method"] == "OwnMethod"
    assert own.config.method.name == f"{OwnMethod.__module__}:OwnMethod"
    assert own.summary["construction"]["key"] is None
    assert all(torch.equal(value, runs["files"].adapter[name]) for name, value in own.adapter.items())


def test_the_same_data_resume_and_others_do_not(runs: dict[str, Any]) -> None:
    settings, tables = runs["undescribed"], runs["tables"]
    again = fedpft.run(settings, data=tables, resume=True, progress=False)
    assert again.metrics == runs["memory"].metrics
    with pytest.raises(fedpft.ConfigError, match=r"other settings .*task.path: .*memory://"):
        fedpft.run(settings, data=tables | {"train": tables["train"][::-1]}, resume=True, progress=False)


def test_runs_are_compared_as_a_table(runs: dict[str, Any]) -> None:
    table = fedpft.compare([runs["files"], runs["own"].path])
    assert set(table.index) == {"fedpft", "OwnMethod"}
    assert table.loc["fedpft", "mean"] == runs["files"].summary["fm"]
    assert np.isfinite(table["bytes"]).all()


def test_an_unfinished_folder_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(fedpft.ConfigError, match="RUN_DIR: found"):
        fedpft.load_result(tmp_path)


def test_settings_made_in_python_are_checked_like_a_file_s(tmp_path: Path) -> None:
    with pytest.raises(fedpft.ConfigError, match=r"federated\.sampling: .*'sometimes'"):
        fedpft.run(fedpft.Config(federated=fedpft.FederatedConfig(sampling="sometimes")))
    with pytest.raises(fedpft.ConfigError, match=r"method\.name: found 'nowhere:Method'"):
        fedpft.run(fedpft.load_config(None, [*tiny_text_run(tmp_path), "method.name=nowhere:Method"]), progress=False)
