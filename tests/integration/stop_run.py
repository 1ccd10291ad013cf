"""Runs that end without a word at chosen moments: `python -m tests.integration.stop_run JSON`.

JSON: a list of [config file, class of this module, round]. Each run is a process of its own that kills itself.
"""

import json
import os
import signal
import sys

import torch

import fedpft.storage.checkpoint
from fedpft.config import load_config
from fedpft.federated.observer import SilentObserver
from fedpft.run.pipeline import run


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


class AfterCheckpoint(SilentObserver):
    """Dies when the checkpoint of a round is written and the next round begins."""

    def __init__(self, after):
        self.after = after

    def round_started(self, round_index, num_rounds, client_ids):
        if round_index == self.after + 1:
            die()


class BeforeCheckpoint(SilentObserver):
    """Dies when the round after is tracked but in no checkpoint."""

    def __init__(self, after):
        self.after = after

    def round_finished(self, record):
        if record["round"] == self.after + 1:
            die()


class WithinCheckpoint(BeforeCheckpoint):
    """Dies half-way through the checkpoint of the round after."""

    def round_finished(self, record):
        if record["round"] == self.after + 1:
            fedpft.storage.checkpoint._write_state = die


if __name__ == "__main__":
    torch.set_num_threads(1)
    for config, moment, after in json.loads(sys.argv[1]):
        child = os.fork()  # libraries are imported once for all
        if child == 0:
            run(load_config(config), globals()[moment](after))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{config}: ended by itself"
