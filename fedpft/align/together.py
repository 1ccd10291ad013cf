"""One distillation on several devices: a process for each, which trains on its share of every batch.

this process                          process k of n, on device k
fit_together --- module, loader -->   forward and backward on its share of the batch; gradients are averaged (DDP)
on_step  <--- loss of every step ---  process 0
module   <--- what was trained -----  process 0
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import psutil
from torch import distributed
from torch.utils.data import DataLoader, Sampler

from fedpft.config.checks import require
from fedpft.trainer import StepReport, hush_lightning

SHARED_MEMORY = Path("/dev/shm")


class ShareOfBatches(Sampler[list[int]]):
    """This process' part of every batch; the whole of it where there is one process.

    Args:
        batches: the whole ones, drawn alike in all processes; each divides by their number.

    """

    def __init__(self, batches: Sampler[list[int]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)  # type: ignore[arg-type]  # a BatchSampler has it

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the parts, each the examples k, k + n, ... of a batch for process k of n."""
        rank, size = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        for batch in self._batches:
            yield batch[rank::size]


def fit_together(trainer: L.Trainer, module: L.LightningModule, loader: DataLoader[Any]) -> None:
    """Fit in as many processes as the trainer has devices, in this one if that is one; none is left afterwards.

    Several get the module through shared memory, once for all; each then has it on its device.

    Raises:
        ConfigError: shared memory does not hold it.

    """
    if trainer.num_devices > 1:
        module.cpu()  # what is sent from a GPU is opened on that GPU, by every process
        _require_shared_memory(module, trainer.num_devices)
    port = os.environ.get("MASTER_PORT")
    try:
        trainer.fit(module, loader)
    finally:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        if port is None:  # Lightning leaves the one where its processes met
            os.environ.pop("MASTER_PORT", None)


def _require_shared_memory(module: L.LightningModule, num_devices: int) -> None:
    if not SHARED_MEMORY.is_dir():  # not Linux: in files elsewhere
        return
    need = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()) if not tensor.is_shared())
    free = psutil.disk_usage(str(SHARED_MEMORY)).free
    allowed = f"with {need / 1e9:.2g} GB free in {SHARED_MEMORY}, where its processes read the models, found "
    allowed += f"{free / 1e9:.2g} GB (docker run --shm-size, or an emptyDir of medium Memory); or 1"
    require(need <= free, "server.devices", num_devices, allowed)


class StepsFromElsewhere:
    """A `StepReport` that may be called in another process; whoever holds it here hears of it."""

    def __init__(self, on_step: StepReport) -> None:
        self._hear = on_step
        self._queue = multiprocessing.get_context("spawn").SimpleQueue()

    def __call__(self, *step: Any) -> None:
        """Send the step to where the listeners are."""
        self._queue.put(step)

    def __getstate__(self) -> Any:
        return {"_queue": self._queue}

    def __setstate__(self, state: Any) -> None:
        hush_lightning()  # the first thing that the other process does
        self.__dict__ |= state

    def __enter__(self) -> "StepsFromElsewhere":
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._queue.put(None)
        self._listener.join()

    def _listen(self) -> None:
        while (step := self._queue.get()) is not None:
            self._hear(*step)
