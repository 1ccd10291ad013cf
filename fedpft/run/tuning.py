"""From an untuned FM to a tuned one: build the proxy, run all rounds, evaluate; nothing here writes a file."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from fedpft.align.head_inputs import measure_head_inputs
from fedpft.align.public import PublicData
from fedpft.align.public_counts import count_on_public
from fedpft.config import Config, reported_name
from fedpft.data.datamodule import FederatedData
from fedpft.data.digest import public_identity
from fedpft.data.histogram import label_histograms
from fedpft.federated.adversary.clients import draw_adversaries
from fedpft.federated.broadcast import client_package, packed_changes, quant_kind
from fedpft.federated.client_ranks import client_ranks
from fedpft.federated.control_variates import ClientStates
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.early_stop import EarlyStop
from fedpft.federated.evaluation import Evaluation
from fedpft.federated.exchange import make_exchange, traffic
from fedpft.federated.expected_accuracy import client_expected_accuracy
from fedpft.federated.observer import RunObserver
from fedpft.federated.pool import ClientPool
from fedpft.federated.reticence import behind_wall, told
from fedpft.federated.secure_aggregation import SecureAggregation
from fedpft.federated.server_rule import server_rule
from fedpft.federated.spending import run_spent
from fedpft.federated.step_costs import compare_steps, step_costs, typical_batch
from fedpft.methods import find_method
from fedpft.methods.carry_over import CarryOver
from fedpft.metrics.table import METRICS
from fedpft.models.activations import ActivationCounts
from fedpft.models.costs import costs
from fedpft.models.lora import AdaptedModel, adapter_layout, get_adapter
from fedpft.models.spread import spread_over_gpus
from fedpft.models.standardized_head import fold, standardize_head
from fedpft.privacy.table import guarantee_of
from fedpft.run.same_fm import fm_record
from fedpft.run.skill import skill_of
from fedpft.seeding import derive_seed
from fedpft.storage.checkpoint import RunCheckpoint
from fedpft.tracking.trackers import Tracker
from fedpft.trainer import gpus_of_fm

LAST = ("fm", "fm_copied", "sub_fm", "metric", "metric_goal", "plug_in", "attack_success")
"""Of the last evaluation, what the result has under the same name; not every run has all."""


@dataclass(frozen=True)
class Outcome:
    """What tuning gives, before it is written."""

    result: dict[str, Any]
    tuned_fm: AdaptedModel
    sub_fm: AdaptedModel
    """The tuned FM itself where clients tuned that."""


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
    states: ClientStates | None = None,
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
        states: keeps what the server has of each client; None: this process.

    """
    before = saved.server.get("privacy", {}) if saved else {}
    guarantee = guarantee_of(config, data.partition.sizes, before.get("noise_multiplier"))
    record = saved.extra.get("fm", {}) if saved else {}
    record = {**fm_record(fm), **record}  # before it gets an adapter
    public = public_data(data)
    if num_gpus := gpus_of_fm(config):
        observer.stage("spread FM over GPUs")
        observer.note(f"FM  {spread_over_gpus(fm, num_gpus)}")
    head_inputs = saved.extra.get("head_inputs") if saved else None
    if config.federated.head_inputs == "standardized":
        if head_inputs is None:
            observer.stage("measure the head's inputs on public data")
            seed = derive_seed(config.server_seed, "head_inputs")
            head_inputs = asdict(measure_head_inputs(fm, public, config.server, seed))
        standardize_head(fm, **head_inputs)
    method = find_method(config.method.name)(fm, public, config, observer)
    proxy = method.build_proxy(saved.proxy() if saved else None)

    carry_over = CarryOver(method, proxy, public, config, observer)
    evaluation = Evaluation(method, proxy, carry_over, data, config, observer)
    construction = saved.extra["construction"] if saved else dict(proxy.construction)
    start = time.perf_counter()  # of the rounds, once they begin

    def checkpoint(state: ServerState) -> None:
        server = {name: value for name, value in vars(state).items() if name not in ("adapter", "arrays")}
        extra = {
            "fm": record,
            "construction": construction,
            **({} if head_inputs is None else {"head_inputs": head_inputs}),
            "fidelity_seconds": evaluation.fidelity_seconds,
            "rounds_seconds": time.perf_counter() - start,
        }
        tensors = method.saved_proxy
        kept: dict[str, Any] = {"adapter": state.adapter, "arrays": state.arrays, "proxy": tensors}
        keep(RunCheckpoint(server=server, **kept, untuned=untuned, extra=extra))

    def count_neurons(adapter: np.ndarray) -> ActivationCounts:
        seed = derive_seed(config.seed, "public_counts")
        observer.stage("count activations on public data")
        model, layers = method.proxy_with(adapter), proxy.watched_layers
        return count_on_public(model, layers, public, server=config.server, seed=seed)

    if saved:
        state, untuned = ServerState(adapter=saved.adapter, arrays=saved.arrays, **saved.server), saved.untuned
        evaluation.fidelity_seconds = saved.extra["fidelity_seconds"]
    else:
        state = ServerState(
            rounds_done=0, adapter=get_adapter(proxy.model), privacy=guarantee.start() if guarantee else {}
        )
        untuned = {"round": 0, **evaluation.untuned(state.adapter)}
        tracker.log_round(untuned)
        if config.evaluation.fidelity_examples and not proxy.is_fm:
            observer.stage("compare the untuned FM and sub-FM")
            models = method.plug_in(state.adapter), method.proxy_with(state.adapter)
            untuned["skill"] = asdict(skill_of(*models, public, data, config, probes=False))
        checkpoint(state)
    observer.run_started(untuned)
    observer.stage("count FLOPs")
    batch = typical_batch(data, config.federated.batch_size)
    num_memory = config.local_memory
    how: Any = {"recomputes": config.federated.gradient_checkpointing, "quantize": quant_kind(config)}
    step = step_costs(proxy.model, batch, num_memory=num_memory, **how)
    compared = compare_steps(batch, method.plug_in(state.adapter), step, num_memory, **how)
    observer.stage(f"send proxy and data to {pool.num_actors} actor(s)")
    adversaries = draw_adversaries(config, data.partition.num_clients)
    noise = guarantee.local if guarantee else None
    pool.broadcast(client_package(config, proxy, data, step, adversaries, noise))
    start = time.perf_counter() - (saved.extra["rounds_seconds"] if saved else 0.0)
    layout, ranks = adapter_layout(proxy.model), client_ranks(config, data.partition.num_clients)
    sent, secure = traffic(config.federated, layout, ranks), SecureAggregation.of_run(config, data.partition.sizes)
    if secure is not None:
        sent = secure.traffic(sent, config.federated.drawn_clients)
    stop = EarlyStop(config=config.stop, metric=config.stop.metric or data.metrics[0])
    behind = behind_wall(tracker, observer, config.privacy)
    driver = Driver(
        config=config.federated,
        seed=config.client_seed,
        partition=data.partition,
        guarantee=guarantee,
        public_counts=count_neurons if config.counts_neurons_on == "public" else None,
        num_neurons=proxy.num_neurons,
        method=method,
        pool=pool,
        packed=partial(packed_changes, config, proxy.model),
        exchange=make_exchange(config.federated, data.partition.sizes, layout, states, ranks),
        rule=server_rule(config.federated, layout),
        secure=secure,
        evaluate=evaluation,
        evaluation_interval=config.evaluation.interval,
        goal=METRICS[data.metrics[0]].goal,
        absent=data.canaries.absent if data.canaries else frozenset(),
        adversaries=adversaries,
        stop=stop if config.stop.is_active else None,
        tracker=behind[0],
        observer=behind[1],
        is_strict=config.privacy.strict,
        checkpoint=checkpoint,
    )
    final = driver.run(state)
    last = {"sub_fm": final.last_evaluation["fm"], **final.last_evaluation}  # the FM's own if it is the proxy
    result = {
        "name": config.name,
        "seed": config.seed,
        "method": reported_name(config.method, config.align),
        "untuned_fm": untuned["fm"],
        **{name: last[name] for name in LAST if name in last},
        "metrics": {"untuned_fm": untuned["metrics"]["fm"], "sub_fm": last["metrics"]["fm"], **last["metrics"]},
        **_of_clients(data, last),
        **evaluation.summary(untuned, final.last_evaluation),
        **({"skill": untuned["skill"]} if "skill" in untuned else {}),
        **({"adversaries": sorted(adversaries.clients)} if adversaries else {}),
        **({"client_ranks": list(ranks.values())} if ranks else {}),
        "best": dict(final.best),
        "rounds": final.rounds_done,
        **stop.record(final.stop, config.federated.rounds),
        **record,
        "construction": construction,
        "rounds_seconds": time.perf_counter() - start,
        **costs(fm, proxy.model),
        **sent,
        **compared,
        **run_spent(final.spent),
        **({"privacy": guarantee.summary(final.privacy)} if guarantee else {}),
        **({"secure_aggregation": secure.summary(config.federated.drawn_clients)} if secure else {}),
        "kind": data.kind,
        "modality": data.modality,
        "label_names": list(data.label_names),
        "num_eval_examples": len(data.evaluation),
        "actors": pool.num_actors,
    }
    tuned_fm, sub_fm = carry_over(final.adapter).fm, method.proxy_with(final.adapter)
    for model in (tuned_fm, sub_fm):
        fold(model)
    return Outcome(told(result, config.privacy), tuned_fm, sub_fm)


def _of_clients(data: FederatedData, last: Mapping[str, Any]) -> dict[str, Any]:
    """Return `client_expected_accuracy` of a classifier, given its last evaluation, and `client_accuracy` if it has it.

    The latter with `values`, client by client, as the former.
    """
    if "class_accuracy" not in last:
        return {}
    measured = last.get("client_accuracy")
    return {
        "client_expected_accuracy": client_expected_accuracy(label_histograms(data), last["class_accuracy"]),
        **({"client_accuracy": measured | {"values": last["client_accuracies"]}} if measured else {}),
    }


def public_data(data: FederatedData) -> PublicData:
    """Return what alignments read."""
    identity = partial(public_identity, data.public, data.collate)
    return PublicData(dataset=data.public, collate=data.collate, identity=identity)
