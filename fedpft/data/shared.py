"""Training data larger than memory: every node reads a task's files itself, prepares them once, and maps the result.

    files that all nodes see --read, tokenise or decode, batch by batch--> <cache>/data/<key>/*.arrow --map--> rows

The key is made of the files' bytes and of all that decides what becomes of them, so a file that was replaced or another
tokenizer never meets yesterday's rows. A folder is written aside under a lock and renamed when it is whole: actors and
runs of one node make it once and share its pages. What travels to a node is this description, no row.
"""

import hashlib
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from datasets.table import embed_table_storage
from filelock import FileLock
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from fedpft.config import TaskConfig
from fedpft.config.plugins import adopt
from fedpft.data.digest import dataset_digest
from fedpft.data.digests import DIGEST_BYTES, file_digest, file_digests, processor_digest
from fedpft.data.sources.columns import IMAGE, LABEL, PROMPT, RESPONSE, TEXT, TEXT_PAIR
from fedpft.data.sources.errors import fail
from fedpft.data.sources.files import is_local
from fedpft.data.sources.images import look_at_pixels
from fedpft.data.sources.in_use import DATA_FOLDER
from fedpft.data.sources.mapped import remapped
from fedpft.data.sources.memory import is_in_memory
from fedpft.data.sources.on_disk import ROWS_OF_BATCH, kept, rows_on_disk
from fedpft.data.sources.rows import load_hub
from fedpft.data.tasks.loading import TaskData, load_task
from fedpft.data.tasks.origins import hub_splits, local_files, row_of
from fedpft.data.tasks.ready import ready_for_model
from fedpft.data.tasks.table import TASKS

FORMAT = 1
"""Raise it with every change of the code after which the same files give other rows."""
_PACKAGES = ("fedpft", "datasets", "pyarrow", "pillow", "tokenizers", "transformers")
_ENTRY, _DIGESTS, _WORK = "entry.json", "digests", "work"
_FACTS = ("modality", "label_names", "kind", "metrics", "renamed")


