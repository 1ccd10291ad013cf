"""Neuron saliency: which neurons of an FFN matter. A scorer maps a model's FFNs to one (N,) tensor each."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.models.activations import NeuronWatch
from fedpft.models.ffn import FFN, find_backbone

Scorer = Callable[[PreTrainedModel, Sequence[FFN]], list[Tensor]]


@torch.no_grad()
def weight_norm(model: PreTrainedModel, ffns: Sequence[FFN]) -> list[Tensor]:
    """L2 norm of each neuron's weights, `s_j = ||concat(W_up[j, :], W_gate[j, :], W_down[:, j])||` (the paper)."""
    scores = []
    for ffn in ffns:
        parts = [ffn.up_weight, ffn.down_weight.T]
        if ffn.gate_weight is not None:
            parts.insert(1, ffn.gate_weight)
        scores.append(torch.linalg.vector_norm(torch.cat(parts, dim=1), dim=1))
    return scores


def random_scorer(seed: int) -> Scorer:
    """Return the control: uniform scores that depend on nothing but the seed."""

    def random(model: PreTrainedModel, ffns: Sequence[FFN]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(ffn.num_neurons, generator=generator) for ffn in ffns]

    return random


def activation_scorer(batches: Iterable[Mapping[str, Tensor]]) -> Scorer:
    """Return `rms_j(h) * ||W_down[:, j]||`: how much each neuron moves the FFN's output on public data.

    Args:
        batches: inputs of the model on its device; streamed once, sums kept in float64.

    """

    @torch.no_grad()
    def activation(model: PreTrainedModel, ffns: Sequence[FFN]) -> list[Tensor]:
        squares = [torch.zeros(ffn.num_neurons, dtype=torch.float64) for ffn in ffns]
        tokens = [0] * len(ffns)

        def add(position: int, activations: Tensor) -> None:
            squares[position] += activations.double().square().sum(dim=0).cpu()
            tokens[position] += len(activations)

        watch = NeuronWatch(ffns, add)
        was_training = model.training
        model.eval()
        try:
            for batch in batches:
                watch.set_mask(batch.get("attention_mask"))
                find_backbone(model)(**batch)
        finally:
            watch.close()
            model.train(was_training)
        if not all(tokens):
            raise ValueError("activation saliency needs at least one public batch with a real token")
        return [
            (total / count).sqrt() * torch.linalg.vector_norm(ffn.down_weight.double(), dim=0).cpu()
            for total, count, ffn in zip(squares, tokens, ffns, strict=True)
        ]

    return activation


def find_scorer(scorer: Scorer | str) -> Scorer:
    """Return the scorer of that name; a function is returned as it is.

    Raises:
        ValueError: an unknown name, or `activation`, which needs data.

    """
    by_name = {"weight_norm": weight_norm, "random": random_scorer(seed=0)}
    if not isinstance(scorer, str):
        return scorer
    if scorer not in by_name:
        raise ValueError(f"scorer: found {scorer!r}, allowed: {', '.join(by_name)}, or activation_scorer(batches)")
    return by_name[scorer]


def most_salient(scores: Tensor, num_retained: int) -> Tensor:
    """Return the indices of the largest scores in ascending order; of equal scores the lower index wins."""
    return torch.sort(scores, descending=True, stable=True).indices[:num_retained].sort().values
