"""A task and a corpus -> what a run needs: tokenised clients' data, evaluation set, public set, partition, collator.

    TaskData --tokenise--> train, evaluation        corpus --concatenate, cut--> public (text)
             --labels----> partition                       --subset-----------> public (images)

Images stay encoded, text stays unpadded; the collator does the rest batch by batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import datasets
import numpy as np
import pyarrow as pa
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from fedpft.config import Config, FederatedConfig, TaskKind
from fedpft.data.canaries import Canaries
from fedpft.data.collate import MODEL_INPUTS, CausalCollator, Collator, ImageCollator, TextCollator, rows
from fedpft.data.corpora.chunks import chunk_corpus
from fedpft.data.corpora.corpus import Corpus
from fedpft.data.image_sizes import require_one_size
from fedpft.data.partition import Partition, make_partition
from fedpft.data.shared import SharedRows, SharedTask
from fedpft.data.sources.columns import (
    IMAGE,
    LABEL,
    PIXELS,
    PROMPT_LENGTH,
    TEXT,
    TEXT_PAIR,
    are_strings,
    require_column,
    type_name,
)
from fedpft.data.sources.errors import fail
from fedpft.data.sources.labels import plain_integers
from fedpft.data.sources.subsets import subset
from fedpft.data.tasks.loading import Modality, TaskData
from fedpft.data.tasks.ready import ready_for_model
from fedpft.seeding import numpy_rng

__all__ = ["Collator", "FederatedData", "ImageCollator", "TextCollator", "build_data", "partition_task", "rows"]

CAUSAL_COLUMNS = ("input_ids", PROMPT_LENGTH)


@dataclass(frozen=True)
class FederatedData:
    """The data of a run. Rows: `input_ids` (, `token_type_ids`) or `image`, and `label` (not in public text)."""

    train: datasets.Dataset
    """All clients' examples; client k trains on the rows `partition.shard(k)`."""
    evaluation: datasets.Dataset
    public: datasets.Dataset
    partition: Partition
    collate: Collator
    label_names: tuple[str, ...]
    modality: Modality
    kind: TaskKind = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    """The primary one first."""
    other_evaluations: Mapping[str, datasets.Dataset] = field(default_factory=dict)
    """Further evaluation sets by name."""
    held_out: Partition | None = None
    """Rows of `train` on which nobody trains: each client's own for its evaluation; None: there are none."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """The FM's; None: a model of images."""
    shared: SharedRows | None = None
    """How a node reads `train` itself; None: it is sent."""
    canaries: Canaries | None = None
    """Planted among the clients' examples; None: there are none."""


