"""From a config to a tuned foundation model: the one page that wires everything.

task, data -> pool (actors start importing) -> FM -> method.build_proxy [construct, align layers] -> pool.broadcast
-> rounds [fit, aggregate, align neurons, evaluate, checkpoint] -> adapter/, sub_fm/, result.json,
   report.html

A run that goes on from a checkpoint takes the same way: FM and data are loaded again, the proxy and all other state
come from the checkpoint, and the rounds that are left follow.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.checkpoint import FOLDER, Checkpoints, RunCheckpoint
from fedpft.config import Config, dump_config, reported_name
from fedpft.data.datamodule import FederatedData
from fedpft.data.digest import public_identity
from fedpft.evaluate import METRIC
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.evaluation import Evaluation
from fedpft.federated.observer import RunObserver, SilentObserver
from fedpft.federated.package import client_package, local_settings
from fedpft.federated.pool import ClientPool, SequentialPool, process_peak_memory_bytes
from fedpft.inputs import load_data, load_fm
from fedpft.methods import METHODS
from fedpft.models.costs import costs
from fedpft.models.lora import AdaptedModel, get_adapter, save_adapter, without_adapter
from fedpft.output import (
    check_claimable,
    check_writable,
    claim_output_dir,
    cut_rounds,
    machine,
    package_versions,
    write_json,
)
from fedpft.report.curves import Curves
from fedpft.report.page import write_page
from fedpft.tracking import Tracker, check_tracking, make_trackers


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves."""

    result: Mapping[str, Any]
    """The content of result.json."""
    locations: Mapping[str, Path | str]
    """What -> where it was written."""


@dataclass(frozen=True)
class Outcome:
    """What tuning gives, before it is written."""

    result: dict[str, Any]
    tuned_fm: AdaptedModel
    sub_fm: AdaptedModel
    """The tuned FM itself where clients tuned that."""


def run(config: Config, observer: RunObserver | None = None, saved: RunCheckpoint | None = None) -> RunResult:
    """Run an experiment and write everything to `config.output_dir`.

    Args:
        config: the run's.
        observer: hears what happens.
        saved: the checkpoint in `config.output_dir` from which to go on (see `fedpft.resume`); None: a new run.

    Raises:
        ConfigError: settings or data that cannot work; raised before an actor starts wherever that can be known.

    """
    start = time.perf_counter() - (saved.seconds if saved else 0.0)
    observer = observer or SilentObserver()
    output_dir = Path(config.output_dir).resolve()
    (check_writable if saved else check_claimable)(output_dir)
    check_tracking(config.tracking)
    if config.server.num_threads is not None:
        torch.set_num_threads(config.server.num_threads)
    data = load_data(config, observer)
    observer.stage("start actors" if config.pool.kind == "ray" else "start")
    pool = make_pool(config)
    try:
        own_fm = output_dir / "fm" if config.fm.pretrain.num_epochs else None  # nobody else has this FM
        fm = load_fm(config, data, observer, own_fm if saved else None)
        past: list[dict[str, Any]] = []
        if saved is None:
            claim_output_dir(output_dir)
        else:
            past = cut_rounds(output_dir, saved.rounds_done)
        (output_dir / "config.yaml").write_text(dump_config(config))
        run_id = saved.run_id if saved else secrets.token_hex(4)
        tracker = make_trackers(config, output_dir, run_id)
        curves = Curves(observer, tracker, saved.align_steps if saved else 0, past)
        checkpoints = Checkpoints(output_dir / FOLDER, config.checkpoint.interval)

        settings, environment = asdict(config), run_environment(config)

        def keep(checkpoint: RunCheckpoint) -> None:
            complete = replace(
                checkpoint,
                run_id=run_id,
                align_steps=curves.steps,
                seconds=time.perf_counter() - start,
                config=settings,
                environment=environment,
            )
            checkpoints.save(complete)

        try:
            if own_fm and saved is None:
                fm.save_pretrained(own_fm)
            outcome = tune(config, fm, data, pool, tracker, curves, saved=saved, keep=keep)
            checkpoints.flush()
            observer.stage("write results")
            files = {"adapter": output_dir / "adapter"}
            save_adapter(outcome.tuned_fm, files["adapter"])
            if outcome.sub_fm is not outcome.tuned_fm:
                files["sub_fm"] = output_dir / "sub_fm"
                without_adapter(outcome.sub_fm).save_pretrained(files["sub_fm"])
            memory = {"driver": process_peak_memory_bytes(), "actors": pool.peak_memory_bytes()}
            seconds = time.perf_counter() - start
            result = outcome.result | {
                "peak_memory_bytes": memory,
                "wall_seconds": seconds,
                "versions": package_versions(),
            }
            files["result"] = output_dir / "result.json"
            write_json(files["result"], result)
            if own_fm:
                files["fm"] = own_fm
            files |= write_page(output_dir)
            tracker.finish(result, files)
            checkpoints.discard()
        except BaseException:
            checkpoints.flush()
            tracker.fail()
            raise
    finally:
        pool.close()
    return RunResult(result, {"config": output_dir / "config.yaml", **tracker.locations, **files})


