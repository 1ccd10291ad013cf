"""What the three programs share: how a case is played, and how its end is counted.

A case is a drawn input and what users do with it, by the commands themselves: `plan`, `run`, `resume`, `export` and so
on, in this process. It may get through, or end in one line that says what to change; whatever else comes out of it
would be a traceback on a user's screen.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import ViTImageProcessorPil

from fedpft.cli.main import app
from fedpft.config import ConfigError
from fedpft.interrupt import RunStoppedError, lack_of_memory
from fedpft.storage.checkpoint import Checkpoints
from tests.tiny import IMAGE_FAMILIES, TINY_RUN, tiny_causal_run, tiny_fm, tiny_text_run

RESULTS = Path(__file__).parents[2] / "results" / "robustness"
MAX_SECONDS = 60
ENDS = ("got through", "refused in one line", "tracebacks", "not finished in time")
SHORT = [
    *TINY_RUN, "federated.rounds=2", "cache.enabled=false", "align.neurons.kind=none", "method.adapter_layers=1",
    "evaluation.fidelity_examples=4",
]  # fmt: skip
"""A run of two rounds, and of a second."""


class TooLongError(BaseException):
    """A case that asks for more work than a test has time for."""


def write_inputs(folder: Path, family: str, kind: str) -> list[str]:
    """Write an FM of a family and data of a kind of task; return a run's settings."""
    if kind == "causal_lm":
        return [*tiny_causal_run(folder, family), *SHORT]
    if family not in IMAGE_FAMILIES:
        return [*tiny_text_run(folder, family), *SHORT]
    tiny_fm(family).save_pretrained(folder / "fm")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "fm")
    rng = np.random.default_rng(0)
    for split, count in (("task/train", 12), ("task/validation", 8), ("public/train", 8)):
        for index in range(count):
            path = folder / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return [
        f"fm.path={folder / 'fm'}",
        f"task={{name: custom, path: {folder / 'task'}, image_column: image, label_column: label}}",
        f"public={{name: custom, path: {folder / 'public'}, image_column: image}}",
        f"output_dir={folder / 'out'}",
        *SHORT,
    ]


def command(*words: object) -> None:
    """Run a command as its user would.

    Raises:
        click.exceptions.Exit: its exit code is not 0.

    """
    if code := app([str(word) for word in words], standalone_mode=False):
        raise click.exceptions.Exit(code)


def use(folder: Path, settings: list[str], draw: random.Random, text: str = "{}") -> None:
    """Plan a run, run it, now and then resume what a kill would leave, and export it; `text` is that of the config."""
    base, out = folder / "base.yaml", folder / "out"
    base.write_text(f"{text}\n", encoding="utf-8")
    command("plan", base, *settings)
    killed = draw.random() < 0.4
    with mock.patch.object(Checkpoints, "discard") if killed else contextlib.nullcontext():
        command("run", base, *settings)
    if killed:
        (out / "result.json").unlink()
        if draw.random() < 0.7:  # else in the last step of all
            shutil.rmtree(max((out / "checkpoints").glob("round-*"), default=out / "none"), ignore_errors=True)
        if draw.random() < 0.5:
            with contextlib.suppress(ConfigError):  # it has no result
                command("export", out, "--out", folder / "unfinished")
        command("resume", out)
    command("export", out, *["--merge"] * (draw.random() < 0.5))


@contextlib.contextmanager
def without_ray() -> Any:
    """Let trials of sweeps and suites be played one after the other in this process."""

    def run_trials(sweep: Any, trials: Any, play: Any, watcher: Any, *, restore: bool = False) -> Any:
        ended = []
        for trial in trials:
            watcher.trial_started(trial.name)
            try:
                play(trial, lambda index, value, score, name=trial.name: watcher.trial_reported(name, index, value))
                ended.append((trial, None))
            except (ConfigError, RunStoppedError) as error:
                ended.append((trial, str(error)))
            watcher.trial_ended(trial.name, failed=ended[-1][1] is not None)
        return ended

    with mock.patch("fedpft.simulation.sweep.run_trials", run_trials):
        yield


def end_of(play: Callable[[], None]) -> tuple[str, str]:
    """Play a case; return how it ended in a word, and what was said."""
    try:
        play()
    except (ConfigError, RunStoppedError, click.ClickException) as error:
        said = error.message if isinstance(error, click.ClickException) else str(error)
        return ("refused in one line", said) if "\n" not in said else ("tracebacks", f"more than a line: {said}")
    except click.exceptions.Exit as code:
        return "refused in one line", f"exit code {code.exit_code}"
    except TooLongError:
        return "not finished in time", ""
    except BaseException as error:
        short = lack_of_memory(error)
        return ("refused in one line", short) if short else ("tracebacks", traceback.format_exc())
    return "got through", ""


def play_all(name: str, attempt: Callable[[Path, random.Random], tuple[str, Callable[[], None]]]) -> int:
    """Play the cases that the command line asks for, print each, and write how many ended how.

    Args:
        name: of the file of results.
        attempt: writes a drawn case into a folder; returns it in words, and what plays it.

    Returns:
        1 if there was a traceback, else 0.

    """
    number, seed = (int(argument) for argument in (*sys.argv[1:], *("300", "0")[len(sys.argv) - 1 :]))
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def stop(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, stop)
    ends: Counter[str] = Counter()
    start, home = time.perf_counter(), os.getcwd()
    for index in range(number):
        draw = random.Random(f"{seed}/{index}")
        quiet = io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                case, play = attempt(Path(folder), draw)
                with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), without_ray():
                    signal.alarm(MAX_SECONDS)
                    end, said = end_of(play)
            finally:
                signal.alarm(0)
                os.chdir(home)
        ends[end] += 1
        print(f"{index}: {case}\n    {end}: {said}", flush=True)
        counts = {word: ends[word] for word in ENDS}  # written each time: whoever stops it has what was tried
        found = {"tried": index + 1, **counts, "seed": seed, "seconds": round(time.perf_counter() - start)}
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(found)
    return int(ends["tracebacks"] > 0)
