"""What a run would do, before anybody pays for it."""

from dataclasses import replace
from typing import Any

import numpy as np

from fedpft.config import Config, doubtful_settings, dump_config, reported_name
from fedpft.data.datamodule import FederatedData
from fedpft.federated.pool import SequentialPool
from fedpft.federated.step_costs import compare_steps, step_costs, typical_batch
from fedpft.inputs import load_fm_and_data
from fedpft.methods import METHODS
from fedpft.models.costs import costs
from fedpft.models.lora import get_adapter
from fedpft.pipeline import planned_cohort
from fedpft.trainer import SilentProgress
from fedpft.tuning import public_data

NUM_INTERVALS = 5
"""In which the plan shows a partition of numbers."""


def plan(config: Config) -> dict[str, Any]:
    """Return what a run would do, without training: partition, parameters, bytes, a local step's cost, actors.

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
    labels, label_names = label_groups(data)
    histogram = data.partition.label_histogram(labels, len(label_names))
    batch = typical_batch(data, config.federated.batch_size)
    step = step_costs(proxy.model, batch, any_length=False)
    return {
        "config_yaml": dump_config(config),
        "method": reported_name(config.method, config.align),
        "client_sizes": data.partition.sizes.tolist(),
        "label_histogram": histogram.tolist(),
        "label_names": label_names,
        **costs(fm, proxy.model),
        **compare_steps(batch, method.plug_in(get_adapter(proxy.model)), step),
        "actors": pool_actors,
        "pool": config.pool.kind,
        "warnings": doubtful_settings(config),
    }


def label_groups(data: FederatedData) -> tuple[np.ndarray, list[str]]:
    """Return the (E,) group of each training example and the groups' names, by which the plan shows a partition.

    Groups are the classes; of numbers, equal intervals between the smallest and the largest; of texts without a label
    column, a single one.
    """
    if "label" not in data.train.column_names:
        return np.zeros(len(data.train), dtype=np.int64), ["all"]
    labels = np.asarray(data.train["label"][:])
    if data.kind != "regression":
        return labels, list(data.label_names)
    edges = np.histogram_bin_edges(labels, bins=NUM_INTERVALS)
    names = [f"to {edge:.3g}" for edge in edges[1:]]
    return np.digitize(labels, edges[1:-1], right=True), names


def planned_actors(config: Config) -> int:
    """Return how many actors a run would start, without starting any.

    Raises:
        ConfigError: the cluster can never hold them.

    """
    if config.pool.kind == "sequential":
        return SequentialPool().num_actors
    from fedpft.simulation.cluster import actors_that_fit

    return actors_that_fit(config.pool, planned_cohort(config))