@dataclass(frozen=True, kw_only=True)
class SharedTask:
    """How a node makes a task's rows, ready for the model, out of files that it sees."""

    config: TaskConfig
    """Its path is absolute, if it is none of the hub's."""
    seed: int
    """Draws the subsets, if any."""
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    max_length: int
    owner: str | None
    """Column of `federated.partition.column`."""
    cache: Path
    """Folder of the node, which may be the same one on all nodes."""
    contents: Mapping[str, str]
    """What the driver reads -> its digest."""

    @cached_property
    def key(self) -> str:
        """Return 32 hex digits over all that the rows depend on."""
        settings = asdict(self.config) | {"path": None}
        parts = {
            "format": FORMAT,
            "versions": {name: version(name) for name in _PACKAGES},
            "task": settings,
            "rows": [self.seed, self.max_length, self.owner],
            "processor": processor_digest(self.processor),
            "contents": sorted((self._within(name), digest) for name, digest in self.contents.items()),
        }
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()

    def _within(self, name: str) -> str:
        """Return a file's path within the task's folder: the same rows may lie elsewhere."""
        return os.path.relpath(name, self.config.path) if self.config.path and is_local(self.config.path) else name

    @property
    def folder(self) -> Path:
        """Where the rows are, once somebody made them."""
        return self.cache / DATA_FOLDER / self.key

    def open(self, *, say_warnings: bool = True) -> tuple[TaskData, dict[str, str]]:
        """Return the task, mapped from files that are made first if need be, and the files' digests by name.

        Raises:
            ConfigError: the files cannot be read or make no task; or, where they must be made, this node sees others
                than the driver.

        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.folder}.lock"):
                entry = self._sound_entry() or self._make()
                splits = {Path(name).stem: self._mapped(name, entry) for name in entry["digests"]}
                with suppress(OSError):
                    os.utime(self.folder)  # its last use
        except OSError as error:
            fail("cache.dir", f"{self.folder.parent} ({error})", "a folder with room for the prepared rows")
        for line in entry["warnings"] if say_warnings else ():
            warnings.warn(line, stacklevel=2)
        digests = entry["digests"]
        facts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in entry["facts"].items()
        }
        train, evaluation = splits.pop("train"), splits.pop("evaluation")
        return TaskData(train=train, evaluation=evaluation, other_evaluations=splits, is_ready=True, **facts), digests

    def _mapped(self, name: str, entry: Mapping[str, Any]) -> datasets.Dataset:
        dataset = remapped(datasets.Dataset.from_file(str(self.folder / name)))
        dataset.info.builder_name = entry["builder"]
        dataset._fingerprint = f"{self.key}-{Path(name).stem}"[:64]
        return dataset

    def _sound_entry(self) -> dict[str, Any] | None:
        """Return what stands in the entry; None: there is none, or its files are not what was written."""
        if not self.folder.exists():
            return None
        try:
            entry = json.loads((self.folder / _ENTRY).read_text(encoding="utf-8"))
            found = file_digests([self.folder / name for name in entry["digests"]], self.cache / DATA_FOLDER / _DIGESTS)
            if {Path(path).name: digest for path, digest in found.items()} == entry["digests"]:
                return entry
        except (OSError, ValueError, KeyError, TypeError):
            pass
        warnings.warn(f"{self.folder} is damaged: its rows are made again", stacklevel=3)
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def _make(self) -> dict[str, Any]:
        """Make the entry; the caller holds its lock."""
        self._require_same_contents()
        unfinished = self.folder.with_name(f".{self.key}")
        shutil.rmtree(unfinished, ignore_errors=True)  # of somebody who was killed
        work = unfinished / _WORK
        work.mkdir(parents=True)
        try:
            with rows_on_disk(work), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                task = self._prepared()
                files = {
                    f"{name}.arrow": _file_of(dataset)
                    for name, dataset in {
                        "train": task.train, "evaluation": task.evaluation, **task.other_evaluations
                    }.items()
                }  # fmt: skip
            for name, file in files.items():
                file.replace(unfinished / name)
            shutil.rmtree(work)
            entry = {
                "facts": {name: getattr(task, name) for name in _FACTS},
                "builder": task.train.info.builder_name,
                "warnings": [str(warning.message) for warning in caught if warning.category is UserWarning],
                "digests": {name: file_digest(unfinished / name) for name in files},
                "created": time.time(),
                "origin": f"{self.config.name}, {self.config.path}" if self.config.path else self.config.name,
                "num_examples": len(task.train),
            }
            (unfinished / _ENTRY).write_text(json.dumps(entry), encoding="utf-8")
            unfinished.replace(self.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return json.loads(json.dumps(entry))

    def _prepared(self) -> TaskData:
        task = load_task(self.config, self.seed, look_at_pixels)
        name = task.renamed.get(self.owner or LABEL, self.owner or LABEL)
        owner = [name] if name in task.train.column_names and name != LABEL else []
        needed = {TEXT, TEXT_PAIR, PROMPT, RESPONSE, IMAGE, LABEL, *owner}

        def pruned(dataset: datasets.Dataset) -> datasets.Dataset:
            return dataset.select_columns([name for name in dataset.column_names if name in needed])

        others = {name: pruned(dataset) for name, dataset in task.other_evaluations.items()}
        task = replace(
            task, train=pruned(task.train), evaluation=pruned(task.evaluation), other_evaluations=others
        )  # fmt: skip
        chat = self.config.chat_template
        return ready_for_model(task, self.processor, self.max_length, chat=chat, keep=owner)

    def _require_same_contents(self) -> None:
        found = contents_of(self.config, self.cache)
        for name in sorted(found.keys() | self.contents.keys()):
            if found.get(name) != self.contents.get(name):
                what = "another file" if name in found and name in self.contents else "a file more or less"
                where = f"node {platform.node()} with {what} than the driver: {name}"
                fail("task.data", where, "storage that all nodes see, or task.data=broadcast")


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """The training rows as they travel: how to get at them, and what they must be."""

    task: SharedTask
    columns: tuple[str, ...]
    """That the model reads."""
    digest: str
    """Of the driver's file of them."""
    more: datasets.Dataset | None = None
    """Rows that come behind those of the file."""

    def open(self) -> datasets.Dataset:
        """Return the rows, mapped.

        Raises:
            ConfigError: this node's rows are others than the driver's.

        """
        task, digests = self.task.open(say_warnings=False)
        if digests["train.arrow"] != self.digest:
            found = f"node {platform.node()} that makes other rows of {self.task.config.path}"
            fail("task.data", found, "the same versions of all packages on every node, or task.data=broadcast")
        rows = task.train.select_columns(list(self.columns))
        return rows if self.more is None else datasets.concatenate_datasets([rows, self.more])


def opened(train: datasets.Dataset | SharedRows) -> datasets.Dataset:
    """Return the rows, whether they were sent or are read here."""
    return train.open() if isinstance(train, SharedRows) else train


def absolute(config: TaskConfig) -> TaskConfig:
    """Return the section with a path that means the same in every folder."""
    if config.path is None or is_in_memory(config.path) or not is_local(config.path):
        return config
    return replace(config, path=str(Path(config.path).expanduser().resolve()))


def contents_of(config: TaskConfig, cache: Path) -> dict[str, str]:
    """Return what a task is read from, files or splits on the hub, and the digest of each.

    Raises:
        ConfigError: rows that are in memory, or none where they should be.

    """
    adopt("task", config.name, TASKS)
    row = row_of(config)
    path = config.path or row.path
    if is_in_memory(path):
        fail("task.data", "shared", "broadcast, because the rows are in this process' memory")
    if row.loader is not None and config.path is None:
        fail("task.data", "shared", f"broadcast, because the rows of task.name={config.name} come with a package")
    if is_local(path):
        return file_digests(local_files(config, row, path), cache / DATA_FOLDER / _DIGESTS)
    contents = {}
    for data_set, split, revision in hub_splits(config, row, path).values():
        rows = load_hub(path, data_set, split, "task.path", revision=revision, keep_in_memory=False)
        contents[f"{path} {data_set or ''} {split}"] = dataset_digest(rows, rows.column_names)
    return contents


def _file_of(dataset: datasets.Dataset) -> Path:
    """Return the one file of a data set's rows, written if need be, images with their bytes."""
    if len(dataset.cache_files) != 1 or dataset._indices is not None:
        encoded, how = dataset.with_format("arrow"), {"batched": True, "batch_size": ROWS_OF_BATCH}
        dataset = kept(encoded.map, embed_table_storage, features=dataset.features, **how)
    return Path(dataset.cache_files[0]["filename"])
