"""Alignment without training: every compressed FFN's down projection is refitted by ridge regression.

For each layer in order, with `z` the sum of residual stream and FFN output `h W_down^T + b_down`:

    minimise over W_down, b_down   sum over tokens of w |z_fm - z_sub|^2 + ridge |W_down - kept columns|^2

where the sub-FM runs on its own hidden states, so that a layer also corrects what the layers before it got wrong. In
post-LN families the closing LayerNorm divides by the token's standard deviation: `w = 1 / var(z_fm)` makes the error
that of its output, and its scale and shift are then fitted to the FM's layer output too, dimension by dimension.

Where a norm or a scale stands between `down` and the residual stream, what is added is `g s y` of an output `y`, `g` a
gain for each dimension and `s` the token's, `1 / rms(y)`. The FM's `s` is taken, which makes the problem linear again:
`y` is fitted to `(z_fm - residual) / (g s)` with weights `(g s)^2`.

All of it is in float32 whatever `server.precision` says: one pass over a few hundred examples gains nothing from mixed
precision, and autocast would go on with the copies that it made of weights before they were refitted. Of a model in
bfloat16 the layers run in it; their outputs are float32 in the regression, its solution is rounded when it is written.

Sources: least-squares reconstruction of a pruned layer is He et al. 2017 (arXiv 1707.06168) and ThiNet (arXiv
1707.06342); its asymmetric form, the compressed model's inputs with the original's outputs, is Zhang et al. 2015 (arXiv
1505.06798); emulators without training for offsite tuning: GradOT (arXiv 2507.04455).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from fedpft.align.losses import at_tokens, hidden_state_loss
from fedpft.align.public import AlignmentContext, AlignmentReport
from fedpft.align.regression import NormalEquations, ridge_fit
from fedpft.attention_mask import real_tokens
from fedpft.config import LayerAlignConfig, NeuronAlignConfig
from fedpft.models.ffn import FFN, find_ffns
from fedpft.models.flags import restored_flags
from fedpft.models.layerwise import LayerCalls, record_calls, trace_ffn
from fedpft.models.on_disk import at, on_disk
from fedpft.trainer import SilentProgress, server_fabric

HELD_OUT_PART = 8
"""One batch in this many chooses the ridge; the others fit."""

SMALLEST_GAIN, SMALLEST_SQUARE = 1e-3, 1e-12
"""Of the mean gain of an FFN's dimensions; of a token's output. What is smaller is not divided by."""


def refit_layers(
    fm: nn.Module,
    sub_fm: nn.Module,
    config: LayerAlignConfig,
    context: AlignmentContext,
    *,
    layers: Sequence[int],
) -> AlignmentReport:
    """Refit the down projections (or only their biases) and closing LayerNorms of the compressed `layers`, in place."""
    ffns = find_ffns(sub_fm)
    all_free = config.refit == "down"
    free = {layer: torch.full((ffns[layer].num_neurons,), all_free) for layer in layers}
    return _refit(fm, sub_fm, free, config, context, with_norm=True)


def refit_neurons(
    fm: nn.Module,
    sub_fm: nn.Module,
    config: NeuronAlignConfig,
    context: AlignmentContext,
    *,
    neuron_masks: Mapping[int, Tensor],
) -> AlignmentReport:
    """Refit the chosen neurons' columns of `down` and `down.bias`, in place; nothing else changes.

    Both models must carry the same current global adapter (README, differences 1 and 2).

    Args:
        neuron_masks: compressed layer -> (N,) bool.

    """
    return _refit(fm, sub_fm, neuron_masks, config, context, with_norm=False)


@dataclass
class _Walk:
    """One batch on its way through both models; between two layers it lies on disk."""

    calls: LayerCalls
    rows: Tensor
    """Where its real tokens are, see `real_tokens`."""
    fm_hidden: Tensor
    sub_hidden: Tensor
    held_out: bool

    def states(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the hidden states of FM and sub-FM, (B, T, H)."""
        return at(device, (self.fm_hidden, self.sub_hidden))

    def loss(self) -> Tensor:
        """Return L1 between the two."""
        return hidden_state_loss(*(at_tokens(state, self.rows).float() for state in self.states(self.rows.device)))


@torch.no_grad()
def _refit(
    fm: nn.Module,
    sub_fm: nn.Module,
    free: Mapping[int, Tensor],
    config: LayerAlignConfig | NeuronAlignConfig,
    context: AlignmentContext,
    *,
    with_norm: bool,
) -> AlignmentReport:
    batches = context.public.batches(config.num_examples, config.batch_size, context.seed)
    assert len(batches) >= 2, "one to fit and one to choose the ridge"
    report_step = context.on_step or SilentProgress().progress
    fabric = server_fabric(context.server)
    fabric.to_device(fm)
    fabric.to_device(sub_fm)
    with restored_flags(fm, sub_fm):
        fm.eval()
        sub_fm.eval()
        on_device = (fabric.to_device(dict(batch)) for batch in batches)
        walks = [
            _Walk(calls, real_tokens(calls.real), calls.hidden, calls.hidden, held_out=index % HELD_OUT_PART == 0)
            for index, calls in enumerate(record_calls(fm, on_device))
        ]
        before, after = [], []
        pairs = list(zip(find_ffns(fm), find_ffns(sub_fm), strict=True))
        for fm_ffn, ffn in pairs:
            if ffn.index in free:
                before.append(_refit_layer(fm_ffn, ffn, walks, free[ffn.index], with_norm=with_norm))
                after.append(_held_out_loss(walks))
            else:
                for walk in walks:
                    walk.fm_hidden = on_disk(walk.calls.run(fm_ffn.layer, ffn.index, walk.fm_hidden))
                    walk.sub_hidden = on_disk(walk.calls.run(ffn.layer, ffn.index, walk.sub_hidden))
            report_step(ffn.index + 1, len(pairs), {})
    first, last = fmean(before), fmean(after)
    for loss in (first, last):
        report_step(len(pairs), len(pairs), {"loss": loss})
    return AlignmentReport(first_loss=first, last_loss=last, measured_before=first, measured_after=last)


