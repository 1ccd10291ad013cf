"""Print the methods benchmark's tables in Markdown: `python -m experiments.benchmarks.methods.table`."""

import json
from collections.abc import Collection, Iterable
from itertools import product
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from experiments.benchmarks.methods.cells import (
    ABLATIONS,
    EMULATED,
    LARGER,
    LEARNING_RATES,
    METHODS_AT_50,
    METHODS_AT_67,
    MORE_ROUNDS,
    PARTITIONS,
    RESULTS,
    TASKS,
    best_rates,
)
from experiments.benchmarks.methods.run import search_accuracies

METHODS = (*METHODS_AT_67, *EMULATED, *ABLATIONS, *METHODS_AT_50, *LARGER)
FEDOT = ("fedot_67", *EMULATED, "fedot_50")
COLUMNS = ("method", "Params (Mi)", "FM %", "minus `full`", "minus FedOT", "proxy %", "rate", "s a cell", "seeds")

Cells = list[dict[str, Any]]


def main() -> None:
    """Print the search, then mean and interval of every finished cell; a table for each task and setting."""
    _print_search()
    cells = [{"rounds": None, **json.loads(file.read_text())} for file in sorted(RESULTS.glob("*.json"))]
    for partition, rounds, task in product(PARTITIONS, (None, MORE_ROUNDS), TASKS):
        wanted = {"task": task, "partition": partition, "rounds": rounds}
        if measured := [cell for cell in cells if wanted.items() <= cell.items()]:
            title = f"{task}, {partition}" + (f", {rounds} rounds" if rounds else "")
            print(f"\n**{title}**\n")
            _print_row(COLUMNS, heading=True)
            for method in METHODS:
                if any(cell["method"] == method for cell in measured):
                    _print_row(_columns(method, measured))


def interval(values: Collection[float]) -> str:
    """Return mean and half the 95 % interval (Student's t over seeds) of fractions, in per cent."""
    if len(values) < 2:
        return "".join(f"{100 * value:.1f}" for value in values)
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{100 * fmean(values):.1f} ± {100 * half:.1f}"


def _columns(method: str, measured: Cells) -> list[str]:
    cells = [cell for cell in measured if cell["method"] == method]
    fedots = [fedot for fedot in FEDOT if (fedot in METHODS_AT_50) == (method in METHODS_AT_50)]
    return [
        f"`{method}`",
        f"{cells[0]['num_transformer_params_sub_fm'] / 2**20:.2f}",
        interval([cell["fm"] for cell in cells]),
        *(interval(_differences(cells, measured, other)) for other in ("full", _best(fedots, measured))),
        interval([cell["sub_fm"] for cell in cells]),
        f"{cells[0]['lr']:g}",
        f"{fmean(cell['rounds_seconds'] for cell in cells):.0f}",
        str(len(cells)),
    ]


def _best(methods: Collection[str], measured: Cells) -> str:
    """Return the method with the best mean over the seeds that all have, if any; '' if none is measured."""
    found = {m: {cell["seed"]: cell["fm"] for cell in measured if cell["method"] == m} for m in methods}
    found = {method: by_seed for method, by_seed in found.items() if by_seed}
    shared = set.intersection(*map(set, found.values())) if found else set()
    return max(found, key=lambda method: fmean(found[method][seed] for seed in shared or found[method]), default="")


def _differences(cells: Cells, measured: Cells, other: str) -> list[float]:
    """Return the cells' accuracies minus the other method's of the same seeds."""
    found = {cell["seed"]: cell["fm"] for cell in measured if cell["method"] == other}
    return [cell["fm"] - found[cell["seed"]] for cell in cells if cell["seed"] in found and cell["method"] != other]


def _print_search() -> None:
    accuracies = search_accuracies()
    best = best_rates(accuracies)
    for task in TASKS:
        rates = LEARNING_RATES[task]
        print()
        _print_row([f"{task}, rate", *(f"{lr:g}" for lr in rates)], heading=True)
        for method in METHODS:
            if found := accuracies.get((task, method)):
                tried = (_trial(found.get(lr, {}).values(), chosen=lr == best.get((task, method))) for lr in rates)
                _print_row([f"`{method}`", *tried])


def _trial(values: Collection[float], *, chosen: bool) -> str:
    """Return the accuracies of one rate, a seed each, in per cent."""
    text = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"**{text}**" if chosen else text


def _print_row(texts: Iterable[str], *, heading: bool = False) -> None:
    row = list(texts)
    print(f"| {' | '.join(row)} |" + (f"\n|{' --- |' * len(row)}" if heading else ""))


if __name__ == "__main__":
    main()
