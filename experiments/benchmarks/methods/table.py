"""Print the methods benchmark's tables in Markdown: `python -m experiments.benchmarks.methods.table`."""

import json
from collections.abc import Collection, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from experiments.benchmarks.methods.cells import (
    IMAGE_TASKS,
    LEARNING_RATES,
    LONGER,
    METHODS_AT_50,
    METHODS_AT_67,
    TASKS,
    TEXT_TASKS,
    best_rates,
)
from experiments.benchmarks.methods.run import RESULTS, search_accuracies

Cells = list[dict[str, Any]]


def interval(values: list[float]) -> str:
    """Return mean and half the 95 % interval (Student's t over seeds) of fractions, in per cent."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}" if values else ""
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{100 * fmean(values):.1f} ± {100 * half:.1f}"


def main() -> None:
    """Print the search, then mean and interval of every finished cell, and its difference to `full` seed by seed."""
    _print_search()
    cells = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    for partition, rounds, tasks in product(("iid", "dirichlet"), (None, *LONGER.values()), (TEXT_TASKS, IMAGE_TASKS)):
        wanted = {"partition": partition, "rounds": rounds}
        measured = [
            cell for cell in cells if cell["task"] in tasks and wanted.items() <= ({"rounds": None} | cell).items()
        ]
        if measured:
            print(f"\n{partition}{f', {rounds} rounds' if rounds else ''}\n")
            _print_table(measured, tasks)


def _print_search() -> None:
    accuracies = search_accuracies()
    best = best_rates(accuracies)
    for task in TASKS:
        print(f"\n| {task}, rate | {' | '.join(f'{lr:g}' for lr in LEARNING_RATES[task])} |")
        print(f"|{' --- |' * (1 + len(LEARNING_RATES[task]))}")
        for method in METHODS_AT_67 + METHODS_AT_50:
            if found := accuracies.get((task, method)):
                tried = [
                    _trial(found.get(lr, {}).values(), chosen=lr == best[task, method]) for lr in LEARNING_RATES[task]
                ]
                print(f"| `{method}` | {' | '.join(tried)} |")


def _trial(values: Collection[float], *, chosen: bool) -> str:
    """Return the accuracies of one rate, a seed each, in per cent."""
    text = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"**{text}**" if chosen else text


def _print_table(cells: Cells, tasks: Sequence[str]) -> None:
    header = ["method", "Params (Mi)"]
    for task in tasks:
        header += [f"{task} FM %", "minus full", "proxy %", "lr", "s", "seeds"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for method in dict.fromkeys(cell["method"] for cell in cells):
        found = [cell for cell in cells if cell["method"] == method]
        row = [method, f"{found[0]['num_transformer_params_sub_fm'] / 2**20:.2f}"]
        for task in tasks:
            row += _task_columns([cell for cell in found if cell["task"] == task], _full(cells, task))
        print(f"| {' | '.join(row)} |")


def _full(cells: Cells, task: str) -> dict[int, float]:
    wanted = {"task": task, "method": "full"}
    return {cell["seed"]: cell["fm"] for cell in cells if wanted.items() <= cell.items()}


def _task_columns(cells: Cells, full: dict[int, float]) -> list[str]:
    if not cells:
        return [""] * 6
    differences = [cell["fm"] - full[cell["seed"]] for cell in cells if cell["seed"] in full]
    return [
        interval([cell["fm"] for cell in cells]),
        interval(differences),
        interval([cell["sub_fm"] for cell in cells]),
        f"{cells[0]['lr']:g}",
        f"{fmean(cell['rounds_seconds'] for cell in cells):.0f}",
        str(len(cells)),
    ]


if __name__ == "__main__":
    main()