def _refit_layer(fm_ffn: FFN, ffn: FFN, walks: Sequence[_Walk], free: Tensor, *, with_norm: bool) -> float:
    """Refit one layer, move all batches past it in both models and return its held-out L1 loss before the refit."""
    device = ffn.down_weight.device
    equations = {
        held_out: NormalEquations(ffn.num_neurons, ffn.down_weight.shape[0], device) for held_out in (False, True)
    }
    losses, activations, gain = [], list[Tensor](), _gain(ffn)
    for walk in walks:
        rows = walk.rows
        with trace_ffn(fm_ffn) as target:
            walk.fm_hidden = on_disk(walk.calls.run(fm_ffn.layer, ffn.index, walk.fm_hidden))
        with trace_ffn(ffn) as found:
            walk.sub_hidden = walk.calls.run(ffn.layer, ffn.index, walk.sub_hidden)
        if walk.held_out:
            losses.append(walk.loss())
        residual = found.total.float() - found.output.float()
        wanted = at_tokens(target.total, rows).float()
        weights = None if ffn.closing_norm is None else 1 / wanted.var(dim=1, correction=0)
        features = at_tokens(found.activations, rows).float()
        missing = wanted - at_tokens(residual, rows)
        if gain is not None:
            missing = missing / gain
        if ffn.output_norm is not None:
            weights = at_tokens(target.down, rows).float().square().mean(dim=1).clamp_min(SMALLEST_SQUARE).reciprocal()
            missing = missing * weights.rsqrt()[:, None]
        equations[walk.held_out].add(features, missing, weights)
        walk.sub_hidden = on_disk(residual)
        activations.append(on_disk(found.activations))
    _solve(ffn, equations[False], equations[True], free.to(device))
    for walk, features in zip(walks, activations, strict=True):
        residual, features = at(device, (walk.sub_hidden, features))
        total = (residual + ffn.contribution(ffn.down(features))).to(walk.fm_hidden.dtype)
        walk.sub_hidden = on_disk(total)
    if ffn.closing_norm is not None:
        if with_norm:
            _fit_norm(ffn.closing_norm, walks)
        for walk in walks:
            walk.sub_hidden = on_disk(ffn.closing_norm(walk.states(device)[1]))
    return float(torch.stack(losses).mean())


def _gain(ffn: FFN) -> Tensor | None:
    """Return the FFN's `output_gain` without zeros: nothing of a dimension without gain reaches the next layer."""
    gain = ffn.output_gain
    if gain is None:
        return None
    floor = SMALLEST_GAIN * gain.abs().mean()
    return torch.where(gain.abs() < floor, floor, gain)


def _solve(ffn: FFN, fit: NormalEquations, held_out: NormalEquations, free: Tensor) -> None:
    columns, bias = ffn.down_weight, ffn.down.bias
    assert bias is None or isinstance(bias, Tensor)
    gain = torch.ones_like(columns[:, 0]) if ffn.closing_norm is None else ffn.closing_norm.weight
    gain = gain if (own := _gain(ffn)) is None else own
    assert isinstance(gain, Tensor)
    solution = ridge_fit(
        fit,
        held_out,
        prior=torch.cat([columns.T, torch.zeros_like(columns[:, 0])[None] if bias is None else bias[None]]),
        free=torch.cat([free, free.new_tensor([bias is not None])]),
        target_scale=gain,
    ).solution
    columns.copy_(torch.where(free, solution[:-1].T.to(columns.dtype), columns))
    if bias is not None:
        bias.copy_(solution[-1])


def _fit_norm(norm: nn.Module, walks: Sequence[_Walk]) -> None:
    """Fit the LayerNorm's scale and shift to the FM's layer output; `sub_hidden` holds its inputs.

    Per dimension a regression on the normalised input: two numbers from thousands of tokens need no ridge.
    """
    weight, bias = norm.weight, norm.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    sums = torch.zeros(4, len(weight), dtype=torch.float64, device=weight.device)
    count = 0
    for walk in walks:
        if walk.held_out:
            continue
        y, inputs = (at_tokens(state, walk.rows).double() for state in walk.states(weight.device))
        x = nn.functional.layer_norm(inputs, weight.shape, eps=norm.eps)  # type: ignore[arg-type]
        sums += torch.stack([x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0)])
        count += len(x)
    x_mean, y_mean, xx, xy = sums / count
    slope = (xy - x_mean * y_mean) / (xx - x_mean.square())
    weight.copy_(slope)
    bias.copy_(y_mean - slope * x_mean)


def _held_out_loss(walks: Sequence[_Walk]) -> float:
    losses = [walk.loss() for walk in walks if walk.held_out]
    return float(torch.stack(losses).mean())
