"""The batches of a client's round, and which of them make a step together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedpft.federated.grouping import even_parts
from fedpft.federated.messages import LocalSettings
from fedpft.metrics.tokens import find_targets
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
    targets: tuple[Tensor, ...] = ()
    """Of tokens, where those of each part are that has a loss of its own, as `find_targets` returns them: of the batch,
    or where examples are private, of each one. They are looked for before the batch is on a GPU."""

    @property
    def num_targets(self) -> int:
        """Over how many labels its mean loss goes; a language model predicts no first token."""
        return sum(part.shape[1] for part in self.targets) if self.targets else len(self.tensors["labels"])


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
            tensors = [collate([examples[i] for i in part]) for part in chosen]
            parts = [
                Batch(tensors=part, share=1.0, ends_step=left == 0, targets=_targets(part["labels"][None]))
                for left, part in enumerate(tensors, start=1 - len(tensors))
            ]
            total = max(1, sum(part.num_targets for part in parts))
            yield from (replace(part, share=part.num_targets / total) for part in parts)


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
            yield Batch(
                tensors=tensors,
                share=len(part) / len(drawn),
                ends_step=left == 0,
                targets=_targets(tensors["labels"][:, None]),
            )


def _targets(labels: Tensor) -> tuple[Tensor, ...]:
    """Return where the target tokens are of each part, of labels (parts, B, T); of labels of examples, nothing."""
    return tuple(map(find_targets, labels)) if labels.dim() == 3 else ()
