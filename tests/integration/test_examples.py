"""The examples, run on tiny models."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import datasets
import pandas as pd
import pytest

import fedpft
from tests.tiny import tiny_fm, tiny_text_run, tiny_texts, tiny_tokenizer

FOLDER = Path(__file__).parents[2] / "experiments" / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import an example by its file's name."""
    spec = importlib.util.spec_from_file_location(f"example_{request.param}", FOLDER / f"{request.param}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("example", ["compress_and_look"], indirect=True)
def test_compress_and_look(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_fm("bert", num_labels=2).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    before, after = example.main(str(tmp_path), datasets.Dataset.from_dict({"text": tiny_texts(200)[0]}))
    assert after < before
    assert "hidden error" in capsys.readouterr().out


@pytest.mark.parametrize("example", ["own_method"], indirect=True)
def test_own_method(example: ModuleType, tmp_path: Path) -> None:
    result = example.main(tiny_text_run(tmp_path), None)
    assert result.summary["method"] == "EveryOtherLayer"
    assert result.summary["fidelity"]["after"]["total"]["hidden_error"] > 0


@pytest.mark.parametrize("example", ["compare_two_runs"], indirect=True)
def test_compare_two_runs(example: ModuleType, tmp_path: Path) -> None:
    settings = fedpft.load_config(None, [*tiny_text_run(tmp_path), "federated.rounds=1"])
    config = replace(settings, task=fedpft.TaskConfig(), public=fedpft.PublicConfig(chunk_length=10))
    rows = pd.read_csv(tmp_path / "task/train.csv")
    data = {"clients": [rows[:20], rows[20:]], "validation": rows, "public": tiny_texts(60)[0]}
    table = example.main(config, data, tmp_path / "runs")
    assert set(table.index) == {"retained_ratio=0.5", "retained_ratio=0.25"}
    assert table["verdict"].notna().sum() == 1
