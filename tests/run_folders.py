"""Folders as runs leave them, in milliseconds and with chosen numbers; test_compare_run checks the real thing."""

import json
from pathlib import Path
from typing import Any

from fedpft.config import dump_config, load_config

LAYERS = {name: [0.25, 0.5] for name in ("hidden_error", "gradient_cosine", "gradient_norm_ratio")}


def run_folder(folder: Path, *overrides: str, fm: float = 0.8, seed: int = 1, **result: Any) -> Path:
    """Write a run of 2 rounds whose tuned FM has the metric `fm`; keys of `result` replace those of result.json.

    A key that is None is left out.
    """
    folder.mkdir(parents=True)
    config = load_config(None, [f"seed={seed}", f"output_dir={folder}", "federated.rounds=2", *overrides])
    (folder / "config.yaml").write_text(dump_config(config))
    content = {
        "name": folder.name, "seed": seed, "method": config.method.name, "metric": "accuracy", "metric_goal": "max",
        "untuned_fm": 0.25, "fm": fm, "sub_fm": fm - 0.1, "rounds": 2, "num_eval_examples": 400,
        "bytes_up_total": 3000, "bytes_down_total": 5000, "client_flops_per_round": 2_000_000,
        "client_memory_bytes": 70_000, "num_params_sub_fm": 1_000_000, "align_seconds": 1.5,
        "client_expected_accuracy": {"mean": fm, "p10": fm - 0.2, "min": fm - 0.3, "max": 1.0,
                                     "values": [fm - 0.3, None, 1.0]},
        "construction": {"cached": False, "seconds": 2.0, "key": None}, "fidelity": {"after": LAYERS},
    } | result  # fmt: skip
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "result.json").write_text(json.dumps(content))
    rounds = [
        {"round": 1, "clients": [0, 1], "train_loss": 1.0, "client_losses": [0.9, 1.1]},
        {"round": 2, "clients": [1, 2], "train_loss": 0.5, "client_losses": [0.4, 0.6], "fm": fm, "sub_fm": fm - 0.1},
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds))
    partition = {"label_names": ["no", "yes"], "label_histogram": [[3, 1], [0, 4], [2, 2]]}
    (folder / "partition.json").write_text(json.dumps(partition))
    return folder


def sweep_folder(folder: Path) -> Path:
    """Write three groups: FedPFT in two sizes with three seeds each, FedOT with two."""
    for seed, noise in ((1, 0.0), (2, 0.02), (3, 0.01)):
        run_folder(folder / f"half_{seed}", "method.retained_ratio=0.5", seed=seed, fm=0.80 + noise)
        quarter = {"bytes_up_total": 1000, "fm": 0.70 + noise + 0.001 * seed}
        run_folder(folder / f"quarter_{seed}", "method.retained_ratio=0.25", seed=seed, **quarter)
    for seed, fm in ((1, 0.75), (2, 0.83)):
        run_folder(folder / f"x_fedot_{seed}", "method.name=fedot", seed=seed, fm=fm, bytes_up_total=9000)
    return folder
