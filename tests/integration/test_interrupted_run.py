"""Ctrl-C, SIGTERM and a closing terminal, to all processes of a run: a resumable checkpoint stays, no process does."""

import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fedpft.storage.checkpoint import load_newest
from tests.tiny import tiny_text_run

MAX_SECONDS = 300
"""After so long it hangs; alone it takes 2 seconds."""


def start(folder, *overrides):
    """Start a run of 1000 rounds from the command line, as the leader of a process group."""
    command = [sys.executable, "-m", "fedpft.cli", "run", str(folder / "empty.yaml"), *tiny_text_run(folder)]
    (folder / "empty.yaml").write_text("seed: 1\n")
    return subprocess.Popen(
        [*command, "federated.rounds=1000", "evaluation.interval=1000", "align.layers.kind=none", *overrides],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_rounds(folder, process, number):
    deadline = time.monotonic() + MAX_SECONDS
    rounds = folder / "out/rounds.jsonl"
    while not rounds.exists() or len(rounds.read_text().splitlines()) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.05)


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize(
    ("pool", "number", "code"),
    [
        pytest.param("sequential", signal.SIGINT, 130, marks=pytest.mark.cluster),
        ("sequential", signal.SIGTERM, 143),
        pytest.param("sequential", signal.SIGHUP, 129, marks=pytest.mark.cluster),
        pytest.param("ray", signal.SIGINT, 130, marks=pytest.mark.cluster),
        pytest.param("ray", signal.SIGTERM, 143, marks=pytest.mark.cluster),
    ],
)
def test_an_interrupted_run_can_go_on_and_leaves_no_process(tmp_path, pool, number, code):
    process = start(tmp_path, f"pool.kind={pool}", "pool.actors=1", "pool.cpus_per_actor=0.5")
    try:
        wait_for_rounds(tmp_path, process, 2)
        started = psutil.Process(process.pid).children(recursive=True)
        assert bool(started) == (pool == "ray")
        os.killpg(process.pid, number)  # what a terminal does, `timeout`, Slurm, systemd
        _, errors = process.communicate(timeout=MAX_SECONDS)
    finally:
        process.kill()
    assert process.returncode == code
    assert errors.splitlines() == [f"interrupted; go on with: fedpft resume {shlex.quote(str(tmp_path / 'out'))}"]
    _, alive = psutil.wait_procs(started, timeout=MAX_SECONDS)
    assert [child.name() for child in alive] == []
    rounds = len((tmp_path / "out/rounds.jsonl").read_text().splitlines())
    assert load_newest(tmp_path / "out/checkpoints").rounds_done in (rounds - 1, rounds)
