"""The table of tasks, and any task as (train, evaluation) with the same column names."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets

from fedpft.config import TaskConfig
from fedpft.data.columns import (
    IMAGE,
    LABEL,
    TEXT,
    TEXT_PAIR,
    normalise_labels,
    rename_inputs,
    require_column,
    require_text,
)
from fedpft.data.digits import digits_task
from fedpft.data.images import as_images
from fedpft.data.sources import fail, find_row, is_local, load_hub, load_local, subset
from fedpft.data.stdlib_docs import stdlib_docs_task
from fedpft.seeding import numpy_rng

Modality = Literal["text", "image"]
EmbeddedTask = Callable[[], tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...]]]

# What text columns are called in local folders when the row's own names are not there.
COMMON_TEXT_COLUMNS = (("text",), ("sentence",), ("text", "text_pair"), ("sentence1", "sentence2"))


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """What must be known of a task to read it: a hub data set, or a `loader` for rows that come with this package."""

    path: str = ""
    config_name: str | None = None
    text_columns: tuple[str, ...] = ()
    image_column: str | None = None
    label_column: str = "label"
    train_split: str = "train"
    eval_split: str = "validation"
    loader: EmbeddedTask | None = None


def _glue(config_name: str, *text_columns: str, eval_split: str = "validation") -> TaskRow:
    return TaskRow(path="nyu-mll/glue", config_name=config_name, text_columns=text_columns, eval_split=eval_split)


TASKS: dict[str, TaskRow] = {
    "sst2": _glue("sst2", "sentence"),
    "cola": _glue("cola", "sentence"),
    "qnli": _glue("qnli", "question", "sentence"),
    "qqp": _glue("qqp", "question1", "question2"),
    "mnli": _glue("mnli", "premise", "hypothesis", eval_split="validation_matched"),
    "mrpc": _glue("mrpc", "sentence1", "sentence2"),
    "rte": _glue("rte", "sentence1", "sentence2"),
    "ag_news": TaskRow(path="fancyzhx/ag_news", text_columns=("text",), eval_split="test"),
    "cifar10": TaskRow(path="uoft-cs/cifar10", image_column="img", eval_split="test"),
    "cifar100": TaskRow(path="uoft-cs/cifar100", image_column="img", label_column="fine_label", eval_split="test"),
    "flowers102": TaskRow(path="dpdl-benchmark/oxford_flowers102", image_column="image", eval_split="test"),
    "stdlib_docs": TaskRow(text_columns=("text",), loader=stdlib_docs_task),
    "digits": TaskRow(image_column="image", loader=digits_task),
}


@dataclass(frozen=True)
class TaskData:
    """A task with normalised columns: `text` (, `text_pair`) or `image`, `label`; other columns keep their names."""

    train: datasets.Dataset
    evaluation: datasets.Dataset
    modality: Modality
    label_names: tuple[str, ...]
    """Name of label i at position i."""


def load_task(config: TaskConfig, seed: int) -> TaskData:
    """Read a task: the table row, changed by what the config says; `seed` draws the subsets, if any.

    Raises:
        ConfigError: unknown name, unreadable source, missing columns, nulls, bad labels, an empty split.

    """
    row = TaskRow() if config.name == "custom" else find_row(config.name, TASKS, "task.name")
    train, evaluation, names = _read(config, row)
    for split, dataset in (("training", train), ("evaluation", evaluation)):
        if len(dataset) == 0:
            fail("task.path", f"0 {split} examples", "at least 1")
    text_columns, image_column = _input_columns(config, row, train)
    label_column = config.label_column or _first_present(train, row.label_column, LABEL)
    for split_rows in (train, evaluation):  # before anything is renamed: errors list the columns as the user knows them
        require_column(split_rows, label_column, "task.label_column")
        for column in text_columns:
            require_text(split_rows, column, "task.text_columns")
        if image_column is not None:
            require_column(split_rows, image_column, "task.image_column")
    splits, label_names = normalise_labels([train, evaluation], label_column, names, "task.label_column")
    if image_column is not None:
        splits = [
            rename_inputs(as_images(s, image_column, "task.image_column"), [image_column], [IMAGE]) for s in splits
        ]
    else:
        splits = [rename_inputs(s, text_columns, (TEXT, TEXT_PAIR)[: len(text_columns)]) for s in splits]
    return TaskData(
        train=_seeded_subset(splits[0], config.max_train_examples, seed, "task.train"),
        evaluation=_seeded_subset(splits[1], config.max_eval_examples, seed, "task.evaluation"),
        modality="text" if image_column is None else "image",
        label_names=label_names,
    )


def _read(config: TaskConfig, row: TaskRow) -> tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...] | None]:
    if row.loader is not None and config.path is None:
        return row.loader()
    path = config.path or row.path
    if not is_local(path):
        config_name = row.config_name if path == row.path else None
        splits = (config.train_split or row.train_split, config.eval_split or row.eval_split)
        train, evaluation = (load_hub(path, config_name, split, "task.path") for split in splits)
        return train, evaluation, None
    # Local folders follow one convention, whatever the hub calls its splits.
    splits = (config.train_split or "train", config.eval_split or "validation")
    train, evaluation = (load_local(path, split, "task.path") for split in splits)
    classes = Path(path).expanduser() / "classes.txt"
    return train, evaluation, _class_names(classes) if classes.is_file() else None


def _class_names(file: Path) -> tuple[str, ...]:
    names = file.read_text().strip().splitlines()
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        fail("task.path", f"{twice[0]!r} more than once in {file}", "one line for each class")
    return tuple(names)


def _input_columns(config: TaskConfig, row: TaskRow, train: datasets.Dataset) -> tuple[tuple[str, ...], str | None]:
    """Return (text columns, None) or ((), image column); a config's own column decides which."""
    if config.text_columns or config.image_column:
        return tuple(config.text_columns), None if config.text_columns else config.image_column
    if row.image_column:
        return (), _first_present(train, row.image_column, IMAGE)
    present = set(train.column_names)
    candidates = [row.text_columns, *(c for c in COMMON_TEXT_COLUMNS if len(c) == len(row.text_columns))]
    return next((c for c in candidates if present.issuperset(c)), row.text_columns), None


def _first_present(dataset: datasets.Dataset, own: str, common: str) -> str:
    return common if own not in dataset.column_names and common in dataset.column_names else own


def _seeded_subset(dataset: datasets.Dataset, size: int | None, seed: int, purpose: str) -> datasets.Dataset:
    if size is None or size >= len(dataset):
        return dataset
    return subset(dataset, numpy_rng(seed, purpose).permutation(len(dataset))[:size])
