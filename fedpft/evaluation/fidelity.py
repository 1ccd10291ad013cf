"""The fidelity meter: how far a proxy is from the FM, in hidden states and in gradients.

FedPFT's theorem bounds the error of the tuned FM by the distance between the gradients that the sub-FM gives the
adapter and those that the FM would have given it. Both are measured here, layer by layer, on one fixed labelled batch
with one adapter in both models, in eval mode and without mixed precision. Shapes: `B` batch, `T` tokens, `H` hidden.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from fedpft.attention_mask import real_tokens
from fedpft.config import ServerConfig
from fedpft.metrics.tokens import find_targets
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_ffns
from fedpft.models.flags import restored_flags
from fedpft.models.lora import AdaptedModel, adapter_parameters, split_adapter
from fedpft.models.shared_neurons import NeuronsKept, kept_entries
from fedpft.models.target_logits import batch_loss
from fedpft.trainer import StepReport, server_fabric

LayerPairs = Sequence[tuple[int, int]]
"""(layer of the FM, layer of the proxy) that correspond, both counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far the proxy is from the FM, in one layer or in total; None where a norm is 0 or not finite."""

    hidden_error: float | None
    """`|H_fm - H_proxy|_F / |H_fm|_F` over real tokens: the root of the alignment's L1; in total the last layer's."""
    gradient_cosine: float | None
    """Cosine of the two gradients of the task loss in the LoRA tensors, A and B concatenated."""
    gradient_norm_ratio: float | None
    """`|g_proxy| / |g_fm|` of the same gradients."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One measurement."""

    layers: tuple[Distance, ...]
    total: Distance

    def record(self) -> dict[str, Any]:
        """Return it as JSON: each quantity's list over the layers, and `total` with one number each."""
        names = [field.name for field in fields(Distance)]
        return {name: [getattr(layer, name) for layer in self.layers] for name in names} | {"total": asdict(self.total)}


def measure_fidelity(
    fm: AdaptedModel,
    proxy: AdaptedModel,
    batch: Mapping[str, Tensor],
    *,
    server: ServerConfig,
    batch_size: int | None = None,
    layers: LayerPairs | None = None,
    neurons: NeuronsKept = MappingProxyType({}),
    on_step: StepReport | None = None,
) -> Fidelity:
    """Compare the proxy with the FM on one batch; neither model changes, and no random number is drawn.

    Args:
        fm, proxy: models with the same adapter in them; given labels, they return `.loss`, a mean over the targets.
        batch: inputs of both, with `labels`, (B,) or for tokens (B, T), and where there is padding `attention_mask`,
            (B, T).
        server: device; its precision is for other work, this is never mixed.
        batch_size: examples per forward and backward pass, which bounds the memory and changes no result; None: all.
        layers: pairs to compare, shallowest first; None: every layer of two models of the same depth.
        neurons: of the FM's FFNs that the proxy has a part of. LoRA is compared at what both have.
        on_step: hears about every pass, in examples.

    Raises:
        ValueError: no labels or examples, different depths without `layers`, a layer that does not exist, or two
            adapters.

    """
    num_examples = len(batch.get("labels", ()))
    if num_examples == 0:
        raise ValueError(f"batch: found {sorted(batch)} of no labelled example, allowed: inputs with `labels`")
    pairs = _checked_pairs(layers, len(find_ffns(fm)), len(find_ffns(proxy)))
    fabric = server_fabric(server)
    size = batch_size or num_examples
    with restored_flags(fm, proxy):
        sides = [_Side(fm, [pair[0] for pair in pairs], fabric), _Side(proxy, [pair[1] for pair in pairs], fabric)]
        sides[0].keep_common(sides[1], [neurons.get(fm_layer) for fm_layer, _ in pairs])
        _check_same_adapter(*sides)
        errors, energies = torch.zeros(2, len(pairs), dtype=torch.float64, device=fabric.device)
        for start in range(0, num_examples, size):
            here = {name: value[start : start + size] for name, value in batch.items()}
            targets = [find_targets(here["labels"])] if here["labels"].dim() == 2 else []  # before a GPU has them
            part, targets = fabric.to_device(here), [fabric.to_device(each) for each in targets]
            for layer, (truth, found) in enumerate(zip(*(side.visit(part, targets) for side in sides), strict=True)):
                errors[layer] += (truth - found).square().sum().to(errors.device)
                energies[layer] += truth.square().sum().to(errors.device)
            if on_step is not None:
                on_step(min(start + size, num_examples), num_examples, {})
    ends = zip(errors.tolist(), energies.tolist(), strict=True)
    hidden = [_fraction(math.sqrt(error), math.sqrt(energy)) for error, energy in ends]
    fm_gradients, proxy_gradients = (side.gradients() for side in sides)
    distances = map(_distance, hidden, fm_gradients, proxy_gradients)
    total = _distance(hidden[-1], torch.cat(fm_gradients), torch.cat(proxy_gradients))
    return Fidelity(layers=tuple(distances), total=total)


