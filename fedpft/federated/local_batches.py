"""The batches of a client's round, and which of them make a step together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedpft.federated.grouping import even_parts
from fedpft.federated.messages import LocalSettings
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.seeding import numpy_rng


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A part of a step, or a whole one."""

    tensors: Mapping[str, Tensor]
    """As the model takes them, with `labels`; empty for a step for which no example was drawn."""
    share: float
    """Of its mean loss in that of the step."""
    ends_step: bool


def batches(
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Tensor]],
    settings: LocalSettings,
    round_index: int,
    client_id: int,
) -> Iterator[Batch]:
    """Yield a client's batches, in an order of its own for every round and epoch; no step goes beyond an epoch."""
    size, most = settings.batch_size, settings.accumulate
    rng = numpy_rng(settings.seed, "batches", round_index, client_id)
    for _ in range(settings.num_epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), size * most):
            of_step = order[start : start + size * most]
            chosen = [of_step[first : first + size] for first in range(0, len(of_step), size)]
            parts = [collate([examples[i] for i in part]) for part in chosen]
            targets = [num_targets(part) for part in parts]
            for left, (part, count) in enumerate(zip(parts, targets, strict=True), start=1 - len(parts)):
                yield Batch(tensors=part, share=count / max(1, sum(targets)), ends_step=left == 0)


def poisson_batches(
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Tensor]],
    settings: LocalSettings,
    round_index: int,
    client_id: int,
    noise: ExampleNoise,
    most: int,
) -> Iterator[Batch]:
    """Yield a client's batches in which each example is by itself with the same probability, in parts of `most`."""
    rng = numpy_rng(settings.seed, "poisson_batches", round_index, client_id)
    for _ in range(settings.num_steps(len(examples))):
        drawn = noise.draw(len(examples), rng).tolist()
        parts = even_parts(drawn, most)
        if not parts:
            yield Batch(tensors={}, share=0.0, ends_step=True)
        for left, part in enumerate(parts, start=1 - len(parts)):
            tensors = collate([examples[i] for i in part])
            yield Batch(tensors=tensors, share=len(part) / len(drawn), ends_step=left == 0)


def num_targets(batch: Mapping[str, Tensor]) -> int:
    """Return over how many labels the mean loss of a batch goes; a language model predicts no first token."""
    labels = batch["labels"]
    return len(labels) if labels.dim() == 1 else int((labels[:, 1:] != -100).sum())
