"""Neuron saliency: which neurons of an FFN matter. A scorer maps a model's FFNs to one (N,) tensor each."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.config.method import SCORER_NAMES
from fedpft.config.plugins import is_own, load_part
from fedpft.models.activations import NeuronWatch
from fedpft.models.ffn import FFN, find_backbone
from fedpft.models.layerwise import record_calls, runs_layer_by_layer
from fedpft.models.on_disk import on_disk

Scorer = Callable[[PreTrainedModel, Sequence[FFN]], list[Tensor]]

_ELIMINATION_RIDGE = 1e-3  # of the mean variance: keeps the inverse of a nearly singular covariance in bounds
_ELIMINATION_STEPS = 128  # blocks in which the greedy scorer gives up the neurons


@torch.no_grad()
def weight_norm(model: PreTrainedModel, ffns: Sequence[FFN]) -> list[Tensor]:
    """L2 norm of each neuron's weights, `s_j = ||concat(W_up[j, :], W_gate[j, :], W_down[:, j])||` (the paper)."""
    scores = []
    for ffn in ffns:
        parts = [ffn.up_weight, ffn.down_weight.T]
        if ffn.gate_weight is not None:
            parts.insert(1, ffn.gate_weight)
        scores.append(torch.linalg.vector_norm(torch.cat(parts, dim=1), dim=1, dtype=torch.float32))
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
        squares = [torch.zeros(ffn.num_neurons, dtype=torch.float64, device=ffn.down_weight.device) for ffn in ffns]

        def add(position: int, activations: Tensor) -> None:
            squares[position] += activations.double().square().sum(dim=0)

        tokens = _visit_activations(model, ffns, batches, add)
        return [
            ((total / tokens).sqrt() * torch.linalg.vector_norm(ffn.output_weight.double(), dim=0)).cpu()
            for total, ffn in zip(squares, ffns, strict=True)
        ]

    return activation


def greedy_scorer(batches: Iterable[Mapping[str, Tensor]]) -> Scorer:
    """Return the order in which neurons are given up, one small block after the other: those that cost least go first.

    What a neuron costs is the error that its loss leaves in the FFN's output on public data after the remaining
    columns of `W_down` took over what they can: the optimal brain surgeon's saliency, in its structured form
    (Hassibi & Stork 1993; ZipLM, arXiv 2302.04089). It pays with a refit, `align.layers.kind: closed_form`.

    Args:
        batches: inputs of the model on its device; streamed once. Memory is (N, N) float64 for one FFN, or for each
            where something is computed between two layers; one hidden state of each batch lies on disk.

    """

    @torch.no_grad()
    def greedy(model: PreTrainedModel, ffns: Sequence[FFN]) -> list[Tensor]:
        if not runs_layer_by_layer(model):
            moments = [_Moments(ffn) for ffn in ffns]
            tokens = _visit_activations(model, ffns, batches, lambda position, h: moments[position].add(h))
            return [moment.ranks(tokens) for moment in moments]
        was_training = model.training
        model.eval()
        try:
            calls = record_calls(model, batches)
            tokens = _checked(sum(int(call.real.sum()) for call in calls))
            masks = [None if bool(call.real.all()) else call.real for call in calls]
            hidden, scores = [call.hidden for call in calls], []
            for ffn in ffns:
                moment = _Moments(ffn)
                watch = NeuronWatch([ffn], lambda position, h, moment=moment: moment.add(h))
                try:
                    for index, call in enumerate(calls):
                        watch.set_mask(masks[index])
                        hidden[index] = on_disk(call.run(ffn.layer, ffn.index, hidden[index]))
                finally:
                    watch.close()
                scores.append(moment.ranks(tokens))
            return scores
        finally:
            model.train(was_training)

    return greedy


