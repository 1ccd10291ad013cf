"""From a config to a tuned foundation model: the one page that wires everything.

pool (actors start importing) -> task, FM, data -> method.build_proxy [construct, align layers] -> pool.broadcast
-> rounds [fit, aggregate, align neurons, evaluate] -> adapter/, sub_fm/, result.json, report.html
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import Config, doubtful_settings, dump_config
from fedpft.data.datamodule import FederatedData, build_data
from fedpft.data.digest import public_identity
from fedpft.data.public import load_corpus
from fedpft.data.tasks import load_task
from fedpft.evaluate import METRIC
from fedpft.federated.client import ClientPackage
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.evaluation import Evaluation
from fedpft.federated.messages import LocalSettings
from fedpft.federated.observer import RunObserver, SilentObserver
from fedpft.federated.pool import ClientPool, SequentialPool, process_peak_memory_bytes
from fedpft.methods import METHODS
from fedpft.methods.base import Proxy
from fedpft.models.costs import costs
from fedpft.models.loading import load_fm, load_processor
from fedpft.models.lora import AdaptedModel, get_adapter, save_adapter, without_adapter
from fedpft.models.pretrain import pretrain_backbone
from fedpft.models.weights import pack_model
from fedpft.output import check_writable, claim_output_dir, package_versions, write_json
from fedpft.report.curves import Curves
from fedpft.report.page import write_page
from fedpft.seeding import derive_seed
from fedpft.tracking import Tracker, make_trackers
from fedpft.trainer import Progress, SilentProgress


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


def run(config: Config, observer: RunObserver | None = None) -> RunResult:
    """Run an experiment and write everything to `config.output_dir`.

    Raises:
        ConfigError: a setting that cannot work; raised before any model loads wherever that can be known.

    """
    start = time.perf_counter()
    observer = observer or SilentObserver()
    check_writable(Path(config.output_dir))
    if config.server.num_threads is not None:
        torch.set_num_threads(config.server.num_threads)
    observer.stage("start actors" if config.pool.kind == "ray" else "start")
    pool = make_pool(config)
    try:
        fm, data = load_fm_and_data(config, observer)
        output_dir = claim_output_dir(Path(config.output_dir))
        (output_dir / "config.yaml").write_text(dump_config(config))
        tracker = make_trackers(config, output_dir)
        try:
            outcome = tune(config, fm, data, pool, tracker, Curves(observer, tracker))
            observer.stage("write results")
            files = {name: output_dir / name for name in ("adapter", "sub_fm")}
            save_adapter(outcome.tuned_fm, files["adapter"])
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
            if config.fm.pretrain.num_epochs:  # nobody else has this FM, and the adapter is of no use without it
                files["fm"] = output_dir / "fm"
                without_adapter(outcome.tuned_fm).save_pretrained(files["fm"])
            files |= write_page(output_dir)
            tracker.finish(result, files)
        except BaseException:
            tracker.fail()
            raise
    finally:
        pool.close()
    return RunResult(result, {"config": output_dir / "config.yaml", **tracker.locations, **files})


def tune(
    config: Config, fm: PreTrainedModel, data: FederatedData, pool: ClientPool, tracker: Tracker, observer: RunObserver
) -> Outcome:
    """Build the proxy, run all rounds, evaluate: from an untuned FM to a tuned one; only the tracker writes."""
    method = METHODS[config.method.name](fm, public_data(data), config, observer)
    proxy = method.build_proxy()

    evaluation = Evaluation(method, proxy, data, config, observer)
    adapter = get_adapter(proxy.model)
    result = {"name": config.name, "seed": config.seed, "method": config.method.name, "metric": METRIC}
    untuned = {"round": 0, **evaluation.untuned(adapter)}
    result["untuned_fm"] = untuned["fm"]
    tracker.log_round(untuned)
    observer.run_started(untuned)
    observer.stage(f"send sub-FM and data to {pool.num_actors} actor(s)")
    pool.broadcast(client_package(config, proxy, data))
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
    )
    start = time.perf_counter()
    final = driver.run(ServerState(rounds_done=0, adapter=adapter))
    result |= {
        **{name: final.last_evaluation[name] for name in ("fm", "sub_fm")},
        **evaluation.summary(untuned, final.last_evaluation),
        "rounds": final.rounds_done,
        "construction": dict(proxy.construction),
        "rounds_seconds": time.perf_counter() - start,
        **costs(fm, proxy.model),
        "label_names": list(data.label_names),
        "num_eval_examples": len(data.evaluation),
        "actors": pool.num_actors,
    }
    return Outcome(result, method.plug_in(final.adapter), method.proxy_with(final.adapter))


def plan(config: Config) -> dict[str, Any]:
    """Return what a run would do, without training: partition, parameters, bytes, actors.

    Raises:
        ConfigError: a setting with which `run` could not build its proxy or place its actors.

    """
    pool_actors = planned_actors(config)
    untrained = replace(config, align=replace(config.align, layers=replace(config.align.layers, kind="none")))
    untrained = replace(untrained, cache=replace(config.cache, enabled=False))
    untrained = replace(untrained, fm=replace(config.fm, pretrain=replace(config.fm.pretrain, num_epochs=0)))
    fm, data = load_fm_and_data(untrained, SilentProgress())
    method = METHODS[config.method.name](fm, public_data(data), untrained, SilentProgress())
    proxy = method.build_proxy()
    histogram = data.partition.label_histogram(np.asarray(data.train["label"]), len(data.label_names))
    return {
        "config_yaml": dump_config(config),
        "client_sizes": data.partition.sizes.tolist(),
        "label_histogram": histogram.tolist(),
        "label_names": list(data.label_names),
        **costs(fm, proxy.model),
        "actors": pool_actors,
        "pool": config.pool.kind,
        "warnings": doubtful_settings(config),
    }


def load_fm_and_data(config: Config, progress: Progress) -> tuple[PreTrainedModel, FederatedData]:
    """Load task, public corpus, processor and FM; a `scratch://` FM is pre-trained here."""
    progress.stage("load data")
    task = load_task(config.task, config.seed)
    corpus = load_corpus(config.public, config.seed)
    processor = load_processor(config.fm, task.modality)
    data = build_data(task, corpus, processor, config)
    progress.stage("load FM")
    fm = load_fm(
        config.fm, modality=task.modality, num_labels=len(task.label_names), seed=config.seed,
        pad_token_id=getattr(processor, "pad_token_id", None),
    )  # fmt: skip
    if config.fm.pretrain.num_epochs:
        progress.stage("pre-train FM on public data")
        pretrain_backbone(
            fm, data.public, data.collate, config=config.fm.pretrain, server=config.server,
            seed=derive_seed(config.seed, "pretrain"), on_step=progress.progress,
        )  # fmt: skip
    return fm, data


def make_pool(config: Config) -> ClientPool:
    """Return the pool that the config asks for; Ray is imported only when it is used."""
    if config.pool.kind == "sequential":
        return SequentialPool(config.pool.max_retries)
    from fedpft.simulation.pool import RayClientPool

    return RayClientPool(config.pool, planned_cohort(config))


def planned_actors(config: Config) -> int:
    """Return how many actors a run would start, without starting any.

    Raises:
        ConfigError: the cluster can never hold them.

    """
    if config.pool.kind == "sequential":
        return SequentialPool.num_actors
    from fedpft.simulation.cluster import actors_that_fit

    return actors_that_fit(config.pool, planned_cohort(config))


def planned_cohort(config: Config) -> int:
    """Return how many clients a round draws."""
    federated = config.federated
    return federated.num_clients if federated.sampling == "full" else federated.clients_per_round


def local_settings(config: Config) -> LocalSettings:
    """Return what every client is told about local training."""
    accelerator = config.pool.accelerator
    if accelerator == "auto" and config.pool.kind == "ray":
        accelerator = "cuda" if config.pool.gpus_per_actor else "cpu"  # an actor uses a GPU only if it was given one
    return LocalSettings(
        seed=config.seed,
        num_epochs=config.federated.local_epochs,
        batch_size=config.federated.batch_size,
        head_lr_ratio=config.federated.head_lr_ratio,
        weight_decay=config.federated.weight_decay,
        max_grad_norm=config.federated.max_grad_norm,
        num_threads=config.pool.threads_per_client,
        precision=config.pool.precision,
        accelerator=accelerator,
    )


def client_package(config: Config, proxy: Proxy, data: FederatedData) -> ClientPackage:
    """Return what goes to the clients before the first round: the proxy and the data, nothing of the FM."""
    return ClientPackage(
        proxy=pack_model(proxy.model),
        watched_layers=proxy.watched_layers,
        train=data.train,
        partition=data.partition,
        collate=data.collate,
        settings=local_settings(config),
    )


def public_data(data: FederatedData) -> PublicData:
    """Return what alignments read."""
    identity = partial(public_identity, data.public, data.collate)
    return PublicData(dataset=data.public, collate=data.collate, identity=identity)
