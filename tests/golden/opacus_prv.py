"""Writes opacus_prv.json with numbers of Opacus' PRV accountant, in an environment of its own: pip install opacus."""

import json
from pathlib import Path

import opacus
from opacus.accountants import PRVAccountant

CASES = [
    # rate, noise multiplier, releases, delta
    (0.05, 1.0, 50, 1e-5),
    (0.01, 1.0, 1000, 1e-5),
    (0.1, 0.7, 100, 1e-5),
    (0.001, 0.7, 5000, 1e-6),
    (0.02, 4.0, 2000, 1e-6),
    (0.2, 2.0, 30, 1e-4),
    (0.5, 8.0, 200, 1e-5),
    (1.0, 5.0, 20, 1e-5),
    (1.0, 20.0, 100, 1e-3),
]


def epsilon(rate: float, noise_multiplier: float, count: int, delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, rate, count)]
    return accountant.get_epsilon(delta, eps_error=0.002)


if __name__ == "__main__":
    keys = ("rate", "noise_multiplier", "count", "delta")
    cases = [dict(zip(keys, case, strict=True)) | {"epsilon": round(epsilon(*case), 6)} for case in CASES]
    content = {"library": f"opacus {opacus.__version__}, PRVAccountant, eps_error 0.002", "cases": cases}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
