"""What a run would do, before anybody pays for it."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch

from fedpft.config import Config, ConfigError, doubtful_settings, dump_config, reported_name
from fedpft.config.adversary import OMNISCIENT
from fedpft.config.compare import own_settings
from fedpft.config.gpus import server_claim
from fedpft.data.datamodule import FederatedData
from fedpft.data.histogram import label_groups, label_histograms
from fedpft.federated.aggregators.lora import tuned_factors
from fedpft.federated.broadcast import check_quantize, quant_kind, quantized_lines
from fedpft.federated.client_ranks import client_ranks
from fedpft.federated.exchange import traffic
from fedpft.federated.pool import SequentialPool
from fedpft.federated.secure_aggregation import SecureAggregation
from fedpft.federated.server_rule import held_by_server
from fedpft.federated.step_costs import compare_steps, step_costs, typical_batch
from fedpft.methods import find_method
from fedpft.methods.base import Proxy
from fedpft.methods.sketch import Sketch, sketch
from fedpft.models.costs import costs
from fedpft.models.lora import AdaptedModel, adapter_layout, get_adapter, head_mask, tuned_mask
from fedpft.models.origin import origin_of
from fedpft.models.standardized_head import first_head_layer, standardize_head
from fedpft.models.weights import skeleton_of
from fedpft.privacy.table import guarantee_of
from fedpft.run.inputs import load_data, load_fm, load_untuned_fm
from fedpft.run.phases import Peaks, construction_peaks
from fedpft.run.planned_memory import holdings, server_device
from fedpft.run.tuning import public_data
from fedpft.trainer import SilentProgress

LARGE_PART = 0.1
"""Of this machine's memory: rows that take more are better shared, since driver and object store both hold them."""


def plan(config: Config, *, counts_memory: bool = True) -> dict[str, Any]:
    """Return what a run would do, without training: partition, parameters, bytes, a local step's cost, actors, memory.

    Data are loaded as for a run. Of the FM only names and shapes are read, so that a plan of a large model takes
    seconds and no memory; but a method of others gets the FM with its weights: who knows what it does with them.

    Args:
        config: the run's.
        counts_memory: whether to go through the run's phases for what they hold, which takes seconds.

    Raises:
        ConfigError: a setting with which `run` could not build its proxy or place its actors.

    """
    check_quantize(config)
    pool_actors = planned_actors(config)
    data = load_data(config, SilentProgress())
    if config.method.is_own:
        fm, proxy, construction = _own_proxy(config, data)
    else:
        sketched = _sketched(config, data)
        device = server_device(config)
        construction = construction_peaks(config, sketched, data, device) if counts_memory else Peaks({})
        fm, proxy = sketched.with_adapters(config)
    batch = typical_batch(data, config.federated.batch_size)
    num_memory = config.local_memory
    how: Any = {"recomputes": config.federated.gradient_checkpointing, "quantize": quant_kind(config)}
    step = step_costs(proxy.model, batch, any_length=False, num_memory=num_memory, **how)
    layout = adapter_layout(proxy.model)
    guarantee, num_parameters = guarantee_of(config, data.partition.sizes), len(head_mask(layout))
    num_tuned = max(int(tuned_mask(layout, tuned_factors(config.federated.lora_aggregation, i)).sum()) for i in (1, 2))
    secure, drawn = SecureAggregation.of_run(config, data.partition.sizes), config.federated.drawn_clients
    sent = traffic(config.federated, layout, client_ranks(config, data.partition.num_clients))
    held, lines = holdings(config, fm, proxy, data, construction, pool_actors) if counts_memory else ([], [])
    return {
        "config_yaml": dump_config(config.shown()),
        "own_settings": own_settings(config.shown()),
        "method": reported_name(config.method, config.align),
        "label_names": label_groups(data)[1],
        "label_histogram": None if config.privacy.strict else np.concatenate(list(label_histograms(data))),
        **costs(fm, proxy.model),
        **(sent if secure is None else secure.traffic(sent, drawn)),
        **held_by_server(config.federated, layout),
        **_kept_of_clients(config, num_parameters),
        **compare_steps(batch, fm, step, num_memory, **how),
        "actors": pool_actors,
        "pool": config.pool.kind,
        "memory": [part.record() for part in held],
        "data": _way_of_data(config, data),
        **({"privacy": guarantee.forecast(num_tuned)} if guarantee else {}),
        **({"secure_aggregation": secure.forecast(drawn, num_tuned + 1)} if secure else {}),
        "notes": [
            *doubtful_settings(config),
            *(guarantee.warnings(num_tuned) if guarantee else ()),
            *origin_of(fm).notes,
            *_kept_updates(config, num_parameters),
            *quantized_lines(config, proxy.model),
            *lines,
        ],
    }


