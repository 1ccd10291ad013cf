"""A run's numbers as two tables: `csv/rounds/metrics.csv` and `csv/alignments/metrics.csv`, a line a step."""

import csv
from pathlib import Path

from lightning.fabric.loggers import CSVLogger

from fedpft.config import Config
from fedpft.tracking.loggers import Axis, LoggerTracker, Start

FOLDER = "csv"


def csv_tracker(config: Config, output_dir: Path, start: Start) -> LoggerTracker:
    """Return a tracker whose tables are whole after every line; those of a resumed run go on where it goes on."""
    folder = output_dir / FOLDER

    def make(axis: Axis) -> CSVLogger:
        last = start.rounds_done if axis == "rounds" else start.align_steps
        past = _taken(folder / axis / "metrics.csv", last)
        logger = CSVLogger(folder, name="", version=axis, flush_logs_every_n_steps=1)
        for row in past:
            step = int(row.pop("step"))
            logger.log_metrics({name: float(value) for name, value in row.items() if value}, step)
        return logger

    return LoggerTracker(make, {"csv": str(folder)})


def _taken(path: Path, last: int) -> list[dict[str, str]]:
    """Return the lines of a table up to this step, and remove the table: Lightning begins it anew."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= last]
    path.unlink()
    return rows
