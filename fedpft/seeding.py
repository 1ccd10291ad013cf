"""Every random draw of a run is a function of (seed, purpose, round, client)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, round_index: int = 0, client_id: int = 0) -> int:
    """Return a 63-bit seed that depends on nothing but its arguments.

    Independent of process, platform and call order, so that a client's result does not depend on where or when it ran.
    """
    key = f"{seed}/{purpose}/{round_index}/{client_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def numpy_rng(seed: int, purpose: str, round_index: int = 0, client_id: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, purpose, round_index, client_id))


@contextmanager
def isolated_torch_rng(seed: int) -> Iterator[None]:
    """Seed torch inside the block and restore its state afterwards, on CPU and the CUDA device in use, if any."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:  # the same without a stack trace for each kind of device, in case one turns up: up to 1 ms
            torch.default_generator.manual_seed(seed)
        yield
