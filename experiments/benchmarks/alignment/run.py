"""Alignment benchmark: how faithful a sub-FM is, what that costs, and what it buys. See README.md.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.alignment.run DATA_DIR [--seeds 1] [--worker 0/2] [--match GLOB]

DATA_DIR holds `sst2/` and `align_text/` as parquet. Finished cells are skipped, so it can be stopped and started at
will; two workers share the cells. The results lie in `experiments/results/alignment/`, one JSON a cell.
"""

import argparse
import json
import time
from fnmatch import fnmatch
from pathlib import Path

import torch
from rich.console import Console

from experiments.benchmarks.alignment.cells import all_cells, held_out_batches, measure
from fedpft.models.processor import load_processor
from fedpft.run.inputs import load_fm_and_data
from fedpft.storage.output import package_versions, write_json
from fedpft.trainer import SilentProgress

RESULTS = Path("experiments/results/alignment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--worker", default="0/1", help="K/N: take every N-th unfinished cell, from the K-th")
    parser.add_argument("--match", default="*", help="only the cells with such a name")
    parser.add_argument("--cache", type=Path, default=Path("outputs/alignment_benchmark/cache"))
    options = parser.parse_args()
    worker, num_workers = map(int, options.worker.split("/"))
    torch.set_num_threads(1)  # seconds are CPU seconds of one thread
    console, loaded = Console(), {}
    RESULTS.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in all_cells(range(42, 42 + options.seeds)) if fnmatch(cell.name, options.match)]
    for index, cell in enumerate(cells):
        file = RESULTS / f"{cell.name}.json"
        if index % num_workers != worker or file.exists():
            continue
        config = cell.config(options.data_dir, options.cache)
        if cell.seed not in loaded:
            tokenizer = load_processor(config.fm, "text")
            held_out = held_out_batches(options.data_dir, tokenizer, config.public.chunk_length)
            loaded = {cell.seed: (*load_fm_and_data(config, SilentProgress()), held_out)}
        start = time.perf_counter()
        measured = measure(config, *loaded[cell.seed])
        write_json(file, {**vars(cell), **measured, "versions": package_versions()})
        line = json.dumps(
            {name: measured[name] for name in ("construct_cpu_seconds", "gradient_cosine", "sub_fm", "fm")}
        )
        console.print(f"{cell.name}: error {measured['hidden_errors'][-1]} {line} {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
