"""What a run goes through, tensor by tensor, and where two runs part ways: what `fedpft.run.verify` compares."""

import copy
import multiprocessing
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fedpft.config import Config
from fedpft.data.datamodule import FederatedData
from fedpft.federated.observer import SilentObserver
from fedpft.models.lora import adapter_layout
from fedpft.models.weights import as_array
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import make_pool
from fedpft.run.tuning import tune
from fedpft.storage.checkpoint import RunCheckpoint, load_newest
from fedpft.tracking.trackers import TrackerGroup
from fedpft.trainer import SilentProgress

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Trace:
    """What a run went through, as tensors by name after each round."""

    adapters: Mapping[int, Tensors]
    proxies: Mapping[int, Tensors]
    """Only after rounds that changed it, and before the first."""


@dataclass(frozen=True)
class Difference:
    """The first tensor in which two runs differ."""

    round_index: int
    """After which it differs; 0: before the first round."""
    tensor: str
    max_abs_difference: float

    def __str__(self) -> str:
        return f"round {self.round_index}: {self.tensor}, up to {self.max_abs_difference:.1e}"


def first_difference(found: Trace, expected: Trace) -> Difference | None:
    """Compare the rounds that both went through, in the order in which their tensors arose."""
    for round_index in sorted(found.adapters.keys() & expected.adapters.keys()):
        for kind in ("adapters", "proxies"):  # neurons are aligned after the round's aggregation
            tensors = getattr(found, kind).get(round_index, {})
            wanted = getattr(expected, kind).get(round_index, {})
            assert tensors.keys() == wanted.keys(), "both runs are of one config"
            for name, value in tensors.items():
                if value.tobytes() != wanted[name].tobytes():
                    gap = np.abs(value.astype(np.float64) - wanted[name].astype(np.float64)).max()
                    return Difference(round_index, name, float(gap))
    return None


def load(config: Config, saved_fm: Path | None = None) -> tuple[PreTrainedModel, FederatedData]:
    """Return what a run starts with, the FM perhaps as it was saved, with the config's number of threads."""
    if config.server.num_threads is not None:
        torch.set_num_threads(config.server.num_threads)
    return load_fm_and_data(config, SilentProgress(), saved_fm)


def trace(
    config: Config,
    fm: PreTrainedModel,
    data: FederatedData,
    saved: RunCheckpoint | None = None,
    keep: Callable[[RunCheckpoint], None] = lambda checkpoint: None,
) -> Trace:
    """Run all rounds, or those after `saved`, and return what they went through; `fm` is not changed."""
    adapters: dict[int, np.ndarray] = {}
    proxies: dict[int, Tensors] = {}
    version = saved.proxy_version if saved else -1

    def record(checkpoint: RunCheckpoint) -> None:
        nonlocal version
        keep(checkpoint)
        adapters[checkpoint.rounds_done] = checkpoint.adapter
        if checkpoint.proxy_version != version:
            version = checkpoint.proxy_version
            proxies[checkpoint.rounds_done] = {f"sub-FM {k}": as_array(v) for k, v in checkpoint.proxy().items()}

    pool = make_pool(config)
    try:
        silent = TrackerGroup([]), SilentObserver()
        outcome = tune(config, copy.deepcopy(fm), data, pool, *silent, saved=saved, keep=record)
    finally:
        pool.close()
    layout = adapter_layout(outcome.sub_fm)
    ends = np.cumsum([int(np.prod(shape)) for _, shape in layout])[:-1]
    names = [name for name, _ in layout]
    named = {i: dict(zip(names, np.split(adapter, ends), strict=True)) for i, adapter in adapters.items()}
    return Trace(adapters=named, proxies=proxies)


def from_nothing(config: Config) -> Trace:
    """Return the trace of a whole run."""
    return trace(config, *load(config))


def from_checkpoint(config: Config, folder: Path, saved_fm: Path | None) -> Trace:
    """Return the trace of a run that goes on from the checkpoint in a folder."""
    saved = load_newest(folder)
    if saved is None:
        raise RuntimeError(f"no checkpoint in {folder}: it could not be written")
    return trace(config, *load(config, saved_fm), saved=saved)


def in_a_new_process(function: Callable[..., Trace], *arguments: Any) -> Trace:
    """Call a function where nothing is left of what this process did, its hash seed included."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=warnings.simplefilter, initargs=("ignore",)) as executor:
        try:
            return executor.submit(function, *arguments).result()
        except BaseException:  # Ctrl-C: the process would otherwise be waited for
            for process in multiprocessing.active_children():
                process.kill()
            raise
