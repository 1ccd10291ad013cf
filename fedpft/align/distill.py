"""Alignment by distillation: of layers or FedOT's emulator before federated learning, of neurons between rounds."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from fedpft.align.distillation import Distillation
from fedpft.align.emulator import EmulatorModule
from fedpft.align.module import AlignmentModule
from fedpft.align.public import AlignmentContext, AlignmentReport, PublicBatches, PublicData
from fedpft.align.together import ShareOfBatches, StepsFromElsewhere, fit_together
from fedpft.config import AdapterAlignConfig, LayerAlignConfig, NeuronAlignConfig, ServerConfig
from fedpft.config.checks import require
from fedpft.models.flags import restored_flags
from fedpft.models.precision import in_float32
from fedpft.seeding import derive_seed, isolated_torch_rng
from fedpft.trainer import make_trainer, server_fabric

MEASURED_EXAMPLES = 64
"""Public examples on which a distillation's loss is measured before and after it."""


def align_layers(
    fm: nn.Module,
    sub_fm: nn.Module,
    config: LayerAlignConfig,
    context: AlignmentContext,
    *,
    layers: Sequence[int],
) -> AlignmentReport:
    """Distil all FFNs of the compressed `layers` of the sub-FM, in place; nothing else in either model changes."""
    module = AlignmentModule(
        fm,
        sub_fm,
        layers=layers,
        product_weight=config.product_weight,
        weight_decay=config.weight_decay,
        **_schedule(config),
    )
    return distil(module, config, context)


def align_emulator(
    fm: nn.Module,
    proxy: nn.Module,
    config: LayerAlignConfig,
    context: AlignmentContext,
    *,
    layers: Sequence[int],
    target: int,
) -> AlignmentReport:
    """Distil these whole layers of a proxy, in place, towards the output of the FM's layer `target`; nothing else."""
    module = EmulatorModule(
        fm, proxy, layers=layers, target=target, weight_decay=config.weight_decay, **_schedule(config)
    )
    return distil(module, config, context)


def align_neurons(
    fm: nn.Module,
    sub_fm: nn.Module,
    config: NeuronAlignConfig,
    context: AlignmentContext,
    *,
    neuron_masks: Mapping[int, Tensor],
) -> AlignmentReport:
    """Distil only the chosen neurons of each compressed layer of the sub-FM, in place.

    Both models must carry the same current global adapter (README, differences 1 and 2). What changes: the chosen
    neurons' rows and columns, `down.bias` and a post-LN family's closing LayerNorm.

    Args:
        neuron_masks: compressed layer -> (N,) bool.

    """
    module = AlignmentModule(
        fm,
        sub_fm,
        layers=sorted(neuron_masks),
        neuron_masks=neuron_masks,
        **_schedule(config),
    )
    return distil(module, config, context)


def num_warmup_steps(num_steps: int, warmup_ratio: float) -> int:
    """Round down, so that a short alignment (a single step above all) does not run at rate 0 (README, difference 7)."""
    return int(num_steps * warmup_ratio)


def _schedule(config: LayerAlignConfig | NeuronAlignConfig) -> dict[str, Any]:
    warmup = num_warmup_steps(config.num_steps, config.warmup_ratio)
    return {"lr": config.lr, "num_steps": config.num_steps, "num_warmup_steps": warmup}


def distil(
    module: Distillation,
    config: LayerAlignConfig | NeuronAlignConfig | AdapterAlignConfig,
    context: AlignmentContext,
    held_out: PublicData | None = None,
) -> AlignmentReport:
    """Train a module for `num_steps` batches of public data, drawn by the seed; models get their flags back.

    Its loss is measured before and after, on all that is `held_out`, or on some of the public data. What it trains is
    float32 meanwhile: of weights in bfloat16, a step would seldom move one. They are rounded at the end.

    Raises:
        ConfigError: weights in bfloat16, with a `server.precision` that does not let them meet float32.

    """
    trained = module.trained_parameters()
    meets = context.server.precision == "bf16-mixed" or all(p.dtype == torch.float32 for p in trained)
    require(meets, "server.precision", context.server.precision, "bf16-mixed to distil weights that are bfloat16")
    public, server, losses = context.public, context.server, list[float]()
    if held_out is None:
        measured = public.batches(MEASURED_EXAMPLES, config.batch_size, derive_seed(context.seed, "measure"))
    else:
        measured = held_out.batches(len(held_out.dataset), config.batch_size, context.seed)  # type: ignore[arg-type]

    def record(done: int, total: int, metrics: Mapping[str, float]) -> None:
        losses.append(metrics["loss"])
        if context.on_step is not None:
            context.on_step(done, total, metrics)

    num_samples = config.num_steps * config.batch_size
    examples = RandomSampler(public.dataset, num_samples=num_samples)  # type: ignore[arg-type]  # has __len__
    batches = ShareOfBatches(BatchSampler(examples, config.batch_size, drop_last=False))
    loader = DataLoader(public.dataset, batch_sampler=batches, collate_fn=public.collate)
    reports = StepsFromElsewhere(record) if server.devices > 1 else nullcontext(record)
    before = _measure(module, measured, server)
    with isolated_torch_rng(context.seed), restored_flags(module), in_float32(trained), reports as report:
        trainer = make_trainer(
            server,
            num_steps=config.num_steps,
            max_grad_norm=config.max_grad_norm,
            on_step=report,
            num_devices=server.devices,
        )
        fit_together(trainer, module, loader)
    after = _measure(module, measured, server)
    return AlignmentReport(first_loss=losses[0], last_loss=losses[-1], measured_before=before, measured_after=after)


@torch.no_grad()
def _measure(module: Distillation, batches: PublicBatches, server: ServerConfig) -> float:
    """Return the mean loss of the batches in eval mode and float32: without what differs from step to step."""
    fabric = server_fabric(server)
    fabric.to_device(module)
    with restored_flags(module):
        module.eval()
        losses = [module.training_step(fabric.to_device(dict(batch)), index) for index, batch in enumerate(batches)]
    return float(torch.stack(losses).mean())
