"""A language model's logits where there are targets alone, some at a time.

Of a large vocabulary the logits of a whole batch are gigabytes, and of instruction data most are of no use. So the
layers run once, and what the model does after them, with few of their states at a time.
Legend: `B` batch, `T` tokens, `H` hidden, `V` vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from fedpft.metrics.tokens import target_chunks
from fedpft.models.ffn import ffn_location, find_backbone


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
