"""What `pool.quantize` saves, and whether training goes the same way: a LLaMA from scratch, four rounds of each kind.

    python -m experiments.benchmarks.quantize.run      writes experiments/results/quantize.json

The model is random, so losses say nothing of quality. Set OMP_NUM_THREADS=1.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpft.config import load_config
from fedpft.federated.observer import SilentObserver
from fedpft.federated.package import ClientPackage
from fedpft.federated.pool import SequentialPool
from fedpft.run.traces import load
from fedpft.run.tuning import tune
from fedpft.storage.output import package_versions, write_json
from fedpft.tracking.trackers import TrackerGroup

RESULT = Path("experiments/results/quantize.json")
KINDS = ("none", "int8", "nf4")
CLIENTS, ROUNDS = 4, 4
SHAPE = (
    "{vocab_size: 1024, hidden_size: 768, num_hidden_layers: 8, num_attention_heads: 12, num_key_value_heads: 12, "
    "intermediate_size: 3072, max_position_embeddings: 128, tie_word_embeddings: true}"
)
SETTINGS = [
    "fm.path=scratch://llama", "fm.max_length=64", f"fm.config={SHAPE}",
    "task={name: stdlib_summaries, max_train_examples: 96, max_eval_examples: 48}",
    "public={name: python_reference, chunk_length: 64, max_examples: 64}",
    "method={retained_ratio: 0.5, scorer: weight_norm}", "align.layers.kind=none",
    "align.neurons={kind: closed_form, interval: 2, num_examples: 16, batch_size: 8}",
    f"federated={{num_clients: {CLIENTS}, clients_per_round: {CLIENTS}, rounds: {ROUNDS}, batch_size: 8, lr: 1.0e-3}}",
    f"evaluation={{interval: {ROUNDS}, batch_size: 16, fidelity_examples: 0}}",
    "pool={kind: sequential, accelerator: cpu}", "server={accelerator: cpu, num_threads: 1}",
    "cache.enabled=false", "tracking.wandb=disabled",
]  # fmt: skip


class Records(SilentObserver):
    """Keeps each round's record."""

    def __init__(self) -> None:
        self.rounds: list[Mapping[str, Any]] = []

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self.rounds.append(record)


class MeasuringPool(SequentialPool):
    """Notes what a client is sent before the first round."""

    def broadcast(self, package: ClientPackage) -> None:
        weights = package.proxy.skeleton.parameters()
        self.frozen_bytes = sum(weight.nbytes for weight in weights if not weight.requires_grad)
        super().broadcast(package)


def measure(kind: str) -> dict[str, Any]:
    config, records, pool = load_config(None, [*SETTINGS, f"pool.quantize={kind}"]), Records(), MeasuringPool()
    result = tune(config, *load(config), pool, TrackerGroup([]), records).result
    down = [record["comm/bytes_down"] for record in records.rounds]
    return {
        "frozen_bytes": pool.frozen_bytes,
        "changed_bytes": (max(down) - min(down)) // CLIENTS,
        "step_bytes": result["local_step"]["memory_bytes_sub_fm"],
        "train_loss": [record["train_loss"] for record in records.rounds],
        "sub_fm_loss": result["sub_fm"],
        "fm_loss": result["fm"],
        "fit_seconds": [record["time/fit_seconds"] for record in records.rounds],
    }


def main() -> None:
    found = {kind: measure(kind) for kind in KINDS}
    write_json(RESULT, {**found, "versions": package_versions() | {"bitsandbytes": version("bitsandbytes")}})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
