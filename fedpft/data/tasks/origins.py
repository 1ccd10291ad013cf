"""Where a task's rows are: which splits of which files or hub data set, and what stands in them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedpft.config import TaskConfig
from fedpft.data.sources.errors import fail, find_row, one_line
from fedpft.data.sources.files import IMAGE_FOLDER, SAVED, Files, find_local, has_split
from fedpft.data.sources.image_folders import find_images
from fedpft.data.tasks.table import TASKS, TaskRow

DEFAULT_EVAL_RATIO = 0.1
CLASSES_FILE = "classes.txt"


def row_of(config: TaskConfig) -> TaskRow:
    """Return the table's row; of a task without one an empty row.

    Raises:
        ConfigError: no such name.

    """
    return TaskRow() if config.name == "custom" else find_row(config.name, TASKS, "task.name")


def eval_ratio(config: TaskConfig, row: TaskRow) -> float:
    """Return the fraction of the training data to evaluate on; 0 where there is an evaluation split."""
    split = config.eval_split or row.eval_split
    return config.eval_ratio or (0.0 if split else DEFAULT_EVAL_RATIO)


def local_splits(config: TaskConfig, row: TaskRow, path: str) -> dict[str, str]:
    """Return which files stand for `train`, `evaluation` and further sets: one convention, whatever the hub calls them.

    Raises:
        ConfigError: one file for training and evaluation.

    """
    splits = {"train": config.train_split or "train"}
    if not eval_ratio(config, row):
        if Path(path).expanduser().is_file():
            allowed = "a folder with train.* and validation.*, or task.eval_ratio: one file would be both"
            fail("task.path", path, allowed)
        splits["evaluation"] = config.eval_split or "validation"
    return splits | {name: split for name, split in row.other_eval_splits.items() if has_split(path, split)}


def hub_splits(config: TaskConfig, row: TaskRow, path: str) -> dict[str, tuple[str | None, str, str | None]]:
    """Return the hub's data set, split and revision for `train`, `evaluation` and further sets."""
    splits = {"train": config.train_split or row.train_split}
    if not eval_ratio(config, row):
        splits["evaluation"] = config.eval_split or row.eval_split or "validation"
    if path != row.path:
        return {name: (None, split, None) for name, split in splits.items()}
    return {
        name: (row.config_name, split, row.revision) for name, split in (splits | dict(row.other_eval_splits)).items()
    }


def local_files(config: TaskConfig, row: TaskRow, path: str) -> list[Path]:
    """Return every file of which a byte could change the task's rows, in the order of their names.

    Raises:
        ConfigError: as `find_local`.

    """
    found = {
        file
        for split in local_splits(config, row, path).values()
        for file in _with_companions(find_local(path, split, "task.path"))
    }
    classes = Path(path).expanduser().resolve() / CLASSES_FILE
    return sorted(found | ({classes} if classes.is_file() else set()))


def _with_companions(files: Files) -> Iterator[Path]:
    yield from map(Path, files.paths)
    if files.builder == IMAGE_FOLDER:
        yield from find_images(Path(files.folder), "task.path").tables
    if files.builder == SAVED:
        yield from Path(files.folder).glob("*.json")


def class_names(file: Path) -> tuple[str, ...]:
    """Return the lines of `classes.txt`.

    Raises:
        ConfigError: they are no names, or the same twice.

    """
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail("task.path", f"{file} ({one_line(error)})", "a class name a line, in UTF-8")
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not all(names) or not names:
        fail("task.path", f"{file} with {'an empty line' if names else 'no line'}", "a class name a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        fail("task.path", f"{twice[0]!r} more than once in {file}", "one line for each class")
    return tuple(names)
