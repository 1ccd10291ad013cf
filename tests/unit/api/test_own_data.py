"""Data in memory, in whatever container: the same rows, and the same checks as for files."""

from dataclasses import replace
from typing import Any

import datasets
import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fedpft.api.data import own_data
from fedpft.config import Config, ConfigError, TaskConfig
from fedpft.data.corpora.public import load_corpus
from fedpft.data.datamodule import partition_task
from fedpft.data.sources.memory import as_dataset
from fedpft.data.tasks.loading import TaskData, load_task
from tests.tiny import tiny_texts

TEXTS, LABELS = tiny_texts(12)
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


class Pairs(Dataset):
    """A torch data set of (input, label)."""

    def __init__(self, inputs: list, labels: list) -> None:
        self._items = list(zip(inputs, labels, strict=True))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._items[index]


class Module(L.LightningDataModule):
    """One loader, or several: one for each client."""

    def __init__(self, several: bool = False) -> None:
        super().__init__()
        self._several = several

    def setup(self, stage: str) -> None:
        self._sets = [Pairs(TEXTS[:5], LABELS[:5]), Pairs(TEXTS[5:], LABELS[5:])]

    def train_dataloader(self) -> Any:
        loaders = [DataLoader(part, batch_size=3, shuffle=True) for part in self._sets]
        return loaders if self._several else DataLoader(Pairs(TEXTS, LABELS), batch_size=3)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._sets[0])


def load(data: Any, config: Config | None = None) -> tuple[Config, TaskData]:
    config, given = own_data(config or Config(), data)
    return config, load_task(config.task, config.seed, given=given)


@pytest.mark.parametrize(
    "table",
    [
        datasets.Dataset.from_list(ROWS),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS).astype({"text": "category"}),
        {"text": TEXTS, "label": np.array(LABELS)},
        ROWS,
        iter(ROWS),
        Pairs(TEXTS, LABELS),
        Pairs(TEXTS, [torch.tensor(label) for label in LABELS]),
        DataLoader(Pairs(TEXTS, LABELS), batch_size=4),
    ],
    ids=["datasets", "pandas", "categories", "columns", "rows", "iterator", "torch", "tensors", "loader"],
)
def test_every_container_gives_the_same_task_and_digest(table: Any) -> None:
    config, task = load({"train": table, "validation": ROWS[:4]})
    assert task.train.to_list() == ROWS
    assert task.evaluation.to_list() == ROWS[:4]
    assert config.task.name == "custom"
    assert config.task.path == load({"train": ROWS, "validation": ROWS[:4]})[0].task.path


def test_other_rows_have_another_path() -> None:
    changed = [*ROWS[:-1], ROWS[-1] | {"label": 1 - ROWS[-1]["label"]}]
    paths = {load({"train": rows, "validation": ROWS})[0].task.path for rows in (ROWS, changed, ROWS[::-1])}
    assert len(paths) == 3


@pytest.mark.parametrize("clients", [[ROWS[:5], ROWS[5:]], {"b": ROWS[:5], "c": pd.DataFrame(ROWS[5:])}])
def test_each_client_owns_the_rows_that_were_given_as_its_own(clients: Any) -> None:
    config, task = load({"clients": clients, "validation": ROWS})
    assert (config.federated.num_clients, config.federated.clients_per_round) == (2, 2)
    partition = partition_task(task, config.federated, seed=0)
    for client, expected in enumerate((ROWS[:5], ROWS[5:])):
        assert [task.train[int(row)]["text"] for row in partition.shard(client)] == [row["text"] for row in expected]


def test_more_than_ten_clients_keep_their_order() -> None:
    config, task = load({"clients": [[row] for row in ROWS], "validation": ROWS})
    partition = partition_task(task, config.federated, seed=0)
    assert [int(partition.shard(client)[0]) for client in range(12)] == list(range(12))


@pytest.mark.parametrize("several", [False, True])
def test_a_data_module_gives_its_loaders(several: bool) -> None:
    config, task = load(Module(several))
    assert task.train["text"][:] == TEXTS
    assert len(task.evaluation) == 5
    assert (config.federated.partition.kind == "natural") == several


def test_images_are_kept_as_bytes() -> None:
    images = [Image.fromarray(np.full((4, 4), shade, np.uint8)) for shade in (0, 90, 200, 255)]
    pairs = [(image, row % 2) for row, image in enumerate(images)]
    config, task = load({"train": Pairs(images, [0, 1, 0, 1]), "validation": pairs})
    assert (task.modality, config.task.image_column) == ("image", "image")
    assert np.array(task.train[1]["image"]).tolist() == np.array(images[1]).tolist()
    assert all(row["bytes"] for row in task.train.data.column("image").to_pylist())


