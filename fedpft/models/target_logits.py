"""A language model's logits where there are targets alone, some at a time.

Of a large vocabulary the logits of a whole batch are gigabytes, and of instruction data most are of no use. So the
layers run once, and what the model does after them, with few of their states at a time. In training, too: a frozen
head's gradient by its states is known as soon as their loss is, so that their logits need not wait for the backward
pass (as in Liger-Kernel's fused linear cross entropy, arXiv 2410.10989).
Legend: `B` batch, `T` tokens, `H` hidden, `V` vocabulary, `K` parts of a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from fedpft.metrics.tokens import find_targets, target_chunks, targets_at_once
from fedpft.models.ffn import ffn_location, find_backbone
from fedpft.models.together import Together


def target_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and token ids as :func:`fedpft.metrics.tokens.predictions` does of a whole batch's logits.

    Args:
        model: a language model, in eval mode.
        inputs: without labels.
        labels: (B, T), `IGNORED` where a token is no target.
        autocast: entered for what the model computes.

    """
    with autocast():
        states = last_states(model, inputs)
    for row, position, targets in target_chunks(labels, model.config.vocab_size):
        with autocast():
            logits = logits_of(model, states[row, position])
        yield logits.float(), targets


def batch_loss(model: nn.Module, batch: Mapping[str, Tensor], targets: Sequence[Tensor] | None = None) -> Tensor:
    """Return the mean loss of a labelled batch, (); within :class:`Together` each client's, (K,).

    Args:
        model: returns `.loss` when the batch has `labels`, (B,); or is a language model.
        batch: inputs, and `labels`, (B,), or where tokens are predicted (B, T).
        targets: of tokens, as :func:`target_losses` takes them; None: those of the labels; a GPU is waited for.

    """
    labels = batch["labels"]
    if labels.dim() == 1:
        loss: Tensor = model(**batch).loss
        return loss
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    losses = target_losses(model, inputs, [find_targets(labels)] if targets is None else targets)
    return losses.squeeze(0) if Together.current is None else losses


def target_losses(model: nn.Module, inputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return a language model's mean cross entropy over the targets of each part of a batch, (K,); nan: it has none.

    That is the model's own loss of the part, to which gradients go back. No more logits exist at a time than of
    :func:`fedpft.metrics.tokens.targets_at_once` targets, where the head is frozen.

    Args:
        model: whose loss is transformers' for causal models.
        inputs: (K * B, T) each, without labels; within :class:`Together` the parts are its clients'.
        targets: of each part, as :func:`fedpft.metrics.tokens.find_targets` returns them, (3, n).

    """
    states, mode = last_states(model, inputs), Together.current
    losses = []
    for client, (part, of_part) in enumerate(zip(states.chunk(len(targets)), targets, strict=True)):
        row, position, ids = of_part
        with nullcontext() if mode is None else mode.only(client):
            losses.append(_summed_loss(model, part[row, position], ids) / ids.numel())
    return torch.stack(losses)


def has_frozen_head(model: nn.Module) -> bool:
    """Whether nothing in a language model's output layer is trained; LoRA might be."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # a PreTrainedModel's, through peft
    return not any(parameter.requires_grad for parameter in head.parameters())


def _summed_loss(model: Any, states: Tensor, ids: Tensor) -> Tensor:
    """Return the cross entropy, float32, summed over states that the head reads, (n, H), of the tokens (n,) after."""
    if has_frozen_head(model) and torch.is_grad_enabled():
        return _InChunks.apply(states, ids, model)
    return _loss_of_chunk(model, states, ids)


def _loss_of_chunk(model: Any, states: Tensor, ids: Tensor) -> Tensor:
    # within `Together` the loss is that of one client, (1,)
    return cross_entropy(logits_of(model, states).float(), ids, reduction="sum").sum()


class _InChunks(torch.autograd.Function):
    """A loss whose gradient by the states is computed with it, chunk after chunk."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, ids: Tensor, model: Any) -> Tensor:
        """Return the loss."""
        size = targets_at_once(model.config.vocab_size)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradients = [torch.empty_like(states[:0])]
        for part, of_part in zip(states.split(size), ids.split(size), strict=True):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                loss = _loss_of_chunk(model, leaf, of_part)
            gradients += torch.autograd.grad(loss, leaf)
            total += loss.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient by the states."""
        (by_states,) = ctx.saved_tensors
        return by_states * gradient, None, None


def is_language_model(model: nn.Module) -> bool:
    """Whether a model's outputs are logits of the next tokens."""
    return model.get_output_embeddings() is not None  # type: ignore[operator]  # a PreTrainedModel's, through peft


def last_states(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what a language model's head reads, (B, T, H)."""
    states: Tensor = find_backbone(model)(**inputs, use_cache=False).last_hidden_state
    return states


def logits_of(model: Any, states: Tensor) -> Tensor:
    """Return a language model's logits, (n, V), of states that its head reads, (n, H).

    Its own code makes them: some families scale or cap what the head gives.
    """
    with _layers_give(model, states[None]):
        logits: Tensor = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=states.device)).logits
    return logits[0]


@contextmanager
def _layers_give(model: nn.Module, states: Tensor) -> Iterator[None]:
    """Let the part of a model that has its layers return these states, (1, n, H), and compute nothing."""
    stack = attrgetter(f"base_model.{ffn_location(model).layers}".rpartition(".")[0])(find_backbone(model))
    stack.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)
    try:
        yield
    finally:
        del stack.forward
