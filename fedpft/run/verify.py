"""Proof, on this machine, that an adapter does not depend on when, where and in how many pieces it was tuned.

    the run, shortened: adapter of every round, sub-FM of every version
      = the same from nothing, in a process of its own
      = the same clients with 1 actor, with several, and without Ray (FM, data and constructed sub-FM are shared: the
        pools are what is compared)
      = one client at a time, where `pool.clients_per_batch` is more and clients train on a CPU in float32; elsewhere
        their last bits depend on who trains together, and only that the groups repeat is proved, by all other checks
      = the rest of the run from checkpoints after the first and the last round but one, in processes of their own

Everything is compared bit for bit.
"""

import copy
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fedpft.config import Config, ConfigError, PoolConfig
from fedpft.data.datamodule import FederatedData
from fedpft.federated.observer import SilentObserver
from fedpft.federated.package import local_settings
from fedpft.models.lora import adapter_layout
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import make_pool
from fedpft.run.planning import planned_actors
from fedpft.run.tuning import tune
from fedpft.storage.checkpoint import Checkpoints, RunCheckpoint, load_newest
from fedpft.tracking.trackers import TrackerGroup
from fedpft.trainer import SilentProgress

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """The first tensor in which two runs differ."""

    round_index: int
    """After which it differs; 0: before the first round."""
    tensor: str
    max_abs_difference: float

    def __str__(self) -> str:
        return f"round {self.round_index}: {self.tensor}, up to {self.max_abs_difference:.1e}"


@dataclass(frozen=True)
class Check:
    """Two ways to run the same config."""

    name: str
    difference: Difference | None
    """None: all bits are equal."""


@dataclass(frozen=True)
class Trace:
    """What a run went through, as tensors by name after each round."""

    adapters: Mapping[int, Tensors]
    proxies: Mapping[int, Tensors]
    """Only after rounds that changed it, and before the first."""


def verify(config: Config, num_rounds: int = 3, say: Callable[[str], None] = lambda line: None) -> list[Check]:
    """Run `config`, shortened, in every way that must not matter; write only to a temporary folder.

    Args:
        config: the run's; its `output_dir` is left alone.
        num_rounds: at least 2; 3 hold an alignment of neurons and a round on either side of it.
        say: hears what is under way.

    Raises:
        ConfigError: fewer than 2 rounds, or settings that cannot work.

    """
    config = shortened(config, num_rounds)
    one, several, sequential = _pools(config)
    config = replace(config, pool=sequential if config.pool.kind == "sequential" else several)
    stops = sorted({1, num_rounds - 1})
    with tempfile.TemporaryDirectory(prefix="fedpft-verify-") as folder:
        say("load FM and data")
        fm, data = _load(config)
        saved_fm = Path(folder, "fm") if config.fm.pretrain.num_epochs else None
        if saved_fm:
            fm.save_pretrained(saved_fm)
        begun: list[RunCheckpoint] = []

        def keep(checkpoint: RunCheckpoint) -> None:
            if checkpoint.rounds_done == 0:
                sub_fm = checkpoint.proxy()
                begun.append(replace(checkpoint, proxy=lambda: sub_fm))
            if checkpoint.rounds_done in stops:
                Checkpoints(Path(folder, str(checkpoint.rounds_done)), interval=1).save(checkpoint)

        say(f"{num_rounds} rounds as configured")
        straight = _trace(config, fm, data, keep=keep)
        say("once more, from nothing")
        checks = [Check("two runs", first_difference(_in_a_new_process(_from_nothing, config), straight))]
        traces = {config.pool: straight}
        alone = replace(sequential, clients_per_batch=1)
        keeps_bits = local_settings(replace(config, pool=alone)).keeps_bits
        for pool in (one, several, sequential, *([alone] if keeps_bits else [])):
            if pool not in traces:
                say(f"Ray, {pool.actors} actor(s)" if pool.kind == "ray" else _how(pool))
                traces[pool] = _trace(replace(config, pool=pool), fm, data, saved=begun[0])
        checks += [
            Check(f"1 actor, {several.actors} actors", first_difference(traces[one], traces[several])),
            Check("Ray, sequential", first_difference(traces[several], traces[sequential])),
        ]
        if alone != sequential and keeps_bits:
            checks.append(
                Check(f"{_how(sequential)}, {_how(alone)}", first_difference(traces[sequential], traces[alone]))
            )
        for stop in stops:
            say(f"resumed after round {stop}")
            resumed = _in_a_new_process(_from_checkpoint, config, Path(folder, str(stop)), saved_fm)
            checks.append(Check(f"straight, resumed after round {stop}", first_difference(resumed, straight)))
    return checks


