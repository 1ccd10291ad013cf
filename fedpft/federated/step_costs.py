"""What a local step costs, counted by torch on a model without data.

The step is a real one (forward, loss, backward, with the adapter attached and the same weights frozen), but on the meta
device: tensors have shapes and no values. So counting draws no random number, changes no bit, and gives the same
numbers wherever the clients run. Shapes: `B` batch, `T` tokens.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from fedpft.data.collate import rows, text_lengths
from fedpft.data.datamodule import FederatedData
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.metrics.tokens import num_targets, targets_at_once
from fedpft.models.flags import keep_no_keys
from fedpft.models.quantize import quantize_layers
from fedpft.models.quantized_linear import QuantKind
from fedpft.models.recompute import keeping_activations, recompute_layers, recomputed_layers
from fedpft.models.weights import skeleton_of

_MaskShape = Callable[[int, int], tuple[int, ...] | None]
_MASK_SHAPES: tuple[_MaskShape, ...] = (lambda B, T: (B, 1, T, T), lambda B, T: (B, T), lambda B, T: None)
"""Of attention masks: the first with which a family reads no value is taken; most look into those of (B, T)."""


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """What one step costs for one shape of batch."""

    flops: int
    """Of matrix products and convolutions, a multiplication and an addition each being one; attention in its plain
    form, without what fused kernels compute a second time, but with layers that are recomputed on request."""
    activation_bytes: int
    """What autograd keeps for the backward pass, with plain attention; weights are not in it. Where layers are
    recomputed: their inputs, and all of the one that keeps most."""

    def __sub__(self, other: "StepCount") -> "StepCount":
        """Return what the one costs more than the other."""
        return StepCount(
            flops=self.flops - other.flops, activation_bytes=self.activation_bytes - other.activation_bytes
        )


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What a step costs for every shape of batch.

    Both counts are proportional to B (but for some bytes, and DeBERTa's table of relative positions). In T they are
    quadratic polynomials, so that three lengths give every other one: a run sees dozens of shapes, and counting one
    takes as long as two steps of a small model. Where tokens are predicted, each target adds the same.
    """

    batch_size: int
    """B of the batches that were counted."""
    unit: int
    """These had `unit`, 2 `unit` and 3 `unit` tokens; 0: all batches are of one length (images)."""
    counts: tuple[StepCount, ...]
    """One for each length that was counted, each batch without a target token."""
    of_target: StepCount
    """What a target token adds, to the bytes no more often than there are targets at once; nothing where labels are no
    tokens."""
    targets_at_once: int
    """Of so many targets there are logits at a time."""
    fixed_bytes: int
    """Weights as clients hold them, and for each trainable one its gradient and what the rule of the steps keeps, AdamW
    two moments."""

    def flops(self, batch: Mapping[str, Tensor], num_targets: int | None = None) -> int:
        """Return the FLOPs of a step on a batch; `num_targets`: None: they are counted in its labels."""
        flops = self._at(batch, [count.flops for count in self.counts])
        return flops + self.of_target.flops * _num_targets(batch, num_targets)

    def memory_bytes(self, batch: Mapping[str, Tensor], num_targets: int | None = None) -> int:
        """Return what training needs for a batch: weights, gradients, moments and activations."""
        activations = self._at(batch, [count.activation_bytes for count in self.counts])
        at_once = min(self.targets_at_once, _num_targets(batch, num_targets))
        return self.fixed_bytes + activations + self.of_target.activation_bytes * at_once

    def _at(self, batch: Mapping[str, Tensor], counts: list[int]) -> int:
        value = float(counts[0])
        if self.unit:  # Newton's form of the polynomial
            steps = num_tokens(batch) / self.unit - 1
            slope, curvature = counts[1] - counts[0], counts[2] - 2 * counts[1] + counts[0]
            value += steps * slope + steps * (steps - 1) / 2 * curvature
        return round(value * len(batch["labels"]) / self.batch_size)


