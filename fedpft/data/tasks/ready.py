"""A task's rows as they go into a model: texts in tokens, and images, where that is wanted, in pixels."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from fedpft.data.collate import ImageCollator
from fedpft.data.corpora.chunks import special_tokens
from fedpft.data.image_sizes import require_one_size
from fedpft.data.sources.columns import IMAGE, PIXELS
from fedpft.data.sources.on_disk import kept
from fedpft.data.tasks.instructions import tokenise_instructions
from fedpft.data.tasks.loading import TaskData
from fedpft.data.tasks.tokens import tokenise

_IMAGES_AT_ONCE = 32


def ready_for_model(
    task: TaskData,
    processor: PreTrainedTokenizerBase | BaseImageProcessor,
    max_length: int,
    *,
    chat: bool = False,
    keep: Sequence[str] = (),
) -> TaskData:
    """Return a task of texts in tokens, one of images with the training images in pixels; one that is ready as it is.

    Args:
        task: as it was read.
        processor: the FM's.
        max_length: tokens of an example.
        chat: see `tokenise_instructions`.
        keep: further columns that stay where the inputs of a classifier go.

    Raises:
        ConfigError: as `tokenise_instructions` and `require_one_size`.

    """
    if task.is_ready:
        return task
    if not isinstance(processor, PreTrainedTokenizerBase):
        require_one_size([task.train], processor)
        return replace(task, train=_in_pixels(task.train, processor), is_ready=True)

    def in_tokens(split: str, dataset: datasets.Dataset) -> datasets.Dataset:
        if task.kind != "causal_lm":
            return tokenise(dataset, processor, max_length, split, keep)
        prefix, _ = special_tokens(processor)
        return tokenise_instructions(dataset, processor, max_length, prefix=prefix, chat=chat, split=split)

    return replace(
        task,
        is_ready=True,
        train=in_tokens("training", task.train),
        evaluation=in_tokens("evaluation", task.evaluation),
        other_evaluations={name: in_tokens(name, dataset) for name, dataset in task.other_evaluations.items()},
    )


def _in_pixels(dataset: datasets.Dataset, processor: BaseImageProcessor) -> datasets.Dataset:
    collate = ImageCollator(processor)

    def decode(batch: dict[str, list[Any]]) -> dict[str, list[bytes]]:
        return {PIXELS: [_as_file(collate([{IMAGE: image}])["pixel_values"][0].numpy()) for image in batch[IMAGE]]}

    features = datasets.Features(
        {PIXELS: datasets.Value("large_binary")}
        | {name: feature for name, feature in dataset.features.items() if name != IMAGE}
    )
    how: dict[str, Any] = {"batched": True, "batch_size": _IMAGES_AT_ONCE, "writer_batch_size": _IMAGES_AT_ONCE}
    return kept(dataset.map, decode, features=features, remove_columns=[IMAGE], **how)


def _as_file(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()
