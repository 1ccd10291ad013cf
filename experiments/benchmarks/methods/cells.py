"""The cells of the methods benchmark: what is compared, in the order of importance."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedpft.config import Config, load_config

BASE = Path(__file__).parent / "base.yaml"
RESULTS = Path("experiments/results/methods")
WORK = Path("outputs/methods_benchmark")
"""The sub-FM cache, the pre-trained ViT, locks."""
TEXT_TASKS, IMAGE_TASKS = ("sst2", "qnli"), ("cifar10",)
TASKS = TEXT_TASKS + IMAGE_TASKS
METHODS_AT_67 = ("full", "fedot_67", "fedpft_67")
METHODS_AT_50 = ("fedot_50", "fedpft_50")
ABLATIONS = {"fedpft_67_n": "none", "fedpft_67_b": "before", "fedpft_67_d": "during"}
"""FedPFT at 67 % with another part `align` than `both`."""
LARGER = ("fedpft_78",)
"""Larger sub-FMs, on QNLI: they tell whether a difference to `full` is one of the sub-FM's size."""
EMULATED = ("fedot_67_e",)
"""FedOT at 67 % with an emulator, so with fewer trained layers."""
ALIGNMENTS = {
    "fedot_67": "none",
    **dict.fromkeys(("fedot_67_e", "fedot_50"), "emulator"),
    **dict.fromkeys(("fedpft_67", "fedpft_50", *LARGER), "both"),
    **ABLATIONS,
}
"""Method -> part `align`."""

PARTITIONS = {
    "iid": ("kind=iid",),
    "dirichlet": ("kind=dirichlet",),
    "dirichlet_label": ("kind=dirichlet", "concentration=per_label"),
}
"""Partition -> its settings; `dirichlet` has the authors' law, `dirichlet_label` that of most papers."""

SEEDS, MORE_SEEDS = (42, 43, 44), (45, 46)
MORE_ROUNDS = 48
"""Of the cells that tell whether a difference is one of too few rounds."""

LEARNING_RATES = {
    "sst2": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "qnli": (2e-3, 4e-3, 8e-3, 1.6e-2),
    "cifar10": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
}
"""Of a task, the same for every method."""
SEARCH_SEEDS = (7, 8)
"""Of the search alone: no measured cell has them. Every rate is tried with the first."""
FINALISTS = {"sst2": 2}
"""Task -> how many of a method's best rates are tried with the second seed, too; others are chosen by the first."""

Accuracies = Mapping[tuple[str, str], Mapping[float, Mapping[int, float]]]
"""(task, method) -> learning rate -> seed -> the plugged-in FM's accuracy in the search."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federated run."""

    task: str
    method: str
    partition: str
    seed: int
    lr: float
    rounds: int | None = None
    """None: the task's."""

    @property
    def name(self) -> str:
        longer = "" if self.rounds is None else f"_rounds{self.rounds}"
        return f"{self.task}_{self.method}_{self.partition}{longer}_seed{self.seed}"

    def config(self, data_dir: Path, work_dir: Path) -> Config:
        """Return the run's config.

        Args:
            data_dir: a folder for each task and each kind of public data.
            work_dir: the sub-FM cache, and the pre-trained ViT.

        """
        method = "fedpft_67" if self.method in ABLATIONS else self.method
        fm, public = ("vit", "tiny_imagenet") if self.task in IMAGE_TASKS else ("minilm", "align_text")
        return load_config(
            BASE,
            [
                f"fm={fm}",
                *([f"fm.path={work_dir / 'vit'}"] if fm == "vit" else []),
                f"task={self.task}",
                f"method={method}",
                *([f"align={ALIGNMENTS[self.method]}"] if self.method in ALIGNMENTS else []),
                *(f"federated.partition.{setting}" for setting in PARTITIONS[self.partition]),
                f"federated.lr={self.lr}",
                *([f"federated.rounds={self.rounds}", f"evaluation.interval={self.rounds}"] if self.rounds else []),
                f"seed={self.seed}",
                f"task.path={data_dir / self.task}",
                f"public.path={data_dir / public}",
                f"cache.dir={work_dir / 'cache'}",
            ],
        )


