"""How much memory a client needs, measured, and so how many actors a device holds.

The try is two steps on the longest examples of all clients: no client's batch is larger, and from the second step on
gradients, moments and activations are there together. It changes no client's result.
"""

import gc
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import ray
import torch
from ray.exceptions import RayTaskError

from fedpft.federated import memory as held
from fedpft.federated.client import LocalClient
from fedpft.federated.memory import CUDA_CONTEXT_BYTES, MARGIN, process_peak_memory_bytes
from fedpft.federated.messages import RoundPlan
from fedpft.federated.package import ClientPackage, hungriest
from fedpft.models.lora import get_adapter
from fedpft.models.weights import unpack_model

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """The memory of a device, as one process sees it after it trained a client there."""

    peak_bytes: int
    """The most that the process took for itself."""
    free_bytes: int
    """What processes like this one may share: what nobody holds, and what it holds itself. Other users' is left out."""

    @property
    def num_actors(self) -> int:
        """How many processes fit, with a margin; at least one."""
        return max(1, int(self.free_bytes / self.claim))

    @property
    def claim(self) -> float:
        """Bytes to reckon with for each process."""
        return self.peak_bytes * (1 + MARGIN)

    def __str__(self) -> str:
        """Return both in GiB."""
        return f"{self.peak_bytes / _GIB:.1f} GiB a client, {self.free_bytes / _GIB:.1f} GiB free"


class DeviceMemory(Protocol):
    """One process' view of a device's memory."""

    def reset_peak(self) -> None:
        """Begin to look for the peak."""

    def use(self) -> MemoryUse:
        """Return what was taken at most since then, and what is free now."""


class HostMemory:
    """RAM: resident memory of this process but for pages that it shares, such as the proxy's frozen weights."""

    def reset_peak(self) -> None:
        """Let Linux forget the high-water mark; elsewhere it is that of the whole process."""
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def use(self) -> MemoryUse:
        """See `DeviceMemory`."""
        memory = psutil.Process().memory_info()
        shared = getattr(memory, "shared", 0)
        free_bytes = psutil.virtual_memory().available + memory.rss - shared
        return MemoryUse(peak_bytes=max(memory.rss, process_peak_memory_bytes()) - shared, free_bytes=free_bytes)


class CudaMemory:
    """The current GPU: what torch reserved, which is more than its tensors, and the context.

    Args:
        part: of the GPU that processes like this one may fill; the rest is the server's, whose peaks come later.

    """

    def __init__(self, part: float = 1.0) -> None:
        self._part = part

    def reset_peak(self) -> None:
        """Count from what is allocated now."""
        torch.cuda.reset_peak_memory_stats()

    def use(self) -> MemoryUse:
        """See `DeviceMemory`."""
        held_bytes = torch.cuda.memory_reserved() + CUDA_CONTEXT_BYTES
        peak_bytes = torch.cuda.max_memory_reserved() + CUDA_CONTEXT_BYTES
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        theirs = int(self._part * total_bytes)
        return MemoryUse(peak_bytes=peak_bytes, free_bytes=min(free_bytes + held_bytes, theirs))


def probe(package: ClientPackage, gpu_part: float = 1.0) -> MemoryUse:
    """Train the client with the longest examples, or several of him together, in this process; nothing of it stays."""
    on_gpu = package.settings.accelerator == "cuda"
    memory: DeviceMemory = CudaMemory(gpu_part) if on_gpu else HostMemory()
    memory.reset_peak()
    adapter = get_adapter(unpack_model(package.proxy))
    plan = RoundPlan(round_index=1, lr=0.0, adapter=adapter, count_activations=bool(package.watched_layers))
    tried = hungriest(package)
    client = LocalClient(tried)
    client.fit_together(plan, range(tried.partition.num_clients))
    use = memory.use()
    del client
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return use


def gpu_share(num_actors: int, part: float = 1.0) -> float:
    """Return the fraction of a GPU of which a part of it holds just so many; Ray reckons in ten-thousandths."""
    return int(1e4 * part / num_actors + 1e-6) / 1e4


def is_out_of_memory(error: Exception) -> bool:
    """Whether a client failed for want of memory: of the GPU, of RAM, or by Ray's own watch over a node's RAM."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, ray.exceptions.OutOfMemoryError) or held.is_out_of_memory(cause)
