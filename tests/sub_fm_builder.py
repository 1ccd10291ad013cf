"""What the tests of the sub-FM cache share: a builder that counts, and a lock held by somebody else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedpft.construct.cache import BuiltSubFM, SubFMCache
from fedpft.construct.compress import compress, sub_fm_tensors
from fedpft.construct.store import Store, key_of
from fedpft.models.ffn import find_ffns

INGREDIENTS = {"fm": "tiny", "seed": 0}
KEY = key_of(INGREDIENTS)
PLENTY = 10**9


class Builder:
    """Builds a sub-FM whose FFNs are not the FM's, and counts."""

    def __init__(self, fm, *, retained_ratio=0.5, seed=0):
        self.fm, self.retained_ratio, self.seed, self.calls = fm, retained_ratio, seed, 0

    def __call__(self):
        self.calls += 1
        sub_fm, neuron_map = compress(self.fm, retained_ratio=self.retained_ratio)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for ffn in find_ffns(sub_fm):
                for parameter in ffn.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
        return BuiltSubFM(tensors=sub_fm_tensors(sub_fm, neuron_map), report={"loss": 0.1})


def content(cache: SubFMCache) -> set[str]:
    """Return the names in the cache's folder but for locks."""
    return {path.name for path in cache.store.folder.iterdir() if not path.name.endswith(".lock")}


@contextmanager
def held_elsewhere(store: Store, key: str) -> Iterator[None]:
    """Hold a key's lock in another thread."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock(key):
            held.set()
            done.wait(300)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(300)
        yield
    finally:
        done.set()
        thread.join(300)
