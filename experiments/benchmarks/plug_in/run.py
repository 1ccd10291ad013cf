"""Plug-in benchmark: what the FM loses when the adapter is copied into it, and what a distillation wins back.

    python -m experiments.benchmarks.plug_in.run DATA_DIR [--match GLOB]      measure what is not measured yet
    python -m experiments.benchmarks.plug_in.run --table                     print the tables of README.md

DATA_DIR as for the methods benchmark, whose settings and learning rates these are; further tasks (`mrpc`, `mnli`,
`ag_news`) have FedPFT's of the closest task there: their numbers compare plug-ins within a run, not methods. Set
OMP_NUM_THREADS=1; several workers share the work. One JSON a run lies in `experiments/results/plug_in/`.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.methods.cells import BASE, WORK
from experiments.benchmarks.methods.cells import RESULTS as METHODS_RESULTS
from experiments.benchmarks.methods.run import tuned_once
from experiments.benchmarks.methods.table import interval
from experiments.benchmarks.records import measure_missing, work_through
from fedpft.config import Config, load_config

RESULTS = Path("experiments/results/plug_in")
RATES = {("sst2", 67): 8e-3, ("qnli", 67): 4e-3, ("sst2", 50): 8e-3, ("qnli", 50): 4e-3}
"""(task, size) -> what FedPFT's search in the methods benchmark found."""
FURTHER_TASKS = {
    "ag_news": ("text_columns=[sentence]", 8e-3),
    "mrpc": ("text_columns=[sentence1,sentence2]", 4e-3),
    "mnli": ("text_columns=[sentence1,sentence2]", 4e-3),
    "rte": ("text_columns=[sentence1,sentence2]", 4e-3),
}
"""Task -> its columns and rate; none of them was searched."""
SEEDS = (42, 43, 44)
ALL_SEEDS = (*SEEDS, 45, 46)
"""Of the cells that the aims are about."""
CLOSED = ("align.layers.kind=closed_form", "align.layers.num_examples=800")
ALIGNMENTS = {
    "none": ("align.layers.kind=none", "align.neurons.kind=none"),
    "closed": (*CLOSED, "align.neurons.kind=none"),
    "refit": (
        *CLOSED, "align.neurons.kind=closed_form", "align.neurons.update_ratio=1", "align.neurons.interval=3",
        "align.neurons.num_examples=400",
    ),
}  # fmt: skip
"""How the sub-FM is aligned: not at all; once, in a minute, before the rounds; and then again after every third round,
with the adapter of that round in both models."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One federated run; both plug-ins are evaluated on what it tuned."""

    task: str
    size: int
    """Of the sub-FM: per cent of the FM's transformer parameters."""
    aligned: str
    format: str
    """`public.format`."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}_{self.size}_{self.aligned}_{self.format}_seed{self.seed}"

    def config(self, data_dir: Path) -> Config:
        extra = [*ALIGNMENTS[self.aligned], f"public.format={self.format}", "method.plug_in=distill"]
        if (self.task, self.size) in RATES:
            settings, rate = [f"task={self.task}"], RATES[self.task, self.size]
        else:
            columns, rate = FURTHER_TASKS[self.task]
            settings = ["task.name=custom", f"task.{columns}", "task.max_train_examples=6400"]
            settings += ["federated.rounds=16", "evaluation.interval=16", "federated.head_lr_ratio=1"]
        return load_config(
            BASE,
            [
                "fm=minilm",
                f"method=fedpft_{self.size}",
                *settings,
                *extra,
                f"federated.lr={rate}",
                f"seed={self.seed}",
                f"task.path={data_dir / self.task}",
                f"public.path={data_dir / 'align_text'}",
                f"cache.dir={WORK / 'cache'}",
            ],
        )

    def measure(self, data_dir: Path) -> dict[str, Any]:
        return {**vars(self), **tuned_once(self.config(data_dir), "fm_copied", "plug_in")}


def all_runs() -> Iterator[Run]:
    """Yield the runs, the most important ones first."""
    for task in FURTHER_TASKS:
        yield Run(task=task, size=67, aligned="closed", format="task", seed=SEEDS[0])
    for seed in SEEDS:
        yield Run(task="qnli", size=67, aligned="closed", format="text", seed=seed)
    for size in (67, 50):
        for seed in ALL_SEEDS:
            for task in ("qnli", "sst2"):
                yield Run(task=task, size=size, aligned="closed", format="task", seed=seed)
    for aligned in ("refit", "none"):
        for seed in SEEDS:
            for task in ("qnli", "sst2"):
                yield Run(task=task, size=67, aligned=aligned, format="task", seed=seed)


def measure(run: Run, data_dir: Path) -> None:
    """Measure a run, unless it is measured, or another worker is at it."""
    measure_missing(RESULTS / f"{run.name}.json", WORK, partial(run.measure, data_dir))


def table() -> Iterator[str]:
    """Yield the lines of the table: mean ± half of the 95 % interval over seeds, in per cent."""
    full = {(cell["task"], cell["seed"]): cell["fm"] for cell in _records(METHODS_RESULTS, "*_full_iid_seed*.json")}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in _records(RESULTS, "*.json"):
        groups[run["task"], run["size"], run["aligned"], run["format"]].append(run)
    titles = ("task", "size", "aligned", "public text", "proxy %", "FM, copied %", "FM, distilled %")
    differences = ("distilled minus copied", "minus proxy", "minus `full`")
    yield f"| {' | '.join([*titles, *differences, 'seeds'])} |"
    yield f"|{' --- |' * (len(titles) + len(differences) + 1)}"
    for (task, size, aligned, form), runs in groups.items():
        columns = [task, f"{size} %", aligned, form]
        columns += [interval([run[key] for run in runs]) for key in ("sub_fm", "fm_copied", "fm")]
        columns += [interval([run["fm"] - run[key] for run in runs]) for key in ("fm_copied", "sub_fm")]
        paired = [run["fm"] - full[task, run["seed"]] for run in runs if (task, run["seed"]) in full]
        yield f"| {' | '.join([*columns, interval(paired), str(len(runs))])} |"


def _records(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(pattern))]


if __name__ == "__main__":
    work_through(__doc__, all_runs, lambda run: run.name, measure, table)
