"""One JSON a run, written by whichever worker comes first: several workers share what is not measured yet."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedpft.storage.output import package_versions, write_json


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
