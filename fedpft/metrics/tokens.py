"""Metrics of a language model, each over all target tokens of an evaluation set, whatever its batches are.

torchmetrics' own `Perplexity` takes the logarithm of a softmax and adds up in float32: tokens of small probability
become infinite and the sum depends on the batches. Here the logarithm is taken at once and added up in float64.
Legend: `B` batch, `T` tokens, `V` vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

IGNORED = -100
"""Label of a token that is no target, for transformers and torch alike."""


CHUNK_NUMBERS = 2**24
"""Logits that are float32 at a time, 64 MiB: of a large vocabulary a batch's would be gigabytes, once for each step."""


def find_targets(labels: Tensor) -> Tensor:
    """Return a batch's target tokens, (3, n): the row and the position where each is predicted, and its id.

    Args:
        labels: (B, T), `IGNORED` where a token is no target.

    """
    after = labels[:, 1:]
    row, position = (after != IGNORED).nonzero().unbind(1)
    return torch.stack([row, position, after[row, position]])


def targets_at_once(vocabulary: int) -> int:
    """Return of how many targets there are logits at a time."""
    return max(1, CHUNK_NUMBERS // vocabulary)


def target_chunks(labels: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield what :func:`find_targets` returns, some targets at a time: rows, positions, ids, (n,) each."""
    for chunk in find_targets(labels).split(targets_at_once(vocabulary), dim=1):
        row, position, ids = chunk
        yield row, position, ids


def predictions(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits, (n, V) float32, and token ids, (n,), of all target tokens of a batch, in chunks.

    Args:
        logits: (B, T, V); those at a position tell of the token after it. Or of some targets alone, (n, V).
        labels: (B, T), `IGNORED` where a token is no target; or (n,).

    """
    if labels.dim() == 1:
        yield logits.float(), labels
        return
    for row, position, targets in target_chunks(labels, logits.shape[-1]):
        yield logits[row, position].float(), targets


def num_targets(labels: Tensor) -> int:
    """Return over how many terms a model's loss of a batch is the mean: examples (B,), or target tokens (B, T)."""
    return len(labels) if labels.dim() == 1 else find_targets(labels).shape[1]


class TokenLoss(Metric):
    """Mean cross entropy in nats a target token."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch, (B, T, V) and (B, T), or some of its targets alone, (n, V) and (n,)."""
        scores = [self.score(*chunk) for chunk in predictions(logits, labels)]
        self.total += torch.cat(scores).sum(dtype=torch.float64)
        self.count += sum(map(len, scores))

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return what each target token adds, (targets,)."""
        return cross_entropy(logits, targets, reduction="none")

    def compute(self) -> Tensor:
        """Return the mean over all target tokens."""
        return self.total / self.count


class Perplexity(TokenLoss):
    """e to the mean cross entropy."""

    def compute(self) -> Tensor:
        """Return it."""
        return super().compute().exp()


class TokenAccuracy(TokenLoss):
    """Fraction of target tokens that are the most probable ones."""

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return 1 for each that is, else 0."""
        return (logits.argmax(dim=-1) == targets).float()


def takes_targets(metric: Metric) -> bool:
    """Whether a metric may be given single targets. One of others may want the texts of a batch as a whole."""
    return type(metric).update is TokenLoss.update
