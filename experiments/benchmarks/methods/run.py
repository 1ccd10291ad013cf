"""Methods benchmark: every method at an equal budget, at its own best learning rate. See README.md.

    python -m experiments.benchmarks.methods.run all|search|cells DATA_DIR [--match GLOB]

DATA_DIR holds `sst2`, `qnli`, `cifar10`, `align_text` and `tiny_imagenet` as parquet. Set OMP_NUM_THREADS=1. What is
finished is skipped, so it can be stopped and started at will; several workers share the work: a cell is measured when
its method's search is over. One JSON a trial or cell lies in `experiments/results/methods/`; a changed learning rate
makes it stale by itself, of any other setting that you change, delete the records.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from experiments.benchmarks.methods.cells import (
    IMAGE_TASKS,
    RESULTS,
    TASKS,
    WORK,
    Accuracies,
    Cell,
    all_cells,
    best_rates,
    search_cells,
)
from experiments.benchmarks.methods.pretrain_vit import ensure_vit
from fedpft.config import Config
from fedpft.data.sources.rows import load_local
from fedpft.federated.observer import SilentObserver
from fedpft.federated.pool import SequentialPool
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.tuning import tune
from fedpft.storage.output import package_versions, write_json
from fedpft.tracking.trackers import Tracker, TrackerGroup
from fedpft.trainer import SilentProgress

SEARCH_VALIDATION_EXAMPLES = 1000
KEPT = (
    "metric", "untuned_fm", "sub_fm", "fm", "metrics", "fidelity", "num_transformer_params_fm",
    "num_transformer_params_sub_fm", "num_params_adapter", "num_eval_examples", "rounds_seconds", "construction",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("all", "search", "cells"), help="all: the search, then the cells")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--match", default="*", help="only the trials and cells with such a name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what != "cells":
        run(search_cells(search_accuracies), search_data(options.data_dir), RESULTS / "search", options.match)
    if options.what != "search":
        rates = best_rates(search_accuracies())
        run(all_cells(rates), options.data_dir, RESULTS, options.match)
        if missing := {(cell.task, cell.method) for cell in search_cells(search_accuracies)} - rates.keys():
            waiting = ", ".join(sorted(f"{method} on {task}" for task, method in missing))
            Console().print(f"no cells yet of {waiting}: their search is not over")


def run(cells: Iterator[Cell], data_dir: Path, folder: Path, match: str) -> None:
    """Measure the cells that nobody else does, and write each to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for cell, file in unclaimed(cells, folder, match):
        start = time.perf_counter()
        measured = measure(cell, data_dir)
        write_json(file, {**vars(cell), **measured, "versions": package_versions()})
        Console().print(f"{file.stem}: {100 * measured['fm']:.1f} %, {time.perf_counter() - start:.0f} s")


def unclaimed(cells: Iterator[Cell], folder: Path, match: str) -> Iterator[tuple[Cell, Path]]:
    """Yield every cell that is neither finished nor taken by another worker, and hold it until the next one."""
    WORK.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        name = f"{cell.name}_lr{cell.lr:g}" if folder.name == "search" else cell.name
        file = folder / f"{name}.json"
        if not fnmatch(name, match):
            continue
        try:
            with FileLock(WORK / f"{folder.name}_{name}.lock", timeout=0):
                if not _is_finished(cell, file):
                    yield cell, file
        except Timeout:
            continue


def _is_finished(cell: Cell, file: Path) -> bool:
    """Whether the cell was measured at the learning rate that the search now says."""
    return file.exists() and json.loads(file.read_text())["lr"] == cell.lr


def measure(cell: Cell, data_dir: Path) -> dict[str, Any]:
    """Run one cell and return what is worth keeping of its result."""
    if cell.task in IMAGE_TASKS:
        ensure_vit(data_dir)
    return tuned_once(cell.config(data_dir, WORK))


def tuned_once(config: Config, *further: str, tracker: Tracker | None = None) -> dict[str, Any]:
    """Run once, in this process, and return what is worth keeping of its result; `further`: keys beside `KEPT`."""
    fm, data = load_fm_and_data(config, SilentProgress())
    result = tune(config, fm, data, SequentialPool(), tracker or TrackerGroup([]), SilentObserver()).result
    return {name: result[name] for name in (*KEPT, *further) if name in result}


def search_accuracies() -> Accuracies:
    """Return what the search has found so far."""
    found: dict[tuple[str, str], dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for file in sorted((RESULTS / "search").glob("*.json")):
        trial = json.loads(file.read_text())
        found[trial["task"], trial["method"]][trial["lr"]][trial["seed"]] = trial["fm"]
    return found


def search_data(data_dir: Path) -> Path:
    """Write a folder of the same layout whose evaluation sets are parts of the training data; return it.

    No learning rate is chosen on examples that a cell is evaluated on.
    """
    folder = WORK / "search_data"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(WORK / "search_data.lock"):
        for task in TASKS:
            if (folder / task / "validation.parquet").exists():
                continue
            parts = load_local(str(data_dir / task), "train", "DATA_DIR").train_test_split(
                SEARCH_VALIDATION_EXAMPLES, seed=0
            )
            (folder / task).mkdir(exist_ok=True)
            parts["train"].to_parquet(folder / task / "train.parquet")
            parts["test"].to_parquet(folder / task / "validation.part")
            (folder / task / "validation.part").rename(folder / task / "validation.parquet")
        for public in ("align_text", "tiny_imagenet"):
            if not (folder / public).exists():
                (folder / public).symlink_to((data_dir / public).resolve())
    return folder


if __name__ == "__main__":
    main()