class _Side:
    """One of the two models: its hidden states, and the gradient of the loss summed over all examples visited."""

    def __init__(self, model: AdaptedModel, layers: Iterable[int], fabric: L.Fabric) -> None:
        self._model = fabric.to_device(model).eval().requires_grad_(False)
        ffns = find_ffns(model)
        self._layers = [ffns[layer].layer for layer in layers]
        self._lora = [_lora_tensors(layer) for layer in self._layers]
        self._tensors = [tensor.requires_grad_(True) for tensors in self._lora for tensor in tensors]
        self._sums = [torch.zeros_like(tensor) for tensor in self._tensors]
        self._parts: dict[int, tuple[int, Tensor]] = {}

    @property
    def lora(self) -> list[list[Tensor]]:
        """Each layer's LoRA tensors, or what both models have of them."""
        return self._by_layer(self._tensors)

    def keep_common(self, proxy: "_Side", neurons: Sequence[Tensor | None]) -> None:
        """Leave out of all that is returned what the proxy lacks; `neurons` of each layer are those that it has."""
        of_tensors = [kept for kept, tensors in zip(neurons, self._lora, strict=True) for _ in tensors]
        for index, (own, its, kept) in enumerate(zip(self._tensors, proxy._tensors, of_tensors, strict=False)):
            if own.shape != its.shape and kept is not None:
                axis, entries = kept_entries(own.shape, its.shape, kept)
                self._parts[index] = axis, entries.to(own.device)

    def visit(self, batch: Mapping[str, Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Add the examples' gradients and return each layer's hidden states at real tokens, (tokens, H)."""
        num_terms = sum(part.shape[1] for part in targets) if targets else len(batch["labels"])
        with torch.enable_grad(), layer_outputs(self._layers) as outputs:
            loss = batch_loss(self._model, batch, targets or None) * num_terms
            gradients = torch.autograd.grad(loss, self._tensors)
        for total, gradient in zip(self._sums, gradients, strict=True):
            total += gradient
        mask = batch.get("attention_mask")
        rows = None if mask is None else real_tokens(mask)
        states = [outputs[position].detach().flatten(0, -2) for position in range(len(self._layers))]
        return [(s if rows is None else s.index_select(0, rows.to(s.device))).float() for s in states]

    def gradients(self) -> list[Tensor]:
        """Return each layer's summed gradient as one float64 vector on the CPU (the mean's up to a common factor)."""
        sums = self._by_layer(self._sums)
        whole = _flat([tensor for tensors in sums for tensor in tensors])
        return list(whole.split([sum(tensor.numel() for tensor in tensors) for tensors in sums]))

    def _by_layer(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        parts = (
            tensor.index_select(*self._parts[i]) if i in self._parts else tensor for i, tensor in enumerate(tensors)
        )
        return [list(islice(parts, len(layer))) for layer in self._lora]


def _lora_tensors(layer: nn.Module) -> list[nn.Parameter]:
    return split_adapter(adapter_parameters(layer))[0]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors as one float64 vector on the CPU; brought there in one piece."""
    pieces = [tensor.detach().reshape(-1).to(tensors[0].device) for tensor in tensors]
    return torch.cat(pieces).cpu().double() if pieces else torch.empty(0, dtype=torch.float64)


def _distance(hidden_error: float | None, fm_gradient: Tensor, proxy_gradient: Tensor) -> Distance:
    fm_norm, proxy_norm = float(fm_gradient.norm()), float(proxy_gradient.norm())
    cosine = _fraction(float(fm_gradient @ proxy_gradient), fm_norm * proxy_norm)
    return Distance(
        hidden_error=hidden_error,
        gradient_cosine=None if cosine is None else max(-1.0, min(1.0, cosine)),  # rounding may pass 1
        gradient_norm_ratio=_fraction(proxy_norm, fm_norm),
    )


def _fraction(numerator: float, denominator: float) -> float | None:
    fraction = numerator / denominator if denominator else math.nan
    return fraction if math.isfinite(fraction) else None


def _checked_pairs(layers: LayerPairs | None, fm_depth: int, proxy_depth: int) -> LayerPairs:
    depths = f"the FM has {fm_depth} layers and the proxy {proxy_depth}"
    if layers is None:
        if fm_depth != proxy_depth:
            raise ValueError(f"layers: found none, but {depths}; allowed: pairs (layer of the FM, layer of the proxy)")
        return [(layer, layer) for layer in range(fm_depth)]
    if not layers or any(not (0 <= a < fm_depth and 0 <= b < proxy_depth) for a, b in layers):
        raise ValueError(f"layers: found {list(layers)}, but {depths}; allowed: pairs of existing layers, from 0")
    return layers


def _check_same_adapter(fm: _Side, proxy: _Side) -> None:
    both = [side.lora for side in (fm, proxy)]
    shapes = [[[tensor.shape for tensor in tensors] for tensors in lora] for lora in both]
    values = [[tensor for tensors in lora for tensor in tensors] for lora in both]
    if shapes[0] == shapes[1] and torch.equal(_flat(values[0]), _flat(values[1])):
        return
    for layer, (expected, found) in enumerate(zip(*both, strict=True)):
        if len(expected) != len(found) or not all(map(torch.equal, expected, found)):
            raise ValueError(f"proxy: the LoRA tensors of pair {layer} differ from the FM's; allowed: the same adapter")
