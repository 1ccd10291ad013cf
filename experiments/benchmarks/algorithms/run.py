"""Algorithms benchmark: server, client and LoRA rules under label skew, each at its own best rate. See README.md.

    python -m experiments.benchmarks.algorithms.run DATA_DIR [--match GLOB]     measure what is not measured yet
    python -m experiments.benchmarks.algorithms.run --table                     print the table of README.md

DATA_DIR as for the methods benchmark, whose settings these are but for the partition. Set OMP_NUM_THREADS=1; several
workers share the work. One JSON a run lies in `experiments/results/algorithms/`, those of the search in `search/`.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.methods.cells import BASE, SEEDS, WORK
from experiments.benchmarks.methods.run import search_data, tuned_once
from experiments.benchmarks.methods.table import interval
from experiments.benchmarks.records import measure_missing, work_through
from fedpft.config import Config, load_config

RESULTS = Path("experiments/results/algorithms")
SEARCH_SEED = 7
"""Of the search alone, on examples that no cell is evaluated on."""
SHARED = (
    "fm=minilm",
    "method=fedpft_67",
    "federated.partition.kind=dirichlet",
    "federated.partition.concentration=per_label",
    "pool.precision=bf16-mixed",
    "evaluation.fidelity_examples=0",
)
ADAMW_RATES, SGD_RATES, SERVER_RATES = (2e-3, 4e-3, 8e-3), (0.3, 1.0, 3.0), (3e-4, 1e-3, 3e-3)
SERVER_HEAD = 4
"""How much larger the ratio of the head's rate to LoRA's is on the server than on clients: FedAdam moves every number
by about its rate, also those on which clients disagree, which are LoRA's."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One row of the table."""

    settings: tuple[str, ...] = ()
    key: str = "federated.lr"
    """The rate that is searched."""
    rates: tuple[float, ...] = ADAMW_RATES


ALGORITHMS = {
    "avg": Algorithm(),
    "adam": Algorithm(
        settings=("federated.server.kind=adam", "federated.lr=0.004"), key="federated.server.lr", rates=SERVER_RATES
    ),
    "prox": Algorithm(settings=("federated.client.kind=prox",)),
    "scaffold": Algorithm(settings=("federated.client.kind=scaffold",), rates=SGD_RATES),
    "ffa": Algorithm(settings=("federated.lora_aggregation=ffa",)),
    "svd": Algorithm(settings=("federated.lora_aggregation=svd",)),
    "fedsvd": Algorithm(settings=("federated.lora_aggregation=fedsvd",)),
}


CONCENTRATIONS = {"sst2": 0.3, "qnli": 1.0}
"""Of each label's Dirichlet law; with 0.3 nothing learns QNLI, see README.md."""
ALIGNMENTS = {
    "sst2": ("align.layers.kind=closed_form", "align.layers.num_examples=800", "align.neurons.kind=none"),
    "qnli": ("align=both",),
}
"""QNLI is not learned under label skew where the sub-FM is made in closed form alone."""
TOGETHER = {"qnli": 4}
"""Clients in one forward pass: in bf16 that rounds otherwise, and takes two thirds of the time."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One federated run."""

    task: str
    algorithm: str
    rate: float
    seed: int

    @property
    def file(self) -> Path:
        """Where its record is; a cell's name does not tell its rate, since it is the search that says it."""
        if self.seed == SEARCH_SEED:
            return RESULTS / "search" / f"{self.task}_{self.algorithm}_rate{self.rate:g}.json"
        return RESULTS / f"{self.task}_{self.algorithm}_seed{self.seed}.json"

    def config(self, data_dir: Path) -> Config:
        algorithm = ALGORITHMS[self.algorithm]
        settings = [
            f"task={self.task}",
            *SHARED,
            *ALIGNMENTS[self.task],
            *algorithm.settings,
            f"{algorithm.key}={self.rate}",
        ]
        settings += [f"task.path={data_dir / self.task}", f"public.path={data_dir / 'align_text'}"]
        settings += [f"seed={self.seed}", f"cache.dir={WORK / 'cache'}"]
        settings += [f"pool.clients_per_batch={TOGETHER.get(self.task, 1)}"]
        settings += [f"federated.partition.dirichlet_alpha={CONCENTRATIONS[self.task]}"]
        config = load_config(BASE, settings)
        if algorithm.key == "federated.server.lr":
            head_lr = SERVER_HEAD * config.federated.head_lr_ratio * self.rate
            config = load_config(BASE, [*settings, f"federated.server.head_lr={head_lr}"])
        return config

    def measure(self, data_dir: Path) -> dict[str, Any]:
        data_dir = search_data(data_dir) if self.seed == SEARCH_SEED else data_dir
        return {**vars(self), **tuned_once(self.config(data_dir))}

    @property
    def is_measured(self) -> bool:
        return self.file.exists() and json.loads(self.file.read_text())["rate"] == self.rate


def all_runs(tasks: tuple[str, ...] = ("sst2", "qnli")) -> Iterator[Run]:
    """Yield the runs: of each task the search, then, of those whose search is over, the cells."""
    for task in tasks:
        for step in range(len(ADAMW_RATES)):
            for name, algorithm in ALGORITHMS.items():
                yield Run(task=task, algorithm=name, rate=algorithm.rates[step], seed=SEARCH_SEED)
        for seed in SEEDS:
            for name in ALGORITHMS:
                if (rate := best_rate(task, name)) is not None:
                    yield Run(task=task, algorithm=name, rate=rate, seed=seed)


def best_rate(task: str, name: str) -> float | None:
    """Return the rate with which the FM was best in the search, the smaller of equals; None: not all are tried."""
    trials = [Run(task=task, algorithm=name, rate=rate, seed=SEARCH_SEED) for rate in ALGORITHMS[name].rates]
    if not all(trial.is_measured for trial in trials):
        return None
    return min(trials, key=lambda trial: (-json.loads(trial.file.read_text())["fm"], trial.rate)).rate


def measure(run: Run, data_dir: Path) -> None:
    """Measure a run, unless it is measured with this rate, or another worker is at it."""
    measure_missing(run.file, WORK, partial(run.measure, data_dir), lambda: run.is_measured)


def table() -> Iterator[str]:
    """Yield the lines of the table: mean ± half of the 95 % interval over seeds, in per cent."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(RESULTS.glob("*.json")):
        record = json.loads(file.read_text())
        groups[record["task"], record["algorithm"]].append(record)
    averages = {(task, run["seed"]): run for (task, name), runs in groups.items() if name == "avg" for run in runs}
    yield "| task | algorithm | rate (of those tried) | sub-FM % | FM % | FM minus `avg` | seeds |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for task in ("sst2", "qnli"):
        for name, algorithm in ALGORITHMS.items():
            if not (runs := groups.get((task, name))):
                continue
            tried = ", ".join(f"{rate:g}" for rate in algorithm.rates)
            pairs = [(run, averages[task, run["seed"]]) for run in runs if (task, run["seed"]) in averages]
            difference = interval([run["fm"] - avg["fm"] for run, avg in pairs]) if name != "avg" else ""
            columns = [task, name, f"{runs[0]['rate']:g} ({tried})"]
            columns += [interval([run[key] for run in runs]) for key in ("sub_fm", "fm")]
            yield f"| {' | '.join([*columns, difference, str(len(runs))])} |"


if __name__ == "__main__":
    work_through(__doc__, all_runs, lambda run: run.file.stem, measure, table)
