"""Digests of files, remembered by size and time of change, as a version control's index does, and of processors."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from transformers import BaseImageProcessor, PreTrainedTokenizerBase

DIGEST_BYTES = 16


def file_digest(path: Path) -> str:
    """Return 32 hex digits over a file's bytes; some seconds for 5 GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def file_digests(paths: Iterable[Path], memory: Path) -> dict[str, str]:
    """Return the digest of each file by its path; only of files that changed since `memory` was written it is computed.

    `memory` is a folder of notes, one for each set of paths; nothing is lost with it but time.
    """
    every = sorted(map(str, paths))
    note = memory / f"{hashlib.blake2b(chr(0).join(every).encode(), digest_size=DIGEST_BYTES).hexdigest()}.json"
    known: dict[str, list[object]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text(encoding="utf-8"))
    now: dict[str, list[object]] = {}
    for path in every:
        stat = os.stat(path)
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        before = known.get(path, [])
        now[path] = before if before[:-1] == state else [*state, file_digest(Path(path))]
    if now != known:
        with suppress(OSError):  # it only saves time
            memory.mkdir(parents=True, exist_ok=True)
            temporary = note.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(now), encoding="utf-8")
            temporary.replace(note)
    return {path: str(state[-1]) for path, state in now.items()}


def processor_digest(processor: PreTrainedTokenizerBase | BaseImageProcessor) -> str:
    """Return a digest of the files of a tokenizer or an image processor."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with tempfile.TemporaryDirectory(prefix="fedpft-") as folder:
        processor.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*.*")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