def build_data(
    task: TaskData,
    corpus: Corpus,
    processor: PreTrainedTokenizerBase | BaseImageProcessor,
    config: Config,
    source: SharedTask | None = None,
) -> FederatedData:
    """Prepare everything that depends on the FM's tokenizer or image processor; `source`: of a task that nodes read.

    Raises:
        ConfigError: task, corpus and FM are not of one modality, there is only one label, the corpus has less than one
            chunk of text, or the partition is impossible.

    """
    _require_same_modality(task, corpus, processor)
    pairs = config.public.format == "task" and TEXT_PAIR in (*task.train.column_names, *task.renamed.values())
    if task.kind == "classification" and len(task.label_names) < 2:
        fail("task.label_column", f"{len(task.label_names)} label in the training data", "at least 2")
    if task.kind == "causal_lm":  # some examples have no room for a response: nobody owns them
        task = ready_for_model(task, processor, config.fm.max_length, chat=config.task.chat_template)
    partition = partition_task(task, config.federated, config.client_seed)
    held_out, ratio = None, config.federated.client_eval_ratio
    if ratio:
        if task.kind != "classification":
            fail("federated.client_eval_ratio", ratio, f"0 because task.kind is {task.kind}: only classes are counted")
        partition, held_out = partition.hold_out(ratio, numpy_rng(config.client_seed, "held_out"))
    collate: Collator
    if task.modality == "text":
        task = ready_for_model(task, processor, config.fm.max_length)
    splits = [task.train, task.evaluation, *task.other_evaluations.values()]
    if isinstance(processor, PreTrainedTokenizerBase):
        if task.kind == "causal_lm":
            columns = [
                [*CAUSAL_COLUMNS, *([LABEL] if split is task.train and task.label_names else [])] for split in splits
            ]
            splits = [split.select_columns(names) for split, names in zip(splits, columns, strict=True)]
            collate = CausalCollator(processor.pad_token_id)
        else:
            splits = [split.select_columns([n for n in split.column_names if n in MODEL_INPUTS]) for split in splits]
            collate = TextCollator(processor)
        public = chunk_corpus(
            corpus,
            processor,
            config.public.chunk_length,
            config.public.max_examples,
            numpy_rng(config.server_seed, "public"),
            pairs=pairs,
        )
    else:
        splits = [split.select_columns([PIXELS if PIXELS in split.column_names else IMAGE, LABEL]) for split in splits]
        assert isinstance(corpus, datasets.Dataset), "images are drawn when they are loaded"
        require_one_size([split for split in (*splits, corpus) if IMAGE in split.column_names], processor)
        limit, public = config.public.max_examples, corpus
        if limit is not None and limit < len(corpus):
            public = subset(corpus, numpy_rng(config.server_seed, "public").permutation(len(corpus))[:limit])
        collate = ImageCollator(processor)
    train, evaluation, *others = splits
    shared = None
    if source is not None:
        shared = SharedRows(
            task=source, columns=tuple(train.column_names), digest=source.open(say_warnings=False)[1]["train.arrow"]
        )
    return FederatedData(
        shared=shared,
        train=train,
        evaluation=evaluation,
        public=public,
        partition=partition,
        held_out=held_out,
        collate=collate,
        label_names=task.label_names,
        modality=task.modality,
        kind=task.kind,
        metrics=task.metrics,
        other_evaluations=dict(zip(task.other_evaluations, others, strict=True)),
        tokenizer=processor if isinstance(processor, PreTrainedTokenizerBase) else None,
    )


def partition_task(task: TaskData, config: FederatedConfig, seed: int) -> Partition:
    """Deal the task's training examples to the clients as the config says.

    Raises:
        ConfigError: as :func:`fedpft.data.partition.make_partition`; no such owner column; or a partition by
            labels of a task without classes.

    """
    settings, owners = config.partition, None
    has_classes = task.kind != "regression" and bool(task.label_names)
    if not has_classes and settings.kind not in ("iid", "natural"):
        hint = ", or a task.label_column of categories" if task.kind == "causal_lm" else ""
        fail("federated.partition.kind", settings.kind, f"iid, natural, because task.kind is {task.kind}{hint}")
    if settings.kind == "natural":
        assert settings.column is not None
        owners = _owners(task, settings.column, "federated.partition.column")
    return make_partition(
        task.train.with_format("numpy")[LABEL][:] if has_classes else np.zeros(len(task.train), dtype=np.int64),
        config.num_clients,
        numpy_rng(seed, "partition"),
        kind=settings.kind,
        dirichlet_alpha=settings.dirichlet_alpha,
        concentration=settings.concentration,
        labels_per_client=settings.labels_per_client,
        size_imbalance=settings.size_imbalance,
        owners=owners,
    )


def _owners(task: TaskData, column: str, key: str) -> np.ndarray:
    """Return (E,) the owner of each training example, as it stands in the data's own column.

    Raises:
        ConfigError: no such column, nulls in it, or neither strings nor integers.

    """
    name = task.renamed.get(column, column)
    if name == column and column in task.renamed.values() and column not in task.renamed:
        fail(key, column, f"another column: what is called {column} from here on is the task's input or label")
    require_column(task.train, name, key)
    values = task.train.data.column(name)
    if not are_strings(values) and not pa.types.is_integer(values.type) and not pa.types.is_boolean(values.type):
        fail(key, f"column {column} of type {type_name(task.train, name)}", "strings or integers")
    numbers = plain_integers(task.train, name) if are_strings(values) else None
    return np.asarray(task.train[name][:]) if numbers is None else numbers


def _require_same_modality(task: TaskData, corpus: datasets.Dataset, processor: object) -> None:
    model: Modality = "text" if isinstance(processor, PreTrainedTokenizerBase) else "image"
    if task.modality != model:
        fail("task.name", f"{task.modality} data", f"{model} data, because fm.path is a model of {model}")
    if (TEXT if model == "text" else IMAGE) not in corpus.column_names:
        fail("public.name", f"columns {', '.join(corpus.column_names)}", f"{model} data, as fm.path is a {model} model")
