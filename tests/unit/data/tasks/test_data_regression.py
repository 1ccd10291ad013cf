import datasets
import numpy as np
import pytest
import torch

from fedpft.config import Config, ConfigError, FederatedConfig, PartitionConfig, PublicConfig, TaskConfig
from fedpft.data.collate import rows
from fedpft.data.datamodule import build_data, partition_task
from fedpft.data.histogram import label_groups
from fedpft.data.tasks.loading import load_task
from tests.tiny import WORDS, tiny_tokenizer

TEXTS = [" ".join(WORDS[i : i + 3]) for i in range(20)]
NUMBERS = [round(0.25 * i, 2) for i in range(20)]  # 0 to 4.75


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def made(tmp_path, numbers=NUMBERS, suffix="csv", texts=TEXTS, **settings):
    root = tmp_path / "data"
    root.mkdir()
    columns = {"words": texts[: len(numbers)], "grade": numbers, "who": [f"p{i % 4}" for i in range(len(numbers))]}
    for split in ("train", "validation"):
        getattr(datasets.Dataset.from_dict(columns), f"to_{suffix}")(root / f"{split}.{suffix}")
    settings = {"text_columns": ("words",), "label_column": "grade", "kind": "regression"} | settings
    return load_task(TaskConfig(name="custom", path=str(root), **settings), seed=0)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_numbers_become_float32_labels_named_after_their_column(tmp_path, suffix):
    task = made(tmp_path, suffix=suffix)
    assert (task.kind, task.metrics, task.label_names) == ("regression", ("pearson", "spearman"), ("grade",))
    assert task.train.features["label"].dtype == "float32"
    assert task.train["label"][:] == NUMBERS


def test_integers_are_numbers_too(tmp_path):
    assert made(tmp_path, numbers=[3, 1, -2]).train["label"][:] == [3.0, 1.0, -2.0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (["1.5", "high"], r"column grade of type string', allowed: numbers, because task\.kind is regression"),
        ([1.0, None], r"1 nulls in column grade"),
        ([1.0, float("nan")], r"nan in row 1 of column grade', allowed: finite numbers"),
        ([1.0, 2.0, 1e300], r"1e\+300 in row 2 of column grade', allowed: finite"),
        ([True, False], r"column grade of type bool"),
        ([[1.0], [2.0]], r"column grade of type list"),
    ],
)
def test_what_is_no_finite_number_is_named(tmp_path, numbers, message):
    with pytest.raises(ConfigError, match=rf"task\.label_column: found ['\"].*{message}") as error:
        made(tmp_path, numbers=numbers, suffix="parquet")
    assert "\n" not in str(error.value)


def test_batches_carry_float32_labels(tmp_path):
    corpus = datasets.Dataset.from_dict({"text": [" ".join(WORDS)] * 10})
    federated = FederatedConfig(num_clients=3, clients_per_round=2)
    data = build_data(
        made(tmp_path), corpus, tiny_tokenizer(), Config(federated=federated, public=PublicConfig(chunk_length=10))
    )
    assert (data.kind, data.label_names, data.metrics) == ("regression", ("grade",), ("pearson", "spearman"))
    batch = data.collate(rows(data.train, [2, 0, 7]))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [NUMBERS[2], NUMBERS[0], NUMBERS[7]]


def federated(**partition):
    return FederatedConfig(num_clients=4, clients_per_round=2, partition=PartitionConfig(**partition))


def test_numbers_can_be_dealt_at_random_or_to_their_owners(tmp_path):
    task = made(tmp_path)
    assert partition_task(task, federated(kind="iid"), seed=0).sizes.tolist() == [5] * 4
    natural = partition_task(task, federated(kind="natural", column="who"), seed=0)
    assert natural.shard(1).tolist() == [1, 5, 9, 13, 17]


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_numbers_cannot_be_dealt_by_class(tmp_path, kind):
    message = rf"federated\.partition\.kind: found '{kind}', allowed: iid, natural, because task\.kind is regression"
    with pytest.raises(ConfigError, match=message):
        partition_task(made(tmp_path), federated(kind=kind), seed=0)


def test_the_plan_groups_numbers_into_equal_intervals(tmp_path):
    numbers = [0.0, 1.0, 1.5, 2.0, 4.9, 5.0]
    task = made(tmp_path, numbers=numbers)
    groups, names = label_groups(task)
    assert names == ["to 1", "to 2", "to 3", "to 4", "to 5"]
    assert groups.tolist() == [0, 0, 1, 1, 4, 4]
    partition = partition_task(task, FederatedConfig(num_clients=2, clients_per_round=1), seed=0)
    assert np.sum(partition.label_histogram(groups, len(names)), axis=0).tolist() == [2, 2, 0, 0, 2]


def test_equal_numbers_have_groups_too(tmp_path):
    groups, names = label_groups(made(tmp_path, numbers=[2.0, 2.0]))
    assert len(names) == 5
    assert set(groups.tolist()) <= set(range(5))
