"""Writes `attacks.json`: what byzfl's attacks make of honest updates; run by hand, in an environment of its own.

    pip install numpy==2.4.6 scipy==1.17.1 torch==2.13.0 byzfl==0.0.11
    python tests/golden/make_attacks.py

byzfl also imports torchvision and seaborn, for its benchmarks alone; where they are missing, a stand-in will do.
"""

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

PLACE = Path(__file__).with_name("attacks.json")


def case(n: int, size: int, seed: int) -> dict:
    """Return honest updates and what byzfl's adversaries send."""
    honest = np.random.default_rng(seed).normal(0.3, 0.1, (n, size)).astype(np.float32).astype(np.float64)
    return {
        "honest": honest.tolist(),
        "sign_flip": byzfl.SignFlipping()(honest[:1]).tolist(),
        "inner_product": {tau: byzfl.InnerProductManipulation(tau=tau)(honest).tolist() for tau in (2.0, 0.5)},
        "alie": {tau: byzfl.ALittleIsEnough(tau=tau)(honest).tolist() for tau in (1.5, 0.3)},
    }


if __name__ == "__main__":
    versions = {name: importlib.metadata.version(name) for name in ("byzfl", "numpy", "torch")}
    cases = [case(n, size, seed) for seed, (n, size) in enumerate([(9, 7), (2, 5), (30, 11)])]
    PLACE.write_text(json.dumps({"versions": versions, "cases": cases}) + "\n")
