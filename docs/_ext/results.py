"""The tables of the page of results, from the records under experiments/results."""

import importlib
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

RECORDS = Path(__file__).parents[2] / "experiments" / "results"

SUMMARY = (
    ("FedPETuning: the FM itself", ("full",)),
    ("FedPFT, 67 %", ("fedpft_67",)),
    ("FedOT, 67 %", ("fedot_67", "fedot_67_e")),
    ("FedPFT, 50 %", ("fedpft_50",)),
    ("FedOT, 50 %", ("fedot_50",)),
)
"""Row of the summary -> methods of the benchmark, of which the one with the highest mean is shown."""
ABLATIONS = ("fedpft_67_n", "fedpft_67_b", "fedpft_67_d")
TASKS = {"sst2": "SST-2", "qnli": "QNLI", "cifar10": "CIFAR-10"}
PEERS = {
    "fedpft": "**fedpft**",
    "rayagg": "Ray actors, no framework",
    "fabric": "the same with `lightning.Fabric`",
    "flower": "Flower 1.41's simulation",
}


def summary() -> str:
    """Return the table of the README: plugged-in FMs under IID, mean and half the 95 % interval in per cent."""
    interval = importlib.import_module("experiments.benchmarks.methods.table").interval
    cells = cells_of("methods")
    lines = [f"| what clients tune | {' | '.join(TASKS.values())} |", "| --- |" + " --- |" * len(TASKS)]
    untuned = (fmean(cell["untuned_fm"] for cell in cells if cell["task"] == task) for task in TASKS)
    lines.append(f"| nothing: the untuned FM | {' | '.join(f'{100 * value:.1f}' for value in untuned)} |")
    for title, methods_ in SUMMARY:
        shown = []
        for task in TASKS:
            found = [scores for method in methods_ if (scores := accuracies(cells, task, method))]
            shown.append(interval(max(found, key=fmean)) if found else "")
        lines.append(f"| {title} | {' | '.join(shown)} |")
    return "\n".join(lines)


def methods() -> str:
    """Return the benchmark's own tables."""
    return _printed("experiments.benchmarks.methods.table")


def alignment() -> str:
    """Return the benchmark's own table."""
    return _printed("experiments.benchmarks.alignment.table")


def plug_in() -> str:
    """Return the benchmark's own table."""
    return "\n".join(importlib.import_module("experiments.benchmarks.plug_in.run").table())


def simulation() -> str:
    """Return a round's wall time over that of plain PyTorch in the same turn: median and quartiles."""
    lines = ["| program | training counts (MiniLM) | overhead counts (tiny ViT) |", "| --- | --- | --- |"]
    for name, title in PEERS.items():
        cells = []
        for workload in ("minilm", "overhead"):
            low, middle, high = quantiles(time_ratios(workload, name), n=4)
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def robust() -> str:
    """Return the FM's accuracies, aggregators x Byzantine clients: mean, and the lowest and highest of the seeds."""
    record = robust_record()
    lines = [f"| aggregator | {' | '.join(record['columns'])} |", "| --- |" + " --- |" * len(record["columns"])]
    for name, cells in zip(record["rows"], record["cells"], strict=True):
        percents = ([100 * value for value in cell["values"]] for cell in cells)
        shown = (f"{fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})" for values in percents)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def quickstart() -> str:
    """Return what the two configs for a laptop give."""
    lines = ["| config | untuned FM | sub-FM | plugged-in FM | seconds |", "| --- | --- | --- | --- | --- |"]
    for name in ("quickstart", "digits_vit"):
        record = json.loads((RECORDS / f"{name}.json").read_text())
        scores = " | ".join(f"{100 * record[key]:.1f} %" for key in ("untuned_fm", "sub_fm", "fm"))
        lines.append(f"| `experiments/configs/{name}.yaml` | {scores} | {record['wall_seconds']:.0f} |")
    return "\n".join(lines)


def together() -> dict[str, dict[str, list[float]]]:
    """Return each workload's clients a second and memory of one place, by how many share a forward pass."""
    return json.loads((RECORDS / "simulation" / "together.json").read_text())["workload"]


def robust_record() -> dict[str, Any]:
    """Return what `fedpft suite experiments/suites/robust.yaml --format json` printed."""
    return json.loads((RECORDS / "robust.json").read_text())


def cells_of(folder: str) -> list[dict[str, Any]]:
    """Return the finished cells of a benchmark."""
    return [json.loads(file.read_text()) for file in sorted((RECORDS / folder).glob("*.json"))]


def accuracies(cells: Sequence[dict[str, Any]], task: str, method: str) -> list[float]:
    """Return the plugged-in FM's accuracies under IID, a seed each."""
    wanted = {"task": task, "method": method, "partition": "iid"}
    return [cell["fm"] for cell in cells if wanted.items() <= cell.items() and cell.get("rounds") is None]


def time_ratios(workload: str, name: str) -> list[float]:
    """Return a program's seconds over plain PyTorch's, a ratio for each round of each turn."""
    turns = json.loads((RECORDS / "simulation" / "turns.json").read_text())
    of = {(turn["group"], turn["name"]): turn["round_s"] for turn in turns if turn["workload"] == workload}
    groups = sorted({group for group, program in of if program == name})
    pairs = ((own, raw) for group in groups for own, raw in zip(of[group, name], of[group, "raw2"], strict=True))
    return [own / raw for own, raw in pairs]


def _printed(module: str) -> str:
    """Return what a benchmark's program of tables prints; its records are found from the repository's root."""
    main: Callable[[], None] = importlib.import_module(module).main
    with redirect_stdout(StringIO()) as printed:
        main()
    return printed.getvalue()
