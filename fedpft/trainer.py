"""The server's Lightning Trainer and Fabric: on which device it works; a silent loop that reports its progress."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from fedpft.config import Config, ServerConfig
from fedpft.config.checks import require
from fedpft.devices import is_spread


class Progress(Protocol):
    """Hears how long work goes on."""

    def stage(self, title: str) -> None:
        """A new stage begins, e.g. "align layers"; the previous one is over."""

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """The current stage has done `done` of `total` steps; `metrics`: its latest numbers, e.g. `{"loss": 0.3}`."""


class SilentProgress:
    """Shows nothing."""

    def stage(self, title: str) -> None:
        """Ignore."""

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Ignore."""


StepReport = Callable[[int, int, Mapping[str, float]], None]
"""What :meth:`Progress.progress` is: called with (steps done, steps in total, latest numbers)."""


def accelerator(setting: str) -> str:
    """Return the kind of device that a setting stands for in this process: `cuda` or `cpu`.

    `auto` is nothing else, whatever Lightning would choose: Apple's MPS, say, has no float64.
    """
    return setting if setting != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def set_arithmetic(config: Config) -> None:
    """Let this process compute on GPUs as the config says: the server's side, and `sequential` clients."""
    server, pool = config.server, config.pool
    compute_products(server.matmul_precision)
    be_deterministic(server.deterministic or (pool.kind == "sequential" and pool.deterministic))


def compute_products(precision: str) -> None:
    """Let this process compute float32 products on GPUs with all their bits (`highest`) or TF32's (`high`)."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "high"


def be_deterministic(yes: bool) -> None:
    """Let this process use torch's deterministic algorithms alone, or any; before its first work on a GPU."""
    if yes:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    torch.use_deterministic_algorithms(yes)
    torch.backends.cudnn.benchmark = False


def server_fabric(server: ServerConfig, *, mixed: bool = False) -> L.Fabric:
    """Return what moves models and batches to the server's first device, `mixed` with `server.precision`.

    A model that lies on several GPUs is not moved: it starts on the first.
    """
    hush_lightning()
    precision = server.precision if mixed else "32-true"
    return _StayingFabric(accelerator=accelerator(server.accelerator), devices=1, precision=precision)


def make_trainer(
    server: ServerConfig,
    *,
    num_steps: int,
    max_grad_norm: float | None = None,
    on_step: StepReport | None = None,
    num_devices: int = 1,
) -> L.Trainer:
    """Return a Trainer for `num_steps` optimiser steps on the server's device, without files, bars or summaries.

    The module stays on that device. With several its `fit` starts a process for each (see :func:`fit_together`).
    """
    hush_lightning()
    kind = accelerator(server.accelerator)
    return L.Trainer(
        max_steps=num_steps,
        max_epochs=-1,
        accelerator=kind,
        devices=num_devices,
        strategy=_StayingStrategy(torch.device(kind, 0)) if num_devices == 1 else "ddp_spawn",
        plugins=[LightningEnvironment()],  # whatever started this process, say Slurm, has no part in the others
        use_distributed_sampler=False,
        precision=server.precision,
        gradient_clip_val=max_grad_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_ReportSteps(num_steps, on_step)] if on_step else [],
    )


def check_devices(config: Config) -> None:
    """Refuse a config for devices that this process, where the server and `sequential` clients work, does not see.

    Raises:
        ConfigError: names the setting.

    """
    num_gpus, server, pool = torch.cuda.device_count(), config.server, config.pool
    wanted = {"server.accelerator": server.accelerator}
    if pool.kind == "sequential":
        wanted["pool.accelerator"] = pool.accelerator
    for key, accelerator in wanted.items():
        require(accelerator != "cuda" or num_gpus > 0, key, accelerator, "auto or cpu: torch sees no GPU here")
    if server.accelerator == "auto" and not num_gpus and pool.kind == "ray" and pool.gpu_claim:
        where = "a process here, which sees none: it works on the CPU (server.num_gpus: 1 takes a node with a GPU)"
        warnings.warn(f"actors claim GPUs, but the server's side is {where}", stacklevel=2)
    enough = server.accelerator == "cpu" or num_gpus == 0 or server.devices <= num_gpus
    require(enough, "server.devices", server.devices, f"at most {num_gpus}, the GPUs that torch sees here")


def gpus_of_fm(config: Config) -> int:
    """Return over how many of the GPUs that this process sees the FM is to be spread; 0: it lies as a whole."""
    if config.fm.device_map == "none" or accelerator(config.server.accelerator) == "cpu":
        return 0
    seen, claimed = torch.cuda.device_count(), int(config.server.gpu_claim)
    num_gpus = min(seen, claimed or seen)
    return num_gpus if num_gpus > 1 else 0


def device_kind(server: ServerConfig) -> str:
    """Return the kind of device that the server works on; equal work on equal kinds gives equal bits."""
    device = server_fabric(server).device
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {model}"


def hush_lightning() -> None:
    """Silence Lightning's hardware lines, tips and data-loader advice; errors still show."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")


class _StayingFabric(L.Fabric):
    """Leaves a model alone that lies on several GPUs."""

    def to_device(self, obj: Any) -> Any:
        """Move a model or a batch to the device."""
        return obj if isinstance(obj, nn.Module) and is_spread(obj) else super().to_device(obj)


class _StayingStrategy(SingleDeviceStrategy):
    """Leaves the module where it was trained: the same models are trained there again, and evaluated."""

    def model_to_device(self) -> None:
        """Leave a model alone that lies on several GPUs; its batches go to the first."""
        assert self.model is not None
        if not is_spread(self.model):
            super().model_to_device()

    def teardown(self) -> None:
        """Give back all but the module's own memory."""
        self.optimizers, self.lr_scheduler_configs = [], []
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


class _ReportSteps(Callback):
    def __init__(self, num_steps: int, on_step: StepReport) -> None:
        self._num_steps, self._on_step = num_steps, on_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        value = float(trainer.strategy.reduce(torch.as_tensor(loss).detach(), reduce_op="mean"))
        if trainer.is_global_zero:
            self._on_step(trainer.global_step, self._num_steps, {"loss": value})
