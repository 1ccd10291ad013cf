"""The sub-FM cache: what was constructed and aligned once is read by every later run that would build the same.

Content-addressed: the key is the hash of the ingredients, all on which the sub-FM depends. Only the tensors in which a
sub-FM differs from its FM are kept. One run builds while the others wait; an entry appears whole or not at all, and one
that does not match its checksum is rebuilt.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.construct.compress import NeuronMap, restore_sub_fm
from fedpft.construct.store import ENTRY_FILE, TENSORS_FILE, Store, canonical_json, key_of

Restore = Callable[[PreTrainedModel, Mapping[str, Tensor]], tuple[PreTrainedModel, NeuronMap]]
"""FM and tensors -> sub-FM and map of its neurons, empty where no FFN was cut."""


@dataclass(frozen=True, kw_only=True)
class BuiltSubFM:
    """What a builder returns and an entry keeps."""

    tensors: Mapping[str, Tensor]
    """Of `sub_fm_tensors` (FedOT: `emulator_tensors`)."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """What there is to tell of the build, as JSON, e.g. the losses of the alignment."""


@dataclass(frozen=True, kw_only=True)
class Construction:
    """A sub-FM and where it came from."""

    sub_fm: PreTrainedModel
    neuron_map: NeuronMap
    report: Mapping[str, Any]
    """The builder's, in this run or an earlier one."""
    key: str | None = None
    """In the cache; None: built without."""
    cached: bool = False
    """Whether it was read, not built."""


def construction_of(
    fm: PreTrainedModel,
    built: BuiltSubFM,
    restore: Restore = restore_sub_fm,
    *,
    key: str | None = None,
    cached: bool = False,
) -> Construction:
    """Restore a sub-FM from its tensors: the one way to it, so that a run from the cache cannot differ from another."""
    sub_fm, neuron_map = restore(fm, built.tensors)
    return Construction(sub_fm=sub_fm, neuron_map=neuron_map, report=built.report, key=key, cached=cached)


class SubFMCache:
    """Sub-FMs by key, in a folder that runs may share.

    Args:
        folder: created when it is first used.
        max_bytes: after each new entry the least recently used others are removed until all fit. The new one stays
            even if it is larger than this by itself.

    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.store = Store(folder)
        self._max_bytes = max_bytes

    def get_or_build(
        self,
        fm: PreTrainedModel,
        ingredients: Mapping[str, Any],
        build: Callable[[], BuiltSubFM],
        stage: Callable[[str], None] = lambda title: None,
        restore: Restore = restore_sub_fm,
    ) -> Construction:
        """Return the FM's sub-FM with these ingredients: from the cache, or built and kept there.

        A folder that cannot be used, or takes nothing more, costs a warning and the entry, never the run.

        Args:
            fm: the FM; not changed.
            ingredients: all on which the sub-FM depends, as JSON.
            build: called at most once, while other runs that want the same sub-FM wait; its errors are the caller's.
            stage: hears what takes time, as :meth:`Progress.stage`.
            restore: makes the sub-FM from the tensors that `build` returns.

        """
        key = key_of(ingredients)
        with self._locked(key, stage) as usable:
            kept = self._read(key, fm, stage, restore) if usable else None
            if kept is not None:
                return kept
            start = time.perf_counter()
            built = build()
            if usable:
                self._write(key, built, ingredients, time.perf_counter() - start)
            return construction_of(fm, built, restore, key=key)

    @contextmanager
    def _locked(self, key: str, stage: Callable[[str], None]) -> Iterator[bool]:
        """Hold the key's lock; yield whether the cache can be used."""
        lock = self.store.lock(key)
        try:
            self.store.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                stage("wait for the sub-FM that another run builds")
                lock.acquire()
        except OSError as error:
            _warn(f"{self.store.folder} cannot be used, the sub-FM is built without it: {error}")
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _read(
        self, key: str, fm: PreTrainedModel, stage: Callable[[str], None], restore: Restore
    ) -> Construction | None:
        """Return the entry's sub-FM; None if there is no entry, or if it was damaged and therefore removed."""
        folder = self.store.entry_folder(key)
        if not folder.exists():
            return None
        stage("sub-FM from cache")
        try:
            content = json.loads((folder / ENTRY_FILE).read_bytes())
            if content.pop("checksum") != _checksum(folder / TENSORS_FILE, content):
                raise ValueError("the checksum differs")
            if key_of(content["ingredients"]) != key:
                raise ValueError("the ingredients are another entry's")
            built = BuiltSubFM(tensors=load_file(folder / TENSORS_FILE), report=content["report"])
            construction = construction_of(fm, built, restore, key=key, cached=True)
        except Exception as error:  # whatever is wrong with it, the remedy is the same
            reason = " ".join(str(error).split()) or type(error).__name__
            _warn(f"entry {key[:12]} is damaged and built again: {reason}")
            self.store.remove_held(key)
            return None
        with suppress(OSError):
            self.store.touch(key)
        return construction

    def _write(self, key: str, built: BuiltSubFM, ingredients: Mapping[str, Any], seconds: float) -> None:
        unfinished = self.store.unfinished_folder(key)
        tensors = unfinished / TENSORS_FILE
        try:
            self.store.remove_held(key)
            unfinished.mkdir()
            _save(built.tensors, tensors)
            content = {
                "ingredients": ingredients,
                "created": time.time(),
                "build_seconds": seconds,
                "report": built.report,
                "num_bytes": tensors.stat().st_size,
            }
            content["checksum"] = _checksum(tensors, content)
            (unfinished / ENTRY_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            unfinished.rename(self.store.entry_folder(key))
            self.store.evict(self._max_bytes, keep=key)
        except OSError as error:
            self.store.remove_held(key)
            _warn(f"{self.store.folder} does not take the sub-FM, the run goes on without: {error}")


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors to a file; what the disk does not take is an OSError, as with any other file."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _checksum(tensors: Path, content: Mapping[str, Any]) -> str:
    """Return the digest of an entry: the tensors' file, read piece by piece, and all else in `entry.json`."""
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
    digest.update(canonical_json(content))
    return digest.hexdigest()


def _warn(message: str) -> None:
    warnings.warn(f"sub-FM cache: {message}", stacklevel=2)
