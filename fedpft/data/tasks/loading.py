"""Any task as (train, evaluation) with the same column names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets

from fedpft.config import TaskConfig, TaskKind
from fedpft.config.plugins import adopt
from fedpft.data.sources.columns import (
    IMAGE,
    LABEL,
    TEXT,
    TEXT_PAIR,
    rename_inputs,
    require_column,
    require_text,
    with_values,
)
from fedpft.data.sources.errors import fail
from fedpft.data.sources.files import IMAGE_FOLDER, is_local
from fedpft.data.sources.images import Look, as_images, look_at_headers
from fedpft.data.sources.labels import label_codes, label_numbers
from fedpft.data.sources.memory import GivenData, is_in_memory, not_given
from fedpft.data.sources.rows import load_hub, load_local
from fedpft.data.sources.subsets import hold_out, subset
from fedpft.data.tasks.instructions import check_keys, read_instructions
from fedpft.data.tasks.origins import CLASSES_FILE, class_names, eval_ratio, hub_splits, local_splits, row_of
from fedpft.data.tasks.table import TASKS, TaskRow
from fedpft.metrics.table import DEFAULT_METRICS, METRICS
from fedpft.seeding import numpy_rng

Modality = Literal["text", "image"]

# What text columns are called in local folders when the row's own names are not there.
COMMON_TEXT_COLUMNS = (("text",), ("sentence",), ("text", "text_pair"), ("sentence1", "sentence2"))


@dataclass(frozen=True)
class TaskData:
    """A task with normalised columns; other columns keep their names.

    `text` (, `text_pair`) or `image`, and `label`; of `causal_lm`, `prompt` and `response`, and perhaps `label` (in
    `train` alone).
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset
    modality: Modality
    label_names: tuple[str, ...]
    """Name of label i at position i: of each class, or of the number that regression predicts; maybe none."""
    kind: TaskKind = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    """What models are evaluated by, the primary one first."""
    other_evaluations: Mapping[str, datasets.Dataset] = field(default_factory=dict)
    """Further evaluation sets by name; their metrics are called `name/metric`."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The data's own column -> what it is called here, of those that have another name here."""
    is_ready: bool = False
    """Whether the rows are what the model takes: `input_ids` (, `prompt_length`) or `pixels` in place of the inputs."""


def load_task(config: TaskConfig, seed: int, look: Look = look_at_headers, given: GivenData | None = None) -> TaskData:
    """Read a task: the table row, changed by what the config says.

    Args:
        config: the `task` section.
        seed: draws the subsets, if any.
        look: how closely images in files are looked at.
        given: the rows where `path` is `memory://...`.

    Raises:
        ConfigError: unknown name, unreadable source, missing columns, nulls, bad labels, an empty split, or a metric
            that the task cannot have.

    """
    adopt("task", config.name, TASKS)
    for name in config.metrics:
        adopt("metric", name, METRICS)
    row = row_of(config)
    kind = config.kind or row.kind
    check_keys(config, kind)
    splits, names = _read(config, row, given)
    for split, dataset in splits.items():
        if len(dataset) == 0:
            fail("task.path", f"0 {split} examples", "at least 1")
    modality: Modality = "text"
    renamed: Mapping[str, str] = {}
    if kind == "causal_lm":
        ready, label_names = read_instructions(splits, names, config, row)
    else:
        ready, label_names, modality, renamed = _read_labelled(splits, names, config, row, kind, look)
    if ratio := eval_ratio(config, row):  # after the labels: a rare one may be held out with all its rows
        ready["train"], ready["evaluation"] = hold_out(ready["train"], ratio, "task.eval_ratio")
    sets = {}
    for name, dataset in ready.items():
        limit = config.max_train_examples if name == "train" else config.max_eval_examples
        sets[name] = _seeded_subset(dataset, limit, seed, f"task.{name}")
    return TaskData(
        train=sets.pop("train"),
        evaluation=sets.pop("evaluation"),
        other_evaluations=sets,
        modality=modality,
        label_names=label_names,
        kind=kind,
        metrics=_metrics(config, row, kind, len(label_names)),
        renamed=renamed,
    )


