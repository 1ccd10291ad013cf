"""Settings of the FM and of the data: what the server and the clients own."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fedpft.config.checks import require, require_non_negative, require_positive, require_repeats
from fedpft.metrics.table import TaskKind


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Supervised pre-training of a `scratch://` FM on the labelled public data, by the server, before the run."""

    num_epochs: int = 0
    """Epochs over the public data; 0 leaves the FM at its random initialisation."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    batch_size: int = 64
    """Examples of a step."""


@dataclass(frozen=True, kw_only=True)
class FMConfig:
    """The server's foundation model."""

    path: str = "google-bert/bert-base-uncased"
    """Hub id, local folder, `package://module/sub/folder` (weights shipped in a Python package) or `scratch://model_type`."""
    revision: str | None = None
    """Of a hub id: a branch, a tag or a commit; null: the newest, of which `result.json` has the commit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights, on the server, on the way to the clients and there; `bfloat16` takes half the memory and
    traffic. LoRA and head, optimisers, regressions and losses are float32 or more whatever this says."""
    max_length: int = 128
    """Longest text in tokens, special tokens included; longer texts are cut."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the transformers config to set: the architecture of a `scratch://` FM (`hidden_size: 64`), or what a
    loaded one should do differently (`hidden_dropout_prob: 0.0`)."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        require(bool(self.path), "fm.path", self.path, "hub id, folder, package://... or scratch://model_type")
        require(self.max_length >= 8, "fm.max_length", self.max_length, "an integer >= 8")
        require_non_negative("fm.pretrain", self.pretrain, "num_epochs")
        require_positive("fm.pretrain", self.pretrain, "lr", "batch_size")
        require_repeats("fm.pretrain", self.pretrain, "num_epochs")
        allowed = f"0 with fm.dtype = {self.dtype}, in which the small steps of a pre-training are lost"
        trains = self.dtype != "float32" and self.pretrain.num_epochs > 0
        require(not trains, "fm.pretrain.num_epochs", self.pretrain.num_epochs, allowed)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The labelled data that the clients own, and the evaluation set."""

    name: str = "sst2"
    """A row of `TASKS` in fedpft/data/tasks/table.py, or `custom` (then `path` and the columns describe it)."""
    kind: TaskKind | None = None
    """null: the table row's; `classification` for a custom task."""
    path: str | None = None
    """Hub id, or a folder with `train.*` and `validation.*` files (parquet, csv, tsv, json), an image folder or what
    `save_to_disk` of `datasets` wrote; see `fedpft.data.sources`."""
    text_columns: tuple[str, ...] = ()
    """One column, or two for sentence pairs; empty: those of the table row."""
    image_column: str | None = None
    """Column of images; null: that of the table row."""
    label_column: str | None = None
    """Of `causal_lm`, if given, a category for partitions by labels; models do not see it."""
    prompt_column: str | None = None
    """`causal_lm`: what stands before the response, with a line break; null: the table row's template, or no prompt."""
    response_column: str | None = None
    """`causal_lm`: what is learned; without a prompt all of a text."""
    prompt_template: str | None = None
    """`causal_lm`: the prompt in words, with `{column}` where a column's value goes; a paragraph whose columns are all
    empty is left out. null: the prompt column alone, or the table row's template."""
    chat_template: bool = False
    """`causal_lm`: put prompt (user) and response (assistant) into the tokenizer's own chat template."""
    train_split: str | None = None
    """null: `train`, or that of the table row."""
    eval_split: str | None = None
    """null: `validation`, or that of the table row."""
    eval_ratio: float | None = None
    """Hold out this fraction of the training data to evaluate on, the same rows for every seed; null: the evaluation
    split, or 0.1 of a data set of the table that has none."""
    metrics: tuple[str, ...] = ()
    """Names in `fedpft.metrics.table.METRICS`, the primary one first; empty: the table row's, or those usual for the
    kind."""
    on_bad_example: Literal["error", "drop"] = "error"
    """What to do about an image that cannot be decoded, or a row without a text or label: name it and do not begin; or
    leave such rows out and count them in a warning."""
    max_train_examples: int | None = None
    """Use a random subset of the training data; None: all."""
    max_eval_examples: int | None = None
    """Use a random subset of the evaluation set; null: all."""

    def __post_init__(self) -> None:
        for name in ("max_train_examples", "max_eval_examples"):
            value = getattr(self, name)
            require(value is None or value > 0, f"task.{name}", value, "null or an integer > 0")
        ratio = self.eval_ratio
        require(ratio is None or 0 < ratio < 1, "task.eval_ratio", ratio, "null or a fraction in (0, 1)")
        require(ratio is None or self.eval_split is None, "task.eval_ratio", ratio, "null beside task.eval_split")
        if self.name == "custom":
            require(self.path is not None, "task.path", self.path, "a hub id or folder, because task.name is custom")
        if self.name == "custom" and self.kind == "causal_lm":
            allowed = "a column of texts, because task.kind is causal_lm"
            require(self.response_column is not None, "task.response_column", None, allowed)
        elif self.name == "custom":
            has_input = bool(self.text_columns) != bool(self.image_column)
            found = [*self.text_columns, self.image_column]
            require(
                has_input, "task.text_columns / task.image_column", found, "exactly one of the two for a custom task"
            )
        require(len(self.text_columns) <= 2, "task.text_columns", list(self.text_columns), "at most two columns")
        different = len(set(self.text_columns)) == len(self.text_columns)
        require(different, "task.text_columns", list(self.text_columns), "two different columns")


@dataclass(frozen=True, kw_only=True)
class PublicConfig:
    """Unlabelled public data on which the server aligns the sub-FM with the FM."""

    name: str = "wikitext"
    """A row of `fedpft.data.corpora.public.CORPORA`, or `custom` (then `path` and a column describe it); several texts
    joined by `+` are mixed in equal parts."""
    path: str | None = None
    """Hub id, folder or file instead of the row's own; for several names as many, joined by `+`."""
    text_column: str | None = None
    """Column of texts; null: that of the table row."""
    image_column: str | None = None
    """Column of images; null: that of the table row."""
    chunk_length: int = 128
    """Text: tokens per chunk, special tokens included."""
    format: Literal["text", "task"] = "text"
    """Text: a chunk is one text, or, with `task`, what the task's examples are: two texts where they are pairs."""
    max_examples: int | None = None
    """Chunks or images used, drawn by the seed; None: all, of a corpus that can be read whole."""

    def __post_init__(self) -> None:
        require(self.chunk_length >= 8, "public.chunk_length", self.chunk_length, "an integer >= 8")
        ok = self.max_examples is None or self.max_examples > 0
        require(ok, "public.max_examples", self.max_examples, "null or an integer > 0")
        num_names = self.name.count("+") + 1
        if num_names > 1 and self.path is not None:
            allowed = f"{num_names} paths joined by +, as in public.name"
            require(self.path.count("+") + 1 == num_names, "public.path", self.path, allowed)