def searched_method(method: str) -> str:
    """Return whose learning rate a method uses: an ablation and a larger sub-FM have FedPFT's at 67 %."""
    return "fedpft_67" if method in (*ABLATIONS, *LARGER) else method


def all_cells(rates: Mapping[tuple[str, str], float]) -> Iterator[Cell]:
    """Yield the cells, the most important ones first; a pair (task, method) without a learning rate has none."""
    parts: list[tuple[Sequence[str], Sequence[str], str, int | None, Sequence[int]]] = [
        (TEXT_TASKS, METHODS_AT_67, "iid", None, SEEDS),
        (IMAGE_TASKS, METHODS_AT_67, "iid", None, SEEDS),
        (TEXT_TASKS, METHODS_AT_67, "dirichlet", None, SEEDS),
        (TEXT_TASKS, METHODS_AT_50, "iid", None, SEEDS),
        (("qnli",), tuple(ABLATIONS), "iid", None, SEEDS),
        (TEXT_TASKS, EMULATED, "iid", None, SEEDS),
        (("qnli",), LARGER, "iid", None, SEEDS),
        (("qnli",), METHODS_AT_67, "dirichlet_label", None, SEEDS),
        (TEXT_TASKS, (*METHODS_AT_67, *EMULATED), "iid", None, MORE_SEEDS),
        (("qnli",), ("full", "fedpft_67"), "iid", MORE_ROUNDS, (42,)),
        (("qnli",), ("full",), "dirichlet", MORE_ROUNDS, (43,)),
    ]
    for tasks, methods, partition, rounds, seeds in parts:
        for seed in seeds:
            for task in tasks:
                for method in methods:
                    if lr := rates.get((task, searched_method(method))):
                        yield Cell(task=task, method=method, partition=partition, seed=seed, lr=lr, rounds=rounds)


def search_cells(accuracies: Callable[[], Accuracies]) -> Iterator[Cell]:
    """Yield the trials of the learning-rate search, as many for every method.

    Args:
        accuracies: returns those measured so far; the second seed waits for a later call where another worker is not
            done with the first.

    """
    first, second = SEARCH_SEEDS
    for methods, tasks in ((METHODS_AT_67, TASKS), ((*METHODS_AT_50, *EMULATED), TEXT_TASKS)):
        for task in tasks:
            for lr in LEARNING_RATES[task]:
                for method in methods:
                    yield Cell(task=task, method=method, partition="iid", seed=first, lr=lr)
            for method in methods:
                for lr in finalists(task, accuracies()[task, method]):
                    yield Cell(task=task, method=method, partition="iid", seed=second, lr=lr)


def finalists(task: str, found: Mapping[float, Mapping[int, float]]) -> list[float]:
    """Return the best rates by the first seed, the smaller of equals first; none before all rates have been tried."""
    scores = {lr: by_seed[SEARCH_SEEDS[0]] for lr, by_seed in found.items() if SEARCH_SEEDS[0] in by_seed}
    if any(lr not in scores for lr in LEARNING_RATES[task]):
        return []
    return sorted(scores, key=lambda lr: (-scores[lr], lr))[: FINALISTS.get(task, 0)]


def is_searched(task: str, found: Mapping[float, Mapping[int, float]]) -> bool:
    """Whether a method has all its trials: every rate with the first seed, the finalists with the second."""
    first, second = SEARCH_SEEDS
    tried_all = all(first in found.get(lr, {}) for lr in LEARNING_RATES[task])
    return tried_all and all(second in found[lr] for lr in finalists(task, found))


def best_rates(accuracies: Accuracies) -> dict[tuple[str, str], float]:
    """Return (task, method) -> the best rate: of those tried with most seeds, by their mean; the smaller of equals.

    A pair whose search is not over has none.
    """
    best = {}
    for pair, found in accuracies.items():
        if not is_searched(pair[0], found):
            continue
        most = max(len(by_seed) for by_seed in found.values())
        means = {lr: fmean(by_seed.values()) for lr, by_seed in found.items() if len(by_seed) == most}
        best[pair] = min(means, key=lambda lr: (-means[lr], lr))
    return best