def shortened(config: Config, num_rounds: int) -> Config:
    """Return the config with so few rounds, an alignment of neurons among them, and no evaluation in between.

    Raises:
        ConfigError: fewer than 2 rounds.

    """
    if num_rounds < 2:
        raise ConfigError(f"--rounds: found {num_rounds}, allowed: an integer >= 2")
    neurons = config.align.neurons
    neurons = replace(neurons, interval=min(neurons.interval, 2, num_rounds - 1))
    return replace(
        config,
        federated=replace(config.federated, rounds=num_rounds),
        align=replace(config.align, neurons=neurons),
        evaluation=replace(config.evaluation, interval=num_rounds),
    )


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


def likely_causes(config: Config, checks: list[Check]) -> list[str]:
    """Return a line for each of the usual reasons why these checks found a difference; none if they did not."""
    failed = [check.name for check in checks if check.difference]
    if not failed:
        return []
    uses_gpu = torch.cuda.is_available() and "cpu" not in (config.server.accelerator, _device(config))
    lines = []
    if uses_gpu:
        lines.append(
            "GPU kernels may add up in another order each time: set CUBLAS_WORKSPACE_CONFIG=:4096:8, call "
            "torch.use_deterministic_algorithms(True), or stay on the CPU: pool.accelerator=cpu server.accelerator=cpu"
        )
        if not config.server.precision == config.pool.precision == "32-true":
            lines.append(
                "mixed precision makes such differences larger: server.precision=32-true pool.precision=32-true"
            )
    if any("actor" in name or "Ray" in name for name in failed):
        lines.append(
            "actors on nodes with other CPUs, other library versions or other numbers of threads "
            "(pool.threads_per_client, OMP_NUM_THREADS) round differently"
        )
    if not uses_gpu:
        lines.append("other numbers of threads round differently: server.num_threads=1 pool.threads_per_client=1")
    return lines


def _pools(config: Config) -> tuple[PoolConfig, PoolConfig, PoolConfig]:
    """Return the configured pool with one actor, with several, and without Ray, all on the same kind of device."""
    pool = replace(config.pool, accelerator=_device(config))
    ray = replace(pool, kind="ray", actors=pool.actors if pool.kind == "ray" else "auto")
    if pool.accelerator == "cuda" and not ray.gpu_claim:
        ray = replace(ray, gpus_per_actor=0.5)
    num_actors = planned_actors(replace(config, pool=ray))
    if num_actors == 1:
        ray = replace(ray, cpus_per_actor=ray.cpus_per_actor / 2, gpus_per_actor=ray.gpu_claim / 2)
    one, several = replace(ray, actors=1), replace(ray, actors=max(2, num_actors))
    return one, several, replace(ray, kind="sequential", actors="auto")


def _how(pool: PoolConfig) -> str:
    """Return how a pool without Ray plays the clients."""
    together = pool.clients_per_batch
    return "sequential" if together == 1 else f"sequential, {together} together"


def _device(config: Config) -> Any:
    accelerator = local_settings(config).accelerator
    return ("cuda" if torch.cuda.is_available() else "cpu") if accelerator == "auto" else accelerator


def _load(config: Config, saved_fm: Path | None = None) -> tuple[PreTrainedModel, FederatedData]:
    if config.server.num_threads is not None:
        torch.set_num_threads(config.server.num_threads)
    return load_fm_and_data(config, SilentProgress(), saved_fm)


def _trace(
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
            proxies[checkpoint.rounds_done] = {f"sub-FM {k}": v.numpy() for k, v in checkpoint.proxy().items()}

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


def _from_nothing(config: Config) -> Trace:
    return _trace(config, *_load(config))


def _from_checkpoint(config: Config, folder: Path, saved_fm: Path | None) -> Trace:
    saved = load_newest(folder)
    if saved is None:
        raise RuntimeError(f"no checkpoint in {folder}: it could not be written")
    return _trace(config, *_load(config, saved_fm), saved=saved)


def _in_a_new_process(function: Callable[..., Trace], *arguments: Any) -> Trace:
    """Call a function where nothing is left of what this process did, its hash seed included."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=warnings.simplefilter, initargs=("ignore",)) as executor:
        try:
            return executor.submit(function, *arguments).result()
        except BaseException:  # Ctrl-C: the process would otherwise be waited for
            for process in multiprocessing.active_children():
                process.kill()
            raise
