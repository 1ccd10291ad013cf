"""How much memory a run holds, round by round, and a warning when that grows without end."""

import re
import resource
import sys
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

WARM_UP_ROUNDS = 5
"""Rounds left out at the start: caches, allocators and lazy imports still fill up."""
MIN_ROUNDS, MAX_ROUNDS = 20, 40
"""Shortest and longest window over which growth is judged."""
MAX_BYTES_PER_ROUND = 1e6
MAX_GROWTH_RATIO = 0.05

MARGIN = 0.15
"""Of a peak, for what a try or a count does not see: fragments, and kernels that other shapes load."""
CUDA_CONTEXT_BYTES = 600 * 2**20
"""What a process takes of a GPU besides torch's tensors: the driver's context and the kernels."""

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",  # by the driver, past torch's allocator: an AcceleratorError
    "_STATUS_ALLOC_FAILED",  # CUBLAS, CUDNN, CUSOLVER, CUSPARSE: a library's own workspace
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # its first one
)
"""In a RuntimeError of torch that is none of the kinds for want of memory."""


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """What one process holds now."""

    rss_bytes: int
    """Resident memory, shared pages included."""
    gpu_bytes: int
    """Reserved by torch on the current CUDA device; 0 where CUDA is not in use."""


def process_memory() -> ProcessMemory:
    """Measure this process (some 20 microseconds)."""
    gpu_bytes = torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0
    return ProcessMemory(rss_bytes=psutil.Process().memory_info().rss, gpu_bytes=gpu_bytes)


def process_peak_memory_bytes() -> int:
    """Return this process' peak resident memory.

    Linux has two numbers. `getrusage`'s begins with the peak of the process that started this one, be it a notebook of
    many gigabytes; so it is asked only elsewhere.
    """
    with suppress(OSError):
        if found := _PEAK.search(Path("/proc/self/status").read_text(encoding="utf-8")):
            return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python found no memory, of a GPU or of RAM."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in _OUT_OF_MEMORY)


class GpuPeak:
    """The most that torch allocates on a CUDA device for one model from now on, whatever else lies there.

    Args:
        model: is on the device; its tensors count.
        device: of any kind; nothing is measured on a CPU, where a process has one peak for all it ever did.

    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(device)
            self._own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
            self._others = torch.cuda.memory_allocated(device) - self._own

    def metrics(self, num_clients: int = 1) -> dict[str, int]:
        """Return `gpu_bytes` of each of the clients that trained together, or nothing on a CPU.

        A client's part is the model, and of what came on top an equal share.
        """
        if self._device is None:
            return {}
        peak = torch.cuda.max_memory_allocated(self._device) - self._others
        return {"gpu_bytes": self._own + (peak - self._own) // num_clients}


class MemoryWatchdog:
    """Measures once a round; warns once for each quantity that grows (see :func:`grows`)."""

    def __init__(self) -> None:
        self._rounds = 0
        self._recent: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=MAX_ROUNDS))
        self._warned: set[str] = set()

    def measure(self, pool_bytes: Mapping[str, int]) -> dict[str, Any]:
        """Return `memory/*` for the round's record: the driver's own figures, and the pool's as they are given.

        In the round in which it warns the record has the warnings, too, as `memory/alarms`.
        """
        own = process_memory()
        held = {"driver_rss_bytes": own.rss_bytes, **pool_bytes}
        if own.gpu_bytes:
            held["driver_gpu_bytes"] = own.gpu_bytes
        self._rounds += 1
        alarms = []
        if self._rounds > WARM_UP_ROUNDS:
            alarms = [line for name, num_bytes in held.items() if (line := self._watch(name, num_bytes))]
        for line in alarms:
            warnings.warn(line, stacklevel=2)
        measured = {f"memory/{name}": num_bytes for name, num_bytes in held.items()}
        return {**measured, **({"memory/alarms": alarms} if alarms else {})}

    def _watch(self, name: str, num_bytes: int) -> str | None:
        """Return what to warn of."""
        recent = self._recent[name]
        recent.append(num_bytes)
        if name not in self._warned and grows(recent):
            self._warned.add(name)
            growth = f"{slope(recent) / 1e6:.1f} MB a round over the last {len(recent)} rounds"
            return f"memory/{name} grows by {growth}, now {num_bytes / 1e9:.2f} GB"
        return None


def grows(recent: Sequence[int]) -> bool:
    """Whether memory grows steadily: a single step up, however large, is no growth.

    Over at least 20 values, one a round, the least-squares slope is above 1 MB a round in the whole window and in each
    half of it, and over the window it adds up to more than 5 % of the mean.
    """
    if len(recent) < MIN_ROUNDS:
        return False
    values, half = list(recent), len(recent) // 2
    whole = slope(values)
    steady = min(whole, slope(values[:half]), slope(values[half:])) > MAX_BYTES_PER_ROUND
    return steady and whole * (len(values) - 1) > MAX_GROWTH_RATIO * float(np.mean(values))


def slope(values: Sequence[float]) -> float:
    """Return the least-squares slope of values that are one round apart, in their unit per round."""
    return float(np.polyfit(np.arange(len(values)), np.asarray(values, dtype=np.float64), 1)[0])