def _read_labelled(
    splits: Mapping[str, datasets.Dataset],
    names: tuple[str, ...] | None,
    config: TaskConfig,
    row: TaskRow,
    kind: TaskKind,
    look: Look,
) -> tuple[dict[str, datasets.Dataset], tuple[str, ...], Modality, dict[str, str]]:
    """Return the splits with `text` (, `text_pair`) or `image`, and `label`; and which columns these were."""
    text_columns, image_column = _input_columns(config, row, splits["train"])
    label_column = config.label_column or _first_present(splits["train"], row.label_column or LABEL, LABEL)
    where = ["training", *list(splits)[1:]]
    drop = config.on_bad_example == "drop"
    if drop:
        needed = dict.fromkeys([*text_columns, image_column or label_column], True) | {label_column: False}
        splits = {
            name: with_values(dataset, needed, split, "task.path")
            for (name, dataset), split in zip(splits.items(), where, strict=True)
        }
    if image_column is not None and (row.loader is None or config.path is not None):
        splits = {
            name: as_images(dataset, image_column, "task.image_column", look=look, drop=split if drop else None)
            for (name, dataset), split in zip(splits.items(), where, strict=True)
        }
    for dataset in splits.values():
        require_column(dataset, label_column, "task.label_column")
        for column in text_columns:
            require_text(dataset, column, "task.text_columns")
    every = [*splits.values()]
    label_names: tuple[str, ...] = (label_column,)
    if kind == "regression":
        labels = label_numbers(every, label_column, "task.label_column", where)
    else:
        labels, label_names = label_codes(every, label_column, names, "task.label_column", where)
    inputs = {IMAGE: image_column} if image_column else dict(zip((TEXT, TEXT_PAIR), text_columns, strict=False))
    renamed = [rename_inputs(split, inputs, label_column, LABEL, TEXT, TEXT_PAIR, IMAGE) for split in every]
    ready = {name: split.add_column(LABEL, codes) for name, split, codes in zip(splits, renamed, labels, strict=True)}
    modality: Modality = "image" if image_column else "text"
    columns = {LABEL: label_column} | inputs
    return ready, label_names, modality, {own: ours for ours, own in columns.items()}


def _metrics(config: TaskConfig, row: TaskRow, kind: TaskKind, num_classes: int) -> tuple[str, ...]:
    """Return the config's metrics, else the row's, else those usual for the kind; each is defined for the task."""
    own = row.metrics if kind == row.kind else DEFAULT_METRICS[kind]
    task = f"{num_classes} classes" if kind == "classification" else kind
    possible = [name for name, m in METRICS.items() if m.kind == kind and m.num_classes in (None, num_classes)]
    for name in (chosen := config.metrics or own):
        if name not in possible:
            fail("task.metrics", name, f"for {task}: {', '.join(possible)}")
    return chosen


def _read(
    config: TaskConfig, row: TaskRow, given: GivenData | None
) -> tuple[dict[str, datasets.Dataset], tuple[str, ...] | None]:
    """Return `train`, `evaluation` and further evaluation sets by name, and the class names if a file has them."""
    if row.loader is not None and config.path is None:
        if config.eval_ratio is not None:
            fail("task.eval_ratio", config.eval_ratio, f"null, because task.name={config.name} has an evaluation set")
        train, evaluation, names = row.loader()
        return {"train": train, "evaluation": evaluation}, names
    path, key = config.path or row.path, "task.path"
    held_out = eval_ratio(config, row) > 0
    if is_in_memory(path):
        if given is None or not given.splits:
            not_given(path, key)
        splits = {"train": config.train_split or "train"}
        if not held_out:
            splits["evaluation"] = config.eval_split or "validation"
        splits |= {name: split for name, split in row.other_eval_splits.items() if split in given.splits}
        return {name: given.split(split) for name, split in splits.items()}, None
    if is_local(path):
        classes = Path(path).expanduser() / CLASSES_FILE
        local = {name: _load_split(path, split) for name, split in local_splits(config, row, path).items()}
        return local, class_names(classes) if classes.is_file() else None
    return {
        name: load_hub(path, data_set, split, key, revision=revision)
        for name, (data_set, split, revision) in hub_splits(config, row, path).items()
    }, None


def _load_split(path: str, split: str) -> datasets.Dataset:
    dataset = load_local(path, split, "task.path")
    if dataset.info.builder_name == IMAGE_FOLDER and LABEL not in dataset.column_names:
        found = f"images in {Path(path).expanduser() / split} itself"
        fail("task.path", found, f"{split}/CLASS/*.png, or a {split}/metadata.csv with labels")
    return dataset


def _input_columns(config: TaskConfig, row: TaskRow, train: datasets.Dataset) -> tuple[tuple[str, ...], str | None]:
    """Return (text columns, None) or ((), image column); a config's own column decides which."""
    if config.text_columns or config.image_column:
        return tuple(config.text_columns), None if config.text_columns else config.image_column
    if row.image_column:
        return (), _first_present(train, row.image_column, IMAGE)
    present = set(train.column_names)
    candidates = [row.text_columns, *(c for c in COMMON_TEXT_COLUMNS if len(c) == len(row.text_columns))]
    return next((c for c in candidates if present.issuperset(c)), row.text_columns), None


def kind_and_modality(config: TaskConfig) -> tuple[TaskKind, Modality]:
    """Return what a task is of, by its settings and the table alone.

    Raises:
        ConfigError: no such name.

    """
    adopt("task", config.name, TASKS)
    row = row_of(config)
    has_images = config.image_column or row.image_column
    return config.kind or row.kind, "image" if has_images and not config.text_columns else "text"


def _first_present(dataset: datasets.Dataset, own: str, common: str) -> str:
    return common if own not in dataset.column_names and common in dataset.column_names else own


def _seeded_subset(dataset: datasets.Dataset, size: int | None, seed: int, purpose: str) -> datasets.Dataset:
    if size is None or size >= len(dataset):
        return dataset
    return subset(dataset, numpy_rng(seed, purpose).permutation(len(dataset))[:size])
