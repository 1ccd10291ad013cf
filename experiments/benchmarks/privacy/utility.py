"""Privacy benchmark: what accuracy is left at an epsilon, for few large and many small clients. See README.md.

    python -m experiments.benchmarks.privacy.utility DATA_DIR [--match GLOB]     measure what is not measured yet
    python -m experiments.benchmarks.privacy.utility --table                     print the table of README.md

DATA_DIR holds `sst2` and `align_text` as parquet; without it only the cells on the standard library's docstrings are
measured. Set OMP_NUM_THREADS=1; several workers share the work. One JSON a cell lies in
`experiments/results/privacy/utility/`, written as soon as it is measured; of a setting that you change, delete the
records.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.methods.run import tuned_once
from experiments.benchmarks.methods.table import interval
from experiments.benchmarks.records import measure_missing, work_through
from fedpft.config import Config, ConfigError, load_config
from fedpft.tracking.trackers import TrackerGroup

BASE = Path(__file__).parent / "utility.yaml"
RESULTS = Path("experiments/results/privacy/utility")
WORK = Path("outputs/privacy_benchmark")
SEEDS = (42, 43, 44)
EPSILONS = (8.0, 2.0, 4.0, 1.0)
"""In the order in which they are measured."""
NOT_PRIVATE = None
"""In place of an epsilon."""

TASKS = {
    "docs": ("task.name=stdlib_docs", "fm.max_length=32", "public.name=python_reference", "public.chunk_length=32"),
    "sst2": (
        "task.name=sst2", "task.max_train_examples=4000", "fm.max_length=48", "public.name=custom",
        "public.text_column=text", "public.chunk_length=48", "public.max_examples=24000",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Population:
    """Who the clients are, and whom the guarantee protects."""

    settings: tuple[str, ...]
    delta: float
    """A tenth of 1 divided by how many there are of whom is protected; of examples, those of the larger task."""
    unit: str = "client"
    """`privacy.kind`."""
    tasks: tuple[str, ...] = ("docs", "sst2")
    has_control: bool = True
    """Whether there is a cell without privacy; it is another population's where only the noise differs."""


def _clients(number: int, cohort: int) -> tuple[str, ...]:
    return (f"federated.num_clients={number}", f"federated.clients_per_round={cohort}")


SILOS = (
    *_clients(20, 20), "federated.sampling=full", "federated.rounds=10", "federated.batch_size=8",
    "federated.client.kind=adamw", "federated.lr=0.004",
)  # fmt: skip
POPULATIONS = {
    "1000": Population(settings=_clients(1000, 100), delta=1e-4),
    "10000": Population(
        settings=(*_clients(10_000, 200), "task.max_train_examples=40000"), delta=1e-5, tasks=("sst2",)
    ),
    "10000_simulated": Population(
        settings=(*_clients(1000, 100), "privacy.noise_cohort_size=1000"),
        delta=1e-5,
        tasks=("docs",),
        has_control=False,
    ),
    "20_silos": Population(settings=(*SILOS, "privacy.clip=3"), delta=5e-3),
    "20_silos_examples": Population(
        settings=(*SILOS, "privacy.clip=1", "privacy.clipping=fixed", "federated.accumulate=8"),
        delta=2.5e-5,
        unit="example",
        has_control=False,
    ),
}
"""The docstrings are 2,071: 10,000 clients of them can only be simulated, by the noise that these would have. With
DP-SGD batches are larger, since a step's noise does not grow with them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federated run."""

    task: str
    population: str
    epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        budget = "none" if self.epsilon is NOT_PRIVATE else f"{self.epsilon:g}"
        return f"{self.task}_{self.population}_epsilon_{budget}_seed{self.seed}"

    def config(self, data_dir: Path | None) -> Config:
        """Return its settings.

        Raises:
            ConfigError: this version of the program does not have them.

        """
        population = POPULATIONS[self.population]
        places = [] if self.task == "docs" else [f"task.path={data_dir}/sst2", f"public.path={data_dir}/align_text"]
        private = []
        if self.epsilon is not NOT_PRIVATE:
            budget = [f"privacy.target_epsilon={self.epsilon}", f"privacy.delta={population.delta}"]
            private = [f"privacy.kind={population.unit}", *budget]
        chosen = [*TASKS[self.task], *population.settings, *private, *places]
        return load_config(BASE, [*chosen, f"seed={self.seed}", f"cache.dir={WORK / 'cache'}"])


def all_cells() -> Iterator[Cell]:
    """Yield the cells: the first seed of all, then the next."""
    for seed in SEEDS:
        for name, population in POPULATIONS.items():
            for task in population.tasks:
                for epsilon in ((NOT_PRIVATE,) if population.has_control else ()) + EPSILONS:
                    yield Cell(task=task, population=name, epsilon=epsilon, seed=seed)


class Clipped(TrackerGroup):
    """A tracker that counts how many updates were longer than the clip."""

    def __init__(self) -> None:
        super().__init__([])
        self.clipped, self.updates, self.clips = 0, 0, list[float]()

    def log_round(self, record: Mapping[str, Any]) -> None:
        if "privacy/clip" in record:
            self.clipped += record["privacy/num_clipped"]
            self.updates += len(record["clients"])
            self.clips.append(record["privacy/clip"])

    def summary(self) -> dict[str, Any]:
        """Return it for a cell's record; of a run that clips no clients' updates, nothing."""
        return {"part_clipped": self.clipped / self.updates, "clips": self.clips} if self.updates else {}


def measure(cell: Cell, data_dir: Path | None) -> None:
    """Measure a cell unless it is measured, or another worker is at it, or its data are not at hand."""
    if data_dir is None and cell.task != "docs":
        return
    try:
        config = cell.config(data_dir)
    except ConfigError as error:
        print(f"{cell.name}: left out, {str(error).strip()}", flush=True)
        return

    def tuned() -> dict[str, Any]:
        clipped = Clipped()
        found = tuned_once(config, "privacy", "rounds", tracker=clipped)
        return {**asdict(cell), **found, **clipped.summary()}

    measure_missing(RESULTS / f"{cell.name}.json", WORK, tuned)


def table() -> Iterator[str]:
    """Yield the lines of the table: the plugged-in FM, mean ± half of the 95 % interval over seeds, in per cent."""
    groups: dict[tuple[str, str, float | None], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(RESULTS.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        groups[record["task"], record["population"], record["epsilon"]].append(record)
    budgets = sorted(EPSILONS)
    yield f"| task | clients | unit | {' | '.join(f'epsilon {each:g}' for each in budgets)} | none | untuned |"
    yield f"| {' | '.join(['---'] * (len(budgets) + 5))} |"
    for task in TASKS:
        for name, population in POPULATIONS.items():
            found = [groups.get((task, name, each)) for each in (*budgets, NOT_PRIVATE)]
            if any(found):
                cells = ["" if runs is None else interval([run["fm"] for run in runs]) for runs in found]
                untuned = interval([run["untuned_fm"] for runs in found if runs for run in runs[:1]][:1])
                yield f"| {' | '.join([task, name.replace('_', ' '), population.unit, *cells, untuned])} |"


if __name__ == "__main__":
    work_through(__doc__, all_cells, lambda cell: cell.name, measure, table)