def step_costs(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    any_length: bool = True,
    num_memory: int = 2,
    recomputes: bool = False,
    quantize: QuantKind | None = None,
) -> StepCosts | None:
    """Count local steps of a model; it is not changed.

    Args:
        model: with the adapter that clients tune, its other parameters frozen.
        batch: any one of the task, with `labels` and `input_ids`, (B, T), or `pixel_values`; only its shapes are read.
        num_memory: numbers that the rule of the steps keeps for each trainable weight, besides its gradient.
        any_length: whether texts of other lengths will be asked for; if not, one count is enough.
        recomputes: whether the layers' activations are computed again in the backward pass.
        quantize: in what clients hold frozen weights; None: as the model does.

    Returns:
        None, with a warning, for a model whose computation depends on values.

    """
    skeleton = _without_fused_attention(skeleton_of(model).to("meta").train())
    if quantize is not None:
        quantize_layers(skeleton, quantize)
    keep_no_keys(skeleton)
    if recomputes:
        recompute_layers(skeleton)
    module = LocalTuningModule(skeleton)
    length = num_tokens(batch)
    unit = max(1, length // 3) if length and any_length else 0
    lengths = [unit, 2 * unit, 3 * unit] if unit else [length]
    errors: list[Exception] = []
    for mask_shape in _MASK_SHAPES:
        try:
            shapes = [_meta_batch(batch, length, mask_shape) for length in lengths]
            if batch["labels"].dim() == 1:
                counts = [count_step(module, shape) for shape in shapes]
                of_target = StepCount(flops=0, activation_bytes=0)
            else:
                *counts, with_one = (
                    count_step(module, shape, [torch.empty(3, number, dtype=torch.int64, device="meta")])
                    for shape, number in [*((shape, 0) for shape in shapes), (shapes[0], 1)]
                )
                of_target = with_one - counts[0]
            break
        except (RuntimeError, NotImplementedError, ValueError) as error:  # a value is read, an operator has no shapes
            errors.append(error)
    else:
        reason = str(errors[0]).splitlines()[0]
        warnings.warn(f"FLOPs and memory of clients cannot be counted for this model: {reason}", stacklevel=2)
        return None
    weights = sum(tensor.nbytes for tensor in (*skeleton.parameters(), *skeleton.buffers()))
    trainable = sum(parameter.nbytes for parameter in skeleton.parameters() if parameter.requires_grad)
    return StepCosts(
        batch_size=len(batch["labels"]),
        unit=unit,
        counts=tuple(counts),
        of_target=of_target,
        targets_at_once=targets_at_once(skeleton.config.vocab_size) if of_target.flops else 0,  # type: ignore[arg-type,union-attr]
        fixed_bytes=weights + (1 + num_memory) * trainable,
    )


def count_step(
    module: LocalTuningModule, batch: Mapping[str, Tensor], targets: Sequence[Tensor] | None = None
) -> StepCount:
    """Count one step; module and batch may be on any device, on the meta device nothing is computed."""
    layers = recomputed_layers(module)
    with FlopCounterMode(display=False) as counter:
        kept = _kept_by_step(module, batch, targets, layers=[])
    num_bytes = sum(kept[None].values())
    if layers:  # checkpoints hide from hooks what they keep
        with keeping_activations():
            kept = _kept_by_step(module, batch, targets, layers)
        num_bytes = sum(kept[None].values()) + max(sum(kept[layer].values()) for layer in layers)
    return StepCount(flops=counter.get_total_flops(), activation_bytes=num_bytes)


def _kept_by_step(
    module: LocalTuningModule,
    batch: Mapping[str, Tensor],
    targets: Sequence[Tensor] | None,
    layers: Sequence[nn.Module],
) -> Mapping[nn.Module | None, Mapping[Any, int]]:
    """Make a step and return the bytes of each storage that autograd keeps: of each layer, and under None the rest.

    What a layer is given is a part of the rest.
    """
    kept: dict[nn.Module | None, dict[Any, int]] = defaultdict(dict)
    inside: nn.Module | None = None
    seen: list[Tensor] = []  # or another storage might get the number of one that is gone

    def keep(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in kept[None]:  # views share a storage
            kept[inside][storage._cdata] = storage.nbytes()
        return tensor

    def begin(layer: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal inside
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                keep(value)
        inside = layer

    def end(layer: nn.Module, args: Any, output: Any) -> None:
        nonlocal inside
        inside = None

    handles = [layer.register_forward_pre_hook(begin, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(end) for layer in layers]
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            module.training_step(batch, 0, targets).backward()
    finally:
        for handle in handles:
            handle.remove()
    for parameter in module.parameters():
        parameter.grad = None
        for part in kept.values():
            part.pop(parameter.untyped_storage()._cdata, None)
    return kept


def typical_batch(data: FederatedData, batch_size: int) -> Mapping[str, Tensor]:
    """Return a batch of training examples; of texts, cut into batches as they lie, the one of median padded length."""
    num_batches = max(1, len(data.train) // batch_size)
    chosen = 0
    if (lengths := text_lengths(data.train)) is not None:
        longest = [part.max() for part in np.array_split(lengths[: num_batches * batch_size], num_batches)]
        chosen = int(np.argsort(longest, kind="stable")[num_batches // 2])
    end = min((chosen + 1) * batch_size, len(data.train))
    return data.collate(rows(data.train, range(chosen * batch_size, end)))


def compare_steps(
    batch: Mapping[str, Tensor],
    fm: nn.Module,
    costs: StepCosts | None,
    num_memory: int = 2,
    *,
    recomputes: bool = False,
    quantize: QuantKind | None = None,
) -> dict[str, Any]:
    """Return what a step on the batch costs with the FM and with the sub-FM, for `result.json`; empty if unknown.

    Args:
        batch: a labelled one.
        fm: with the adapter.
        costs: the sub-FM's.
        num_memory, recomputes, quantize: as for :func:`step_costs`.

    """
    if costs is None:
        return {}
    fm_costs = step_costs(fm, batch, any_length=False, num_memory=num_memory, recomputes=recomputes, quantize=quantize)
    if fm_costs is None:
        return {}
    length = num_tokens(batch)
    return {
        "local_step": {
            "examples": len(batch["labels"]),
            **({"tokens": length} if length else {}),
            "flops_fm": fm_costs.flops(batch),
            "flops_sub_fm": costs.flops(batch),
            "memory_bytes_fm": fm_costs.memory_bytes(batch),
            "memory_bytes_sub_fm": costs.memory_bytes(batch),
        }
    }


def _num_targets(batch: Mapping[str, Tensor], known: int | None) -> int:
    return num_targets(batch["labels"]) if known is None else known


def num_tokens(batch: Mapping[str, Tensor]) -> int:
    """Return T; 0 for images."""
    return batch["input_ids"].shape[1] if "input_ids" in batch else 0


def _meta_batch(batch: Mapping[str, Tensor], length: int, mask_shape: _MaskShape) -> dict[str, Tensor]:
    """Return tensors without values of the batch's shapes, texts of `length` tokens instead of their own."""
    made = {}
    for name, tensor in batch.items():
        shape = list(tensor.shape)
        if length and len(shape) == 2:
            shape[1] = length
        if name != "attention_mask":
            made[name] = torch.empty(shape, dtype=tensor.dtype, device="meta")
        elif (mask := mask_shape(shape[0], length)) is not None:
            made[name] = torch.empty(mask, dtype=torch.bool, device="meta")
    return made


def _without_fused_attention(model: nn.Module) -> nn.Module:
    """Make the model compute attention by matrix products, which torch counts alike on every device."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation("eager")
            break
    return model