def tune(
    config: Config,
    fm: PreTrainedModel,
    data: FederatedData,
    pool: ClientPool,
    tracker: Tracker,
    observer: RunObserver,
    *,
    saved: RunCheckpoint | None = None,
    keep: Callable[[RunCheckpoint], None] = lambda checkpoint: None,
) -> Outcome:
    """Build the proxy, run all rounds, evaluate: from an untuned FM to a tuned one; only the tracker and `keep` write.

    Args:
        config: the run's.
        fm: plain; gets an adapter.
        data: of clients and server.
        pool: plays the clients.
        tracker: takes the numbers.
        observer: hears what happens.
        saved: the state to go on from; None: from the beginning.
        keep: called with the state before the first round and after every round.

    """
    method = METHODS[config.method.name](fm, public_data(data), config, observer)
    proxy = method.build_proxy(saved.proxy() if saved else None)

    evaluation = Evaluation(method, proxy, data, config, observer)
    construction = saved.extra["construction"] if saved else dict(proxy.construction)
    start = time.perf_counter()  # of the rounds, once they begin

    def checkpoint(state: ServerState) -> None:
        server = {name: value for name, value in vars(state).items() if name != "adapter"}
        extra = {
            "construction": construction,
            "fidelity_seconds": evaluation.fidelity_seconds,
            "rounds_seconds": time.perf_counter() - start,
        }
        tensors = method.saved_proxy
        keep(RunCheckpoint(server=server, adapter=state.adapter, proxy=tensors, untuned=untuned, extra=extra))

    if saved:
        state, untuned = ServerState(adapter=saved.adapter, **saved.server), saved.untuned
        evaluation.fidelity_seconds = saved.extra["fidelity_seconds"]
    else:
        state = ServerState(rounds_done=0, adapter=get_adapter(proxy.model))
        untuned = {"round": 0, **evaluation.untuned(state.adapter)}
        tracker.log_round(untuned)
        checkpoint(state)
    observer.run_started(untuned)
    observer.stage(f"send proxy and data to {pool.num_actors} actor(s)")
    pool.broadcast(client_package(config, proxy, data))
    start = time.perf_counter() - (saved.extra["rounds_seconds"] if saved else 0.0)
    driver = Driver(
        config=config.federated,
        seed=config.seed,
        client_sizes=data.partition.sizes,
        num_neurons=proxy.num_neurons,
        method=method,
        pool=pool,
        evaluate=evaluation,
        evaluation_interval=config.evaluation.interval,
        tracker=tracker,
        observer=observer,
        checkpoint=checkpoint,
    )
    final = driver.run(state)
    accuracies = {"sub_fm": final.last_evaluation["fm"], **final.last_evaluation}  # the FM's own if it is the proxy
    result = {
        "name": config.name,
        "seed": config.seed,
        "method": reported_name(config.method, config.align),
        "metric": METRIC,
        "untuned_fm": untuned["fm"],
        **{name: accuracies[name] for name in ("fm", "sub_fm")},
        **evaluation.summary(untuned, final.last_evaluation),
        "best": dict(final.best),
        "rounds": final.rounds_done,
        "construction": construction,
        "rounds_seconds": time.perf_counter() - start,
        **costs(fm, proxy.model),
        "label_names": list(data.label_names),
        "num_eval_examples": len(data.evaluation),
        "actors": pool.num_actors,
    }
    return Outcome(result, method.plug_in(final.adapter), method.proxy_with(final.adapter))


def make_pool(config: Config) -> ClientPool:
    """Return the pool that the config asks for; Ray is imported only when it is used."""
    if config.pool.kind == "sequential":
        return SequentialPool(config.pool.max_retries)
    from fedpft.simulation.pool import RayClientPool

    return RayClientPool(config.pool, planned_cohort(config))


def planned_cohort(config: Config) -> int:
    """Return how many clients a round draws."""
    federated = config.federated
    return federated.num_clients if federated.sampling == "full" else federated.clients_per_round


def run_environment(config: Config) -> dict[str, Any]:
    """Return on what the last bits of the run's numbers depend besides the config."""
    threads = config.server.num_threads or torch.get_num_threads()
    return machine() | {"driver threads": threads, "clients' accelerator": local_settings(config).accelerator}


def public_data(data: FederatedData) -> PublicData:
    """Return what alignments read."""
    identity = partial(public_identity, data.public, data.collate)
    return PublicData(dataset=data.public, collate=data.collate, identity=identity)
