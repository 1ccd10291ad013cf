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

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedpft.config import Config, ConfigError, PoolConfig
from fedpft.federated.broadcast import local_settings
from fedpft.run.planning import planned_actors
from fedpft.run.traces import Difference, first_difference, from_checkpoint, from_nothing, in_a_new_process, load, trace
from fedpft.storage.checkpoint import Checkpoints, RunCheckpoint


@dataclass(frozen=True)
class Check:
    """Two ways to run the same config."""

    name: str
    difference: Difference | None
    """None: all bits are equal."""


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
        fm, data = load(config)
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
        straight = trace(config, fm, data, keep=keep)
        say("once more, from nothing")
        checks = [Check("two runs", first_difference(in_a_new_process(from_nothing, config), straight))]
        traces = {config.pool: straight}
        alone = replace(sequential, clients_per_batch=1)
        keeps_bits = local_settings(replace(config, pool=alone)).keeps_bits
        for pool in (one, several, sequential, *([alone] if keeps_bits else [])):
            if pool not in traces:
                say(f"Ray, {pool.actors} actor(s)" if pool.kind == "ray" else _how(pool))
                traces[pool] = trace(replace(config, pool=pool), fm, data, saved=begun[0])
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
            resumed = in_a_new_process(from_checkpoint, config, Path(folder, str(stop)), saved_fm)
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


def likely_causes(config: Config, checks: list[Check]) -> list[str]:
    """Return a line for each of the usual reasons why these checks found a difference; none if they did not."""
    failed = [check.name for check in checks if check.difference]
    if not failed:
        return []
    uses_gpu = torch.cuda.is_available() and "cpu" not in (config.server.accelerator, _device(config))
    lines = []
    if uses_gpu:
        lines.append(
            "GPU kernels may add up in another order each time: server.deterministic=true pool.deterministic=true, or "
            "stay on the CPU: pool.accelerator=cpu server.accelerator=cpu"
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
