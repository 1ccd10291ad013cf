"""Rows of the task table on local copies of their data; skipped where the folder is absent."""

from pathlib import Path

import datasets
import pytest

from fedpft.config import TaskConfig
from fedpft.data.tasks.loading import load_task

DATA = Path(__file__).parents[3].parent / "shared" / "data"
FOUND = {
    "sst2": (67_349, 872, 2, ("accuracy",)),
    "qnli": (6_463, 1_000, 2, ("accuracy",)),
    "qqp": (7_998, 2_000, 2, ("accuracy", "f1")),
    "mnli": (5_991, 1_500, 3, ("accuracy",)),
    "mrpc": (3_668, 408, 2, ("accuracy", "f1")),
    "rte": (2_490, 277, 2, ("accuracy",)),
    "ag_news": (6_925, 7_600, 4, ("accuracy",)),
    "cifar10": (10_000, 2_000, 10, ("accuracy",)),
    "flowers102": (1_020, 1_020, 102, ("accuracy",)),
}
"""Examples, evaluation examples, classes and metrics."""


@pytest.mark.parametrize("name", FOUND)
def test_a_row_reads_its_local_copy(name, tmp_path, monkeypatch):
    if not (DATA / name).is_dir():
        pytest.skip(f"no data at {DATA / name}")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    task = load_task(TaskConfig(name=name, path=str(DATA / name)), seed=0)
    assert (len(task.train), len(task.evaluation), len(task.label_names), task.metrics) == FOUND[name]
    assert set(task.train["label"][:]) == set(range(len(task.label_names)))
