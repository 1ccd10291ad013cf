"""The folders of the cache: which there are, who uses them, which go. Without torch, so that listing is quick.

<cache>/<key>/       an entry: sub_fm.safetensors and entry.json; its time of modification is its last use
<cache>/.<key>/      an entry being written, or what a killed builder left of one
<cache>/<key>.lock   held while the entry is built, read or removed; the empty file stays
<cache>/data/        the same once more, of training data prepared on disk; who maps a file holds a shared lock on it
<cache>/images/, <cache>/data/digests/    notes that save time
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedpft.config import ConfigError
from fedpft.data.sources.in_use import DATA_FOLDER, is_held

TENSORS_FILE = "sub_fm.safetensors"
ENTRY_FILE = "entry.json"
_NOTES = ("images", f"{DATA_FOLDER}/digests")
_KEY_BYTES = 16
_FOLDER_NAME = re.compile(rf"\.?([0-9a-f]{{{2 * _KEY_BYTES}}})")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of one key without reading its tensors."""

    key: str
    num_bytes: int
    """On disk, with what a killed builder left."""
    last_used: float
    """Unix time in seconds."""
    content: Mapping[str, Any]
    """`entry.json`; empty if the entry is unfinished or damaged."""


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """What :meth:`Store.clear` did."""

    num_entries: int
    num_bytes: int
    num_in_use: int
    """Entries that were left, because a run builds, reads or maps them."""


def cache_dir(configured: str | None) -> Path:
    """Return the cache's folder: the configured one, else `$FEDPFT_CACHE`, else `~/.cache/fedpft`."""
    return Path(os.path.expanduser(configured or os.environ.get("FEDPFT_CACHE") or "~/.cache/fedpft"))


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """Return the same bytes for equal contents, whatever the order of their keys."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def key_of(ingredients: Mapping[str, Any]) -> str:
    """Return the key of the entry with these ingredients: 32 hex digits."""
    return hashlib.blake2b(canonical_json(ingredients), digest_size=_KEY_BYTES).hexdigest()


class Store:
    """A cache's folder. Every method is safe beside other processes that use the same one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry_folder(self, key: str) -> Path:
        """Where the entry is, if it is there."""
        return self.folder / key

    def unfinished_folder(self, key: str) -> Path:
        """Where the holder of the key's lock writes the entry, before it is renamed to :meth:`entry_folder`."""
        return self.folder / f".{key}"

    def lock(self, key: str) -> FileLock:
        """Return the key's lock, not yet held; the system releases it when its holder dies."""
        return FileLock(self.folder / f"{key}.lock")

    def entries(self) -> list[Entry]:
        """Return all entries, the last used first; those that others remove meanwhile may be missing."""
        names = (path.name for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        keys = {match[1] for name in names if (match := _FOLDER_NAME.fullmatch(name))}
        found = [entry for key in sorted(keys) if (entry := self._entry(key)) is not None]
        return sorted(found, key=lambda entry: entry.last_used, reverse=True)

    def touch(self, key: str) -> None:
        """Note that the entry was used now."""
        os.utime(self.entry_folder(key))

    def evict(self, max_bytes: int, keep: str) -> None:
        """Remove the least recently used entries, but not `keep` nor any in use, until `max_bytes` are left."""
        entries = self.entries()
        total = sum(entry.num_bytes for entry in entries)
        for entry in reversed(entries):
            if total <= max_bytes:
                return
            if entry.key != keep and self._remove(entry.key):
                total -= entry.num_bytes

    def clear(self, prefixes: Sequence[str] = ()) -> Cleared:
        """Remove the entries whose keys start with one of the prefixes, or all; those in use are left.

        Raises:
            ConfigError: a prefix of no key.

        """
        entries = self.entries()
        for prefix in prefixes:
            if not any(entry.key.startswith(prefix) for entry in entries):
                raise ConfigError(f"KEY_PREFIX: found {prefix!r}, allowed: the start of a key in {self.folder}")
        chosen = [entry for entry in entries if not prefixes or entry.key.startswith(tuple(prefixes))]
        removed = [entry for entry in chosen if self._remove(entry.key)]
        num_bytes = sum(entry.num_bytes for entry in removed)
        return Cleared(num_entries=len(removed), num_bytes=num_bytes, num_in_use=len(chosen) - len(removed))

    def remove_held(self, key: str) -> None:
        """Remove the entry and anything unfinished; the caller holds the lock."""
        for path in (self.entry_folder(key), self.unfinished_folder(key)):
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # damage may have made it a file
                path.unlink()

    def _remove(self, key: str) -> bool:
        """Remove the entry unless somebody holds its lock or the folder cannot be changed; say whether it is gone."""
        try:
            with self.lock(key).acquire(blocking=False):
                if any(is_held(file) for file in self.entry_folder(key).glob("*.arrow")):
                    return False
                self.remove_held(key)
        except (Timeout, OSError):
            return False
        return not self.entry_folder(key).exists()

    def _entry(self, key: str) -> Entry | None:
        folders = [path for path in (self.entry_folder(key), self.unfinished_folder(key)) if path.is_dir()]
        try:
            num_bytes = sum(file.stat().st_size for folder in folders for file in _files(folder))
            last_used = max(folder.stat().st_mtime for folder in folders)
        except (OSError, ValueError):  # removed meanwhile
            return None
        return Entry(key=key, num_bytes=num_bytes, last_used=last_used, content=self._content(key))

    def _content(self, key: str) -> Mapping[str, Any]:
        try:
            content = json.loads((self.entry_folder(key) / ENTRY_FILE).read_bytes())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def clear_cache(folder: Path, prefixes: Sequence[str] = ()) -> tuple[Cleared, Cleared]:
    """Remove sub-FMs and prepared data whose keys start with one of the prefixes, or all, and all notes.

    Returns:
        What became of the sub-FMs and of the prepared data.

    Raises:
        ConfigError: a prefix of no key.

    """
    stores = Store(folder), Store(folder / DATA_FOLDER)
    keys = [[entry.key for entry in store.entries()] for store in stores]
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in (*keys[0], *keys[1])):
            raise ConfigError(f"KEY_PREFIX: found {prefix!r}, allowed: the start of a key in {folder}")
    if not prefixes:
        for notes in _NOTES:
            shutil.rmtree(folder / notes, ignore_errors=True)
    cleared = []
    for store, own in zip(stores, keys, strict=True):
        chosen = [prefix for prefix in prefixes if any(key.startswith(prefix) for key in own)]
        nothing = Cleared(num_entries=0, num_bytes=0, num_in_use=0)
        cleared.append(store.clear(chosen) if chosen or not prefixes else nothing)
    return cleared[0], cleared[1]


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())
