"""How much of what the FM could do before the run its sub-FM can do: what the server gives away of the FM by itself.

Measured on public examples, without any tuning. Legend: `B` batch, `T` tokens, `H` hidden, `n` tokens of all batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from fedpft.config import ServerConfig
from fedpft.models.flags import restored_flags
from fedpft.trainer import server_fabric

RIDGE = 1e-3
"""Of the probe's regression, over the mean square of the sub-FM's hidden states."""

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SharedSkill:
    """Parts of the FM's skill that the sub-FM has (CPL); 1: all of it."""

    agreement: float
    """Answers that are the same: the most probable label, or next token. A head that is new says nothing."""
    hidden: float
    """Of the variance of the FM's last hidden states, what the sub-FM's own explain; below 0: worse than their mean."""
    probe: float
    """The same after the best linear map, fitted on one half of the batches and measured on the other."""
    loss: float | None
    """Of a language model: how far the sub-FM is on the way from the tokens' frequencies to the FM's loss a token."""


@torch.no_grad()
def shared_skill(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, batches: Sequence[Batch], *, causal: bool, server: ServerConfig
) -> SharedSkill:
    """Compare two untuned models of one width; they do not change.

    Args:
        fm: the server's.
        sub_fm: what clients get of it.
        batches: unlabelled model inputs, two or more.
        causal: whether they are language models.
        server: device.

    """
    logits, states = zip(*(_outputs(model, batches, server) for model in (fm, sub_fm)), strict=True)
    pairs = list(zip(batches, *logits, strict=True))
    same = torch.cat([(a.argmax(-1) == b.argmax(-1))[_real(batch) if causal else ...] for batch, a, b in pairs])
    half = sum(len(part) for part in states[0][: len(batches) // 2])
    own, theirs = (torch.cat(parts).double() for parts in (states[1], states[0]))
    return SharedSkill(
        agreement=float(same.double().mean()),
        hidden=explained(theirs, own),
        probe=explained(theirs[half:], probed(own[:half], theirs[:half], own[half:])),
        loss=_share_of_loss(pairs) if causal else None,
    )


def explained(wanted: Tensor, found: Tensor) -> float:
    """Return which part of the variance of `wanted`, (n, H), `found` explains."""
    return 1 - float((wanted - found).square().sum() / (wanted - wanted.mean(dim=0)).square().sum())


def probed(inputs: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Fit a ridge regression of targets on inputs, (n, H) each, and return what it makes of others, (m, H)."""
    mean, centre = inputs.mean(dim=0), targets.mean(dim=0)
    x, y = inputs - mean, targets - centre
    ridge = RIDGE * float(x.square().mean()) * len(x)
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    return (others - mean) @ torch.linalg.solve(gram, x.T @ y) + centre


def _outputs(
    model: PreTrainedModel, batches: Sequence[Batch], server: ServerConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """Return of each batch the logits, and the last hidden states at real tokens, (tokens, H)."""
    fabric = server_fabric(server)
    fabric.to_device(model)
    logits, states = [], []
    with restored_flags(model):
        model.eval()
        for batch in batches:
            output = model(**fabric.to_device(dict(batch)), output_hidden_states=True)
            logits.append(output.logits.float().cpu())
            hidden = output.hidden_states[-1].float().cpu()
            states.append(hidden[_real(batch)] if "attention_mask" in batch else hidden.flatten(0, -2))
    return logits, states


def _real(batch: Batch) -> Tensor:
    """Return (B, T) bool: real tokens."""
    return batch["attention_mask"].bool().cpu()


def _share_of_loss(pairs: Sequence[tuple[Batch, Tensor, Tensor]]) -> float:
    found, ids = [], []
    for batch, *logits in pairs:
        after, targets = _real(batch)[:, 1:], batch["input_ids"].cpu()[:, 1:]
        ids.append(targets[after])
        found.append([cross_entropy(each[:, :-1][after], ids[-1], reduction="sum").item() for each in logits])
    tokens = torch.cat(ids).numpy()
    fm, sub_fm = np.sum(found, axis=0) / len(tokens)
    frequencies = np.bincount(tokens) / len(tokens)
    by_frequency = -np.sum(frequencies * np.log(np.where(frequencies > 0, frequencies, 1)))
    return float((by_frequency - sub_fm) / (by_frequency - fm))
