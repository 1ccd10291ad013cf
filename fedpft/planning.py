"""What a run would do, before anybody pays for it."""

from dataclasses import replace
from typing import Any

import numpy as np

from fedpft.config import Config, doubtful_settings, dump_config, reported_name
from fedpft.federated.pool import SequentialPool
from fedpft.inputs import load_fm_and_data
from fedpft.methods import METHODS
from fedpft.models.costs import costs
from fedpft.pipeline import planned_cohort, public_data
from fedpft.trainer import SilentProgress


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
        "method": reported_name(config.method, config.align),
        "client_sizes": data.partition.sizes.tolist(),
        "label_histogram": histogram.tolist(),
        "label_names": list(data.label_names),
        **costs(fm, proxy.model),
        "actors": pool_actors,
        "pool": config.pool.kind,
        "warnings": doubtful_settings(config),
    }


def planned_actors(config: Config) -> int:
    """Return how many actors a run would start, without starting any.

    Raises:
        ConfigError: the cluster can never hold them.

    """
    if config.pool.kind == "sequential":
        return SequentialPool().num_actors
    from fedpft.simulation.cluster import actors_that_fit

    return actors_that_fit(config.pool, planned_cohort(config))
