"""Settings of the FM and of the data: what the server and the clients own."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fedpft.config.checks import require, require_non_negative, require_positive, require_repeats
from fedpft.metrics.table import TaskKind


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Supervised pre-training of a `scratch://` FM on the labelled public data, by the server, before the run."""

    num_epochs: int = 0
    """How many epochs over the public data. 0 leaves the FM at its random initialisation."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    batch_size: int = 64
    """How many examples each step takes."""


@dataclass(frozen=True, kw_only=True)
class FMConfig:
    """The server's foundation model."""

    path: str = "google-bert/bert-base-uncased"
    """Where the model comes from: a hub id, a local folder, `package://module/sub/folder` (weights shipped in a Python
    package) or `scratch://model_type` (random weights)."""
    revision: str | None = None
    """Which branch, tag or commit of a hub id to load. null takes the newest one; `result.json` then has its commit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights: on the server, when they are sent, and on the clients. `bfloat16` takes half the
    memory and traffic. LoRA, the head, optimisers, regressions and losses are float32 or wider in either case."""
    device_map: Literal["none", "auto"] = "none"
    """Where the server has the FM. `none` puts it as a whole on the first GPU, or on the CPU. `auto` is for an FM that
    one GPU cannot hold: it spreads the layers, in their order, over all GPUs that the server sees or claims
    (`server.num_gpus`), by what is free on each. The sub-FM then lies beside the FM, layer by layer; clients get it as
    ever. Only GPUs count: nothing is offloaded to RAM or disk. With one GPU, or none, `auto` is `none`."""
    max_length: int = 128
    """Longest text in tokens, including special tokens. Longer texts are cut."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the transformers config to set. They give a `scratch://` FM its architecture (`hidden_size: 64`), or
    change a loaded one (`hidden_dropout_prob: 0.0`)."""
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
    """A task of the table in `fedpft/data/tasks/table.py`, or `custom`, which `path` and the columns describe."""
    kind: TaskKind | None = None
    """The kind of task. null takes the table's, and `classification` for a custom task."""
    data: Literal["broadcast", "shared"] = "broadcast"
    """How rows get to the clients. `broadcast` sends them to every node, which holds them in memory. `shared` lets each
    node read them from files that all nodes see (or from the hub), prepare them once on disk in `cache.dir`, and map
    them. No result depends on it. Prepared rows stay there after the run, in the folder `data`."""
    path: str | None = None
    """Where the data are: a hub id, a folder with `train.*` and `validation.*` files (parquet, csv, tsv, json), an
    image folder, or what `save_to_disk` of `datasets` wrote; see `fedpft.data.sources`."""
    text_columns: tuple[str, ...] = ()
    """The column of texts, or two for pairs of sentences. An empty list takes the table's."""
    image_column: str | None = None
    """The column of images. null takes the table's."""
    label_column: str | None = None
    """The column of labels. null takes the table's. With `causal_lm` it is optional: a category by which the data can
    be partitioned, and which models do not see."""
    prompt_column: str | None = None
    """With `causal_lm`, the column whose text stands before the response, followed by a line break. null takes the
    table's template, or no prompt."""
    response_column: str | None = None
    """With `causal_lm`, the column that is learned. Without a prompt the whole text is."""
    prompt_template: str | None = None
    """With `causal_lm`, the prompt in words, with `{column}` where a column's value goes. A paragraph whose columns are
    all empty is left out. null takes the prompt column alone, or the table's template."""
    chat_template: bool = False
    """With `causal_lm`, whether the prompt (as user) and the response (as assistant) go into the tokenizer's own chat
    template."""
    train_split: str | None = None
    """The split to train on. null takes the table's, or `train`."""
    eval_split: str | None = None
    """The split to evaluate on. null takes the table's, or `validation`."""
    eval_ratio: float | None = None
    """Fraction of the training data that is held out for evaluation; the rows are the same for every seed. null takes
    the evaluation split, or 0.1 where a data set of the table has none."""
    metrics: tuple[str, ...] = ()
    """Names of metrics in `fedpft.metrics.table.METRICS`, the primary one first. An empty list takes the table's, or
    those that are usual for the kind."""
    on_bad_example: Literal["error", "drop"] = "error"
    """What happens when an image cannot be decoded or a row has no text or label. `error` names it and does not start;
    `drop` leaves such rows out and counts them in a warning."""
    max_train_examples: int | None = None
    """Size of a random subset of the training data to use. null uses all of it."""
    max_eval_examples: int | None = None
    """Size of a random subset of the evaluation set to use. null uses all of it."""

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
    """A corpus of the table `fedpft.data.corpora.public.CORPORA`, or `custom`, which `path` and a column describe.
    Several corpora of texts joined by `+` are mixed in equal parts."""
    path: str | None = None
    """Hub id, folder or file to read instead of the table's. Several names need as many paths, joined by `+`."""
    text_column: str | None = None
    """The column of texts. null takes the table's."""
    image_column: str | None = None
    """The column of images. null takes the table's."""
    chunk_length: int = 128
    """How many tokens a chunk of text has, including special tokens."""
    format: Literal["text", "task"] = "text"
    """What a chunk of text looks like. `text` is one text; `task` is what the task's examples are, so two texts where
    they are pairs."""
    max_examples: int | None = None
    """How many chunks or images to use; the seed draws which. null uses all, and needs a corpus that can be read
    whole."""

    def __post_init__(self) -> None:
        require(self.chunk_length >= 8, "public.chunk_length", self.chunk_length, "an integer >= 8")
        ok = self.max_examples is None or self.max_examples > 0
        require(ok, "public.max_examples", self.max_examples, "null or an integer > 0")
        num_names = self.name.count("+") + 1
        if num_names > 1 and self.path is not None:
            allowed = f"{num_names} paths joined by +, as in public.name"
            require(self.path.count("+") + 1 == num_names, "public.path", self.path, allowed)
