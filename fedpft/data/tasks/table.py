"""The table of tasks: a new one is a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets

from fedpft.config import TaskKind
from fedpft.data.embedded.digits import digits_task
from fedpft.data.embedded.stdlib_docs import stdlib_docs_task
from fedpft.data.embedded.stdlib_summaries import stdlib_summaries_task
from fedpft.data.tasks.prompts import alpaca_template
from fedpft.metrics.table import DEFAULT_METRICS

EmbeddedTask = Callable[[], tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """What must be known of a task to read it: a hub data set, or a `loader` for rows that come with this package."""

    path: str = ""
    config_name: str | None = None
    revision: str | None = None
    """Of the hub's repository; `refs/convert/parquet` is the hub's own copy of what only a script can read."""
    text_columns: tuple[str, ...] = ()
    image_column: str | None = None
    label_column: str | None = None
    """None: `label`, or none at all of a `causal_lm` task."""
    prompt_template: str | None = None
    response_column: str | None = None
    """`causal_lm`: see `TaskConfig`."""
    train_split: str = "train"
    eval_split: str | None = "validation"
    """None: part of the training data is held out."""
    other_eval_splits: Mapping[str, str] = field(default_factory=dict)
    """Name of a further evaluation set -> its split."""
    kind: TaskKind = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    """Names in `fedpft.metrics.table.METRICS`, the primary one first."""
    loader: EmbeddedTask | None = None


def _glue(config_name: str, *text_columns: str, **others: Any) -> TaskRow:
    """Return a row of GLUE; its test splits have no labels (all are -1) and are never read."""
    return TaskRow(path="nyu-mll/glue", config_name=config_name, text_columns=text_columns, **others)


def _instructions(path: str = "", **others: Any) -> TaskRow:
    return TaskRow(path=path, kind="causal_lm", metrics=DEFAULT_METRICS["causal_lm"], **others)


TASKS: dict[str, TaskRow] = {
    "sst2": _glue("sst2", "sentence"),
    "cola": _glue("cola", "sentence", metrics=("matthews", "accuracy")),
    "qnli": _glue("qnli", "question", "sentence"),
    "qqp": _glue("qqp", "question1", "question2", metrics=("accuracy", "f1")),
    "mnli": _glue(
        "mnli", "premise", "hypothesis", eval_split="validation_matched",
        other_eval_splits={"mismatched": "validation_mismatched"},
    ),
    "mrpc": _glue("mrpc", "sentence1", "sentence2", metrics=("accuracy", "f1")),
    "rte": _glue("rte", "sentence1", "sentence2"),
    "stsb": _glue("stsb", "sentence1", "sentence2", kind="regression", metrics=("pearson", "spearman")),
    "ag_news": TaskRow(path="fancyzhx/ag_news", text_columns=("text",), eval_split="test"),
    "trec": TaskRow(
        path="CogComp/trec", revision="refs/convert/parquet", text_columns=("text",), label_column="coarse_label",
        eval_split="test",
    ),
    "20_newsgroups": TaskRow(path="SetFit/20_newsgroups", text_columns=("text",), eval_split="test"),
    "cifar10": TaskRow(path="uoft-cs/cifar10", image_column="img", eval_split="test"),
    "cifar100": TaskRow(path="uoft-cs/cifar100", image_column="img", label_column="fine_label", eval_split="test"),
    "flowers102": TaskRow(path="dpdl-benchmark/oxford_flowers102", image_column="image", eval_split="test"),
    "dolly": _instructions(
        "databricks/databricks-dolly-15k", prompt_template=alpaca_template("instruction", "context"),
        response_column="response", label_column="category", eval_split=None,
    ),
    "alpaca": _instructions(
        "tatsu-lab/alpaca", prompt_template=alpaca_template("instruction", "input"), response_column="output",
        eval_split=None,
    ),
    "gsm8k": _instructions(
        "openai/gsm8k", config_name="main", prompt_template="Question: {question}\nAnswer:\n",
        response_column="answer", eval_split="test",
    ),
    "stdlib_summaries": _instructions(
        loader=stdlib_summaries_task, prompt_template="What does {function}({arguments}) do?\n",
        response_column="summary", label_column="package",
    ),
    "stdlib_docs": TaskRow(text_columns=("text",), loader=stdlib_docs_task),
    "digits": TaskRow(image_column="image", loader=digits_task),
}  # fmt: skip