class _Moments:
    """Second moments of an FFN's activations and of a one beside them, (N + 1, N + 1) float64."""

    def __init__(self, ffn: FFN) -> None:
        size, device = ffn.num_neurons + 1, ffn.down_weight.device
        self._ffn, self._sums = ffn, torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, activations: Tensor) -> None:
        """Add (tokens, N)."""
        x = torch.cat([activations.float(), activations.new_ones(len(activations), 1).float()], dim=1)
        self._sums += (x.T @ x).double()

    def ranks(self, tokens: int) -> Tensor:
        """Return (N,), on the CPU: see :func:`elimination_ranks`. The sums are used up."""
        moments = self._sums.div_(tokens)
        mean, covariance = moments[-1, :-1], moments[:-1, :-1]
        if self._ffn.down.bias is not None:
            covariance -= torch.outer(mean, mean)  # the bias takes over a dropped neuron's mean
        return elimination_ranks(covariance, self._ffn.output_weight.T).cpu()


def elimination_ranks(covariance: Tensor, columns: Tensor) -> Tensor:
    """Return (N,) ranks by backward elimination: 0 for the neuron that is given up first, N - 1 for the last.

    Args:
        covariance: (N, N) of the activations.
        columns: (N, H), the neurons' columns of `W_down`.

    """
    covariance, weights = covariance.double(), columns.double()
    num_neurons = len(covariance)
    ridge = _ELIMINATION_RIDGE * covariance.diagonal().mean()
    inverse = torch.linalg.inv(covariance.diagonal_scatter(covariance.diagonal() + ridge))
    alive = torch.arange(num_neurons, device=weights.device)
    ranks = torch.empty(num_neurons, dtype=torch.float64, device=weights.device)
    block = max(1, num_neurons // _ELIMINATION_STEPS)
    for start in range(0, num_neurons, block):
        order = torch.sort(weights.square().sum(dim=1) / inverse.diagonal(), stable=True).indices
        drop, keep = order[:block], order[block:].sort().values
        ranks[alive[drop]] = torch.arange(start, start + len(drop), dtype=torch.float64, device=weights.device)
        if not len(keep):
            break
        coupling = torch.linalg.solve(inverse[drop][:, drop], inverse[drop][:, keep])  # (dropped, kept)
        weights = weights[keep] - coupling.T @ weights[drop]
        inverse = inverse[keep][:, keep] - inverse[keep][:, drop] @ coupling
        alive = alive[keep]
    return ranks


def _visit_activations(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Iterable[Mapping[str, Tensor]],
    visit: Callable[[int, Tensor], None],
) -> int:
    """Show `visit` the activations of the batches' real tokens, in eval mode, and return how many tokens there were."""
    tokens = 0

    def count(position: int, activations: Tensor) -> None:
        nonlocal tokens
        tokens += len(activations) if position == 0 else 0
        visit(position, activations)

    watch = NeuronWatch(ffns, count)
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            watch.set_mask(batch.get("attention_mask"))
            find_backbone(model)(**batch)
    finally:
        watch.close()
        model.train(was_training)
    return _checked(tokens)


def _checked(tokens: int) -> int:
    if not tokens:
        raise ValueError("a scorer that reads activations needs at least one public batch with a real token")
    return tokens


def find_scorer(scorer: Scorer | str) -> Scorer:
    """Return the scorer of that name; a function is returned as it is.

    Raises:
        ValueError: an unknown name, or one that needs data.

    """
    by_name = {"weight_norm": weight_norm, "random": random_scorer(seed=0)}
    if not isinstance(scorer, str):
        return scorer
    if scorer not in by_name:
        raise ValueError(
            f"scorer: found {scorer!r}, allowed: {', '.join(by_name)}, or a function such as activation_scorer(batches)"
        )
    return by_name[scorer]


def named_scorer(name: str, seed: int, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> Scorer:
    """Return one of the four scorers by its name, or one of others; `batches` are made for those alone that read them.

    Raises:
        ValueError: an unknown name.

    """
    if name not in SCORER_NAMES and is_own("scorer", name):
        return load_part("scorer", name)
    if name == "random":
        return random_scorer(seed)
    readers = {"activation": activation_scorer, "greedy": greedy_scorer}
    return readers[name](batches()) if name in readers else find_scorer(name)


def most_salient(scores: Tensor, num_retained: int) -> Tensor:
    """Return the indices of the largest scores in ascending order; of equal scores the lower index wins."""
    return torch.sort(scores, descending=True, stable=True).indices[:num_retained].sort().values
