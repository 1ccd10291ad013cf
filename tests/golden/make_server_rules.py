"""Writes `server_rules.json`: what others' code makes of the same updates; run by hand, in an environment of its own.

    pip install numpy==2.4.6 scipy==1.17.1 torch==2.13.0 byzfl==0.0.11 flwr==1.42.0
    python tests/golden/make_server_rules.py

byzfl also imports torchvision and seaborn, for its benchmarks alone; where they are missing, a stand-in will do.
"""

import copy
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

for library in ("torchvision", "seaborn"):
    if importlib.util.find_spec(library) is None:
        sys.modules[library] = MagicMock()

import byzfl  # noqa: E402
from flwr.common import FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays  # noqa: E402
from flwr.server.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi  # noqa: E402
from flwr.server.strategy import aggregate as flower  # noqa: E402

PLACE = Path(__file__).with_name("server_rules.json")
SHAPES = {"11 updates, 2 bad": (11, 23, 2), "7 updates, 1 bad": (7, 5, 1), "16 updates, 3 bad": (16, 9, 3)}
ROUNDS = 4


def updates(n: int, size: int, f: int, seed: int) -> np.ndarray:
    """Return n updates, of which the last f are far away; values are those of float32."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0.3, 0.1, (n, size)) * rng.normal(1, 0.2, (n, 1))
    honest[n - f :] = rng.normal(-2, 1, (f, size))
    return rng.permutation(honest).astype(np.float32).astype(np.float64)


def robust_case(n: int, size: int, f: int, seed: int) -> dict:
    """Return updates and results; byzfl's Krum sums n - f - 1 neighbours, the paper's and Flower's n - f - 2.

    byzfl clips in place, hence the copy.
    """
    given = updates(n, size, f, seed)
    clipping = byzfl.CenteredClipping(L=3, tau=0.2)
    twice = [clipping(given), clipping(given[::-1] * 0.5)]
    as_flower = [([row], 1) for row in given]
    return {
        "updates": given.tolist(),
        "f": f,
        "byzfl": {
            "median": byzfl.Median()(given).tolist(),
            "trimmed_mean": byzfl.TrMean(f)(given).tolist(),
            "krum": byzfl.Krum(f + 1)(given).tolist(),
            "multi_krum": byzfl.MultiKrum(f + 1)(given).tolist(),
            "geometric_median": byzfl.GeometricMedian(nu=0.1, T=8)(given).tolist(),
            "norm_bound": byzfl.Average()(byzfl.Clipping(c=0.7)(given.copy())).tolist(),
            "centered_clipping": [one.tolist() for one in twice],
        },
        "flower": {
            "median": flower.aggregate_median(as_flower)[0].tolist(),
            "trimmed_mean": flower.aggregate_trimmed_avg(as_flower, f / n + 1e-9)[0].tolist(),
            "krum": flower.aggregate_krum(as_flower, f, 0)[0].tolist(),
            "multi_krum": flower.aggregate_krum(as_flower, f, n - f)[0].tolist(),
            "bulyan": flower.aggregate_bulyan(copy.copy(as_flower), f, flower.aggregate_krum, to_keep=0)[0].tolist(),
        },
    }


def optimiser_case(size: int, seed: int) -> dict:
    """Return clients' adapters of some rounds, and the adapters after each round of Flower's strategies."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=size).astype(np.float32).astype(np.float64)
    sent = rng.normal(0.2, 1, (ROUNDS, 3, size)).astype(np.float32).astype(np.float64)
    settings = {"eta": 0.1, "tau": 1e-3}
    initial = ndarrays_to_parameters([start])
    strategies = {
        "adam": FedAdam(initial_parameters=initial, beta_1=0.9, beta_2=0.99, **settings),
        "yogi": FedYogi(initial_parameters=initial, beta_1=0.9, beta_2=0.99, **settings),
        "adagrad": FedAdagrad(initial_parameters=initial, **settings),
        "momentum": FedAvgM(initial_parameters=initial, server_learning_rate=0.5, server_momentum=0.9),
    }
    return {
        "start": start.tolist(),
        "sent": sent.tolist(),
        "num_examples": [1, 2, 5],
        "flower": {name: _play(strategy, sent) for name, strategy in strategies.items()},
    }


def _play(strategy, sent: np.ndarray) -> list[list[float]]:
    after = []
    for number, adapters in enumerate(sent, 1):
        results = [
            (None, FitRes(Status(0, ""), ndarrays_to_parameters([adapter]), num_examples, {}))
            for adapter, num_examples in zip(adapters, (1, 2, 5), strict=True)
        ]
        parameters, _ = strategy.aggregate_fit(number, results, [])
        after.append(parameters_to_ndarrays(parameters)[0].tolist())
    return after


if __name__ == "__main__":
    content = {
        "versions": {name: importlib.metadata.version(name) for name in ("byzfl", "flwr", "numpy")},
        "robust": {name: robust_case(*shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())},
        "optimisers": optimiser_case(6, 7),
    }
    PLACE.write_text(json.dumps(content) + "\n", encoding="utf-8")
