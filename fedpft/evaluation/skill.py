"""How much of what the FM could do before the run its sub-FM can do: what the server gives away of the FM by itself.

Measured on public examples, without any tuning. Legend: `B` batch, `T` tokens, `H` hidden, `n` tokens of all batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from fedpft.config import ServerConfig
from fedpft.metrics.tokens import IGNORED, target_chunks
from fedpft.models.ffn import find_backbone
from fedpft.models.flags import restored_flags
from fedpft.models.lora import AdaptedModel
from fedpft.models.target_logits import last_states, logits_of
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
    probe: float | None
    """The same after the best linear map, fitted on one half of the batches and measured on the other; None: not
    asked."""
    loss: float | None
    """Of a language model: how far the sub-FM is on the way from the tokens' frequencies to the FM's loss a token."""


@torch.no_grad()
def shared_skill(
    fm: PreTrainedModel | AdaptedModel,
    sub_fm: PreTrainedModel | AdaptedModel,
    batches: Sequence[Batch],
    *,
    causal: bool,
    server: ServerConfig,
    probes: bool = True,
) -> SharedSkill:
    """Compare two untuned models of one width; they do not change.

    Args:
        fm: the server's.
        sub_fm: what clients get of it.
        batches: unlabelled model inputs, two or more.
        causal: whether they are language models.
        server: device.
        probes: whether to fit the linear map, which takes more tokens than hidden states have features.

    """
    fabric = server_fabric(server)
    for model in (fm, sub_fm):
        fabric.to_device(model)
    same, losses, theirs, own = list[Tensor](), list[tuple[float, ...]](), list[Tensor](), list[Tensor]()
    with restored_flags(fm, sub_fm):
        for model in (fm, sub_fm):
            model.eval()
        for batch in batches:
            if causal:
                agree, loss, states = _next_tokens((fm, sub_fm), fabric.to_device(dict(batch)))
                losses.append(loss)
            else:
                answers, hidden = zip(*(_outputs(model, batch, fabric) for model in (fm, sub_fm)), strict=True)
                agree, states = answers[0].argmax(-1) == answers[1].argmax(-1), list(hidden)
            same.append(agree.flatten())
            theirs.append(states[0])
            own.append(states[1])
    half = sum(len(part) for part in own[: len(batches) // 2])
    x, y = (torch.cat(parts).double() for parts in (own, theirs))
    return SharedSkill(
        agreement=float(torch.cat(same).double().mean()),
        hidden=explained(y, x),
        probe=explained(y[half:], probed(x[:half], y[:half], x[half:])) if probes else None,
        loss=_share_of_loss(batches, losses) if causal else None,
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


def _next_tokens(models: Sequence[Any], batch: Batch) -> tuple[Tensor, tuple[float, ...], list[Tensor]]:
    """Compare two language models on a batch.

    Returns:
        At each real token, (tokens,), whether both take the same token for the next one; each one's loss, summed over
        tokens that are the next; and each one's last hidden states at real tokens, (tokens, H).

    """
    states, real = [last_states(model, batch) for model in models], batch["attention_mask"].bool()
    following = pad(batch["input_ids"].masked_fill(~real, IGNORED)[:, 1:], (0, 1), value=IGNORED)
    places = pad(real.long().masked_fill(~real, IGNORED), (1, 0), value=IGNORED)  # a token's place tells of the next
    same, losses = list[Tensor](), [0.0, 0.0]
    for row, position, _ in target_chunks(places, models[0].config.vocab_size):
        both = [logits_of(model, of[row, position]).float() for model, of in zip(models, states, strict=True)]
        same.append(both[0].argmax(-1) == both[1].argmax(-1))
        for side, logits in enumerate(both):
            losses[side] += cross_entropy(logits, following[row, position], reduction="sum").item()
    return torch.cat(same).cpu(), tuple(losses), [of[real].float().cpu() for of in states]


def _outputs(model: Any, batch: Batch, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """Return the logits, and the backbone's last hidden states at real tokens, (tokens, H).

    They are not asked for by `output_hidden_states`, for which transformers leaves hooks in the model that cannot be
    pickled.
    """
    found: list[Tensor] = []
    backbone = find_backbone(model)
    handle = backbone.register_forward_hook(lambda module, args, output: found.append(output[0].float().cpu()))
    try:
        logits = model(**fabric.to_device(dict(batch))).logits.float().cpu()
    finally:
        handle.remove()
    (hidden,) = found
    return logits, hidden[_real(batch)] if "attention_mask" in batch else hidden.flatten(0, -2)


def _real(batch: Batch) -> Tensor:
    """Return (B, T) bool: real tokens."""
    return batch["attention_mask"].bool().cpu()


def _share_of_loss(batches: Sequence[Batch], losses: Sequence[tuple[float, ...]]) -> float:
    tokens = torch.cat([batch["input_ids"].cpu()[:, 1:][_real(batch)[:, 1:]] for batch in batches]).numpy()
    fm, sub_fm = np.sum(losses, axis=0) / len(tokens)
    frequencies = np.bincount(tokens) / len(tokens)
    by_frequency = -np.sum(frequencies * np.log(np.where(frequencies > 0, frequencies, 1)))
    return float((by_frequency - sub_fm) / (by_frequency - fm))