def test_prompts_and_responses_are_a_language_task() -> None:
    rows = [{"prompt": text, "response": text} for text in TEXTS]
    assert load({"train": rows, "validation": rows})[1].kind == "causal_lm"


def test_a_part_of_a_single_table_is_held_out() -> None:
    _, task = load(ROWS, Config(task=TaskConfig(eval_ratio=0.25)))
    assert (len(task.train), len(task.evaluation)) == (9, 3)


def test_a_named_task_keeps_its_columns_and_metrics() -> None:
    rows = [{"sentence1": text, "sentence2": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    _, task = load({"train": rows, "validation": rows}, Config(task=TaskConfig(name="mrpc")))
    assert task.metrics == ("accuracy", "f1")
    assert set(task.train.column_names) == {"text", "text_pair", "label"}


def test_public_texts_are_the_corpus() -> None:
    config, given = own_data(Config(), {"train": ROWS, "validation": ROWS, "public": TEXTS})
    assert load_corpus(config.public, 0, given=given)["text"][:] == TEXTS
    assert config.public.path is not None
    assert config.public.path.startswith("memory://")


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ({"validation": ROWS}, {}, "data: found .*allowed: train or clients"),
        ({"train": ROWS, "test": ROWS}, {}, "data: found .*'test'"),
        ({"train": ROWS}, {}, "data: found .*validation, or task.eval_ratio"),
        ({"train": [], "validation": ROWS}, {}, "data.train: found 'no column'"),
        ({"train": "train.csv", "validation": ROWS}, {}, "data.train: found 'train.csv', allowed: rows"),
        ({"train": 3, "validation": ROWS}, {}, "data.train: found 'int'"),
        ({"train": [1, 2], "validation": ROWS}, {}, "data.train: found 'a row of type int'"),
        ({"train": [(torch.zeros(3, 4, 4), 1)], "validation": ROWS}, {}, "data.train: .*PIL image"),
        ({"train": {"text": ["a"], "label": [1, 2]}, "validation": ROWS}, {}, "data.train: found 'dict"),
        ({"train": [{"words": "a", "label": 1}], "validation": ROWS}, {}, "data.train: found columns words, label"),
        ({"train": [{"text": None, "label": 1}, *ROWS], "validation": ROWS}, {}, "1 nulls in column text"),
        ({"train": [{"text": "a", "label": 1.5}], "validation": ROWS}, {}, "task.label_column"),
        ({"train": ROWS, "validation": [{"text": "a", "label": 7}]}, {}, "task.label_column: .*7"),
        ({"clients": [], "validation": ROWS}, {}, "data.clients: found 'none'"),
        ({"clients": [ROWS, ROWS[:0]], "validation": ROWS}, {}, r"data.clients\[1\]: found 'no column'"),
        ({"clients": [ROWS, [{"text": 1, "label": 1}]], "validation": ROWS}, {}, "data.clients: .*same columns"),
        ({"clients": [[ROWS[0] | {"client": 1}]], "validation": ROWS}, {}, "a column client"),
        (
            {"clients": [ROWS], "validation": ROWS},
            {"federated.partition.kind": "dirichlet"},
            "federated.partition.kind: .*natural",
        ),
        ({"train": ROWS, "validation": ROWS}, {"task.path": "my/folder"}, "task.path: found 'my/folder'"),
        ({"train": ROWS, "validation": ROWS, "public": TEXTS}, {"public.path": "my/wiki"}, "public.path: found"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(data: Any, settings: dict[str, str], message: str) -> None:
    from fedpft.config import load_config

    config = load_config(None, [f"{key}={value}" for key, value in settings.items()])
    with pytest.raises(ConfigError, match=message) as caught:
        load(data, config)
    assert "\n" not in str(caught.value)


def test_a_config_of_such_a_run_asks_for_the_data_elsewhere() -> None:
    config, _ = load({"train": ROWS, "validation": ROWS})
    with pytest.raises(ConfigError, match=r"task.path: found 'memory://.*give"):
        load_task(config.task, 0)
    with pytest.raises(ConfigError, match=r"public.path: found 'memory://"):
        load_corpus(replace(config.public, name="custom", path="memory://0"), 0)


def test_rows_do_not_depend_on_files_that_may_go(tmp_path: Any) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    assert not as_dataset(datasets.load_from_disk(tmp_path / "rows"), "data.train").cache_files
