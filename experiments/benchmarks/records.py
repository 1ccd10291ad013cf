"""One JSON a run, written by whichever worker comes first: several workers share what is not measured yet."""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from fedpft.storage.output import package_versions, write_json

Run = TypeVar("Run")


def work_through(
    doc: str | None,
    runs: Callable[[], Iterable[Run]],
    name_of: Callable[[Run], str],
    measure: Callable[[Run, Any], object],
    table: Callable[[], Iterable[str]],
) -> None:
    """Be a benchmark's command line: measure each run of a matching name, or print the table.

    Args:
        doc: of the module, for --help.
        runs: in the order of their importance; asked anew for each worker.
        name_of: a run.
        measure: a run, with the folder of data sets or, without one, None.
        table: its lines.

    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, nargs="?")
    parser.add_argument("--match", default="*", help="only the runs with such a name")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table()))
        return
    torch.set_num_threads(1)
    for run in runs():
        if fnmatch(name_of(run), options.match):
            measure(run, options.data_dir)


def measure_missing(
    file: Path,
    work_dir: Path,
    measure: Callable[[], Mapping[str, Any]],
    is_measured: Callable[[], bool] | None = None,
) -> None:
    """Measure a run and write its record, with its seconds; not if that is done, or another worker is at it.

    Args:
        file: of the record.
        work_dir: has the workers' locks; named after the benchmark's folder of records.
        measure: returns the record, with the FM's accuracy as `fm`.
        is_measured: whether the record that is there counts; None: any does.

    """
    for folder in (file.parent, work_dir):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work_dir / f"{file.parent.name}_{file.stem}.lock", timeout=0):
            if (is_measured or file.exists)():
                return
            start = time.perf_counter()
            record = measure()
            seconds = time.perf_counter() - start
            write_json(file, {**record, "seconds": seconds, "versions": package_versions()})
            print(f"{file.stem}: {100 * record['fm']:.1f} %, {seconds:.0f} s", flush=True)
    except Timeout:
        return
