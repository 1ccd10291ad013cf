"""What a run keeps of each client between rounds, on disk: one file for a client and a round.

    output_dir/checkpoints/clients/client-12-round-7.safetensors

A file is there whole or not at all, and is on the disk before the round's checkpoint is. Which of a client's files is
its state is said by the checkpoint alone, so the writes of a round become true together with it: what is newer than the
checkpoint that a run goes on from never happened, and what one of the checkpoints may still need stays.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedpft.config import ConfigError
from fedpft.interrupt import RunStoppedError
from fedpft.storage.checkpoint import settle_folder

FOLDER = "clients"
"""In the folder of the checkpoints."""


class ClientStatesOnDisk:
    """Keeps arrays by client and round.

    Args:
        folder: of the run's checkpoints; the files go into a folder of their own there.
        rounds_done: with the checkpoint that the run goes on from; what is newer is removed.

    """

    def __init__(self, folder: Path, rounds_done: int = 0) -> None:
        self._folder = folder / FOLDER
        self._rounds: dict[int, list[int]] = defaultdict(list)
        for path in self._folder.glob("client-*"):
            _, client_id, _, round_index = path.name.removesuffix(".safetensors").split("-")
            if round_index.isdigit() and int(round_index) <= rounds_done:
                self._rounds[int(client_id)].append(int(round_index))
            else:
                path.unlink()

    def write(self, client_id: int, round_index: int, state: Mapping[str, np.ndarray]) -> None:
        """Keep a client's state of a round beside its earlier ones.

        Raises:
            RunStoppedError: the disk does not take it.

        """
        path = self._path(client_id, round_index)
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(dict(state), temporary, metadata={"checksum": _checksum(state)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(path)
            settle_folder(self._folder)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                temporary.unlink()
            reason = " ".join(str(error).split())
            raise RunStoppedError(f"the state of client {client_id} cannot be kept: {reason}") from error
        if round_index not in self._rounds[client_id]:
            self._rounds[client_id].append(round_index)

    def read(self, client_id: int, round_index: int) -> Mapping[str, np.ndarray]:
        """Return what was written for a client in a round.

        Raises:
            ConfigError: it is gone, or was altered.

        """
        path = self._path(client_id, round_index)
        try:
            with safe_open(path, "np") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                is_whole = (file.metadata() or {}).get("checksum") == _checksum(state)
        except (OSError, SafetensorError):
            is_whole = False
        if not is_whole:
            raise ConfigError(f"output_dir: found {str(path)!r} altered or gone, allowed: as the run wrote it")
        return state

    def forget(self, round_index: int) -> None:
        """Drop all that was written in a round."""
        for client_id, rounds in self._rounds.items():
            if round_index in rounds:
                self._drop(client_id, [round_index])

    def prune(self, oldest: int) -> None:
        """Drop what nobody needs who goes on after round `oldest` or a later one."""
        for client_id, rounds in self._rounds.items():
            newest = max((index for index in rounds if index <= oldest), default=0)
            self._drop(client_id, [index for index in rounds if index < newest])

    def _drop(self, client_id: int, rounds: list[int]) -> None:
        for round_index in rounds:
            self._path(client_id, round_index).unlink(missing_ok=True)
            self._rounds[client_id].remove(round_index)

    def _path(self, client_id: int, round_index: int) -> Path:
        return self._folder / f"client-{client_id}-round-{round_index}.safetensors"


def _checksum(state: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(state.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