def _sketched(config: Config, data: FederatedData) -> Sketch:
    pad_token_id = data.collate.settings().get("pad_token_id")
    fm = load_untuned_fm(config, data.kind, data.modality, data.label_names, pad_token_id, empty=True)
    if config.federated.head_inputs == "standardized":
        num_features = first_head_layer(fm).in_features
        standardize_head(fm, [0.0] * num_features, [1.0] * num_features)
    return sketch(fm, config)


def _own_proxy(config: Config, data: FederatedData) -> tuple[AdaptedModel, Proxy, Peaks]:
    """Return what a method of others makes of the FM, then without weights."""
    untrained = replace(config, align=replace(config.align, layers=replace(config.align.layers, kind="none")))
    untrained = replace(untrained, cache=replace(config.cache, enabled=False))
    untrained = replace(untrained, fm=replace(config.fm, pretrain=replace(config.fm.pretrain, num_epochs=0)))
    fm = load_fm(untrained, data, SilentProgress())
    method = find_method(config.method.name)(fm, public_data(data), untrained, SilentProgress())
    proxy = method.build_proxy()
    tuned_fm = method.plug_in(get_adapter(proxy.model))
    note = f"memory: what method.name = {config.method.name} holds while it makes its proxy is not counted"
    empty_fm: AdaptedModel = skeleton_of(tuned_fm).to("meta")
    empty: AdaptedModel = empty_fm if proxy.is_fm else skeleton_of(proxy.model).to("meta")
    return empty_fm, replace(proxy, model=empty), Peaks({}, (note,))


def _kept_updates(config: Config, num_parameters: int) -> list[str]:
    """Return a line about the memory of adversaries who must know all updates of a round; none for others."""
    federated = config.federated
    if federated.adversary.kind not in OMNISCIENT:
        return []
    size = 3 * 8 * federated.cohort_size * num_parameters  # float64, and as much again twice for distances
    kind = federated.adversary.kind
    return [f"federated.adversary.kind = {kind} keeps all updates of a round: up to {size / 1e6:.1f} MB in the driver"]


def _kept_of_clients(config: Config, num_parameters: int) -> dict[str, int]:
    """Return what the clients' states take on disk at most: one of each, and those since the checkpoint before last."""
    if not config.federated.client.keeps_state:
        return {}
    federated, since = config.federated, 2 * max(1, config.checkpoint.interval)
    return {"client_states_bytes": 4 * num_parameters * (federated.num_clients + since * federated.cohort_size)}


def _way_of_data(config: Config, data: FederatedData) -> str:
    """Return how the rows get to the clients, and why."""
    size, memory = data.train.data.nbytes, psutil.virtual_memory().total
    rows = f"{size / 1e6:.1f} MB of training rows, this machine's memory is {memory / 1e9:.1f} GB"
    if config.task.data == "shared":
        return f"shared, as task.data says: every node maps them from its disk, none holds them ({rows})"
    if size > LARGE_PART * memory:
        return f"broadcast, as task.data says: every node holds them all; task.data=shared would hold none ({rows})"
    return f"broadcast, as task.data says: every node holds them all, which is little ({rows})"


def planned_actors(config: Config) -> int:
    """Return how many actors a run would start, without starting any.

    Where GPUs are described that are not here, it is as many as a round has clients, or as the settings say.

    Raises:
        ConfigError: the cluster can never hold them.

    """
    if config.pool.kind == "sequential":
        return SequentialPool().num_actors
    from fedpft.simulation.cluster import actors_that_fit

    pool, cohort = config.pool, config.federated.cohort_size
    try:
        return actors_that_fit(pool, cohort, partial(server_claim, config))
    except ConfigError:
        if pool.address is not None or pool.gpu_gigabytes is None or torch.cuda.is_available():
            raise
        return pool.actors if isinstance(pool.actors, int) else cohort
