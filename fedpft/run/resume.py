"""What an output folder holds to go on from: a finished run, a checkpoint, or nothing."""

import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedpft.config import Config, ConfigError, changed_settings, load_config
from fedpft.data.sources.memory import GivenData
from fedpft.federated.observer import RunObserver
from fedpft.run.pipeline import RunResult, run, run_environment
from fedpft.storage.checkpoint import FOLDER, RunCheckpoint, load_newest
from fedpft.storage.lock import held


def go_on(
    config: Config,
    observer: RunObserver | None = None,
    say: Callable[[str], None] = lambda line: None,
    given: GivenData | None = None,
) -> RunResult:
    """Go on with the run in `config.output_dir`, or begin it; a finished one only gives its result.

    Args:
        config: the run's, perhaps with other settings of those that its numbers do not depend on.
        observer: hears what happens.
        say: takes a line about what was found.
        given: data that the caller has in memory; others than before are other settings, by their digest.

    Raises:
        ConfigError: see :func:`find_run` and `fedpft.run.pipeline.run`.

    """
    with nullcontext() if is_finished(config) else held(Path(config.output_dir)):
        found = find_run(config)  # under the lock: nobody goes on with it meanwhile
        if isinstance(found, RunResult):
            say(f"{config.output_dir}: the run is finished")
            return found
        after = f"going on after round {found.rounds_done}" if found else "no checkpoint, starting from the beginning"
        say(f"{config.output_dir}: {after}")
        return run(config, observer, found, given)


def is_finished(config: Config) -> bool:
    """Return whether the run in `config.output_dir` has its result: then nobody writes there, and it is only read."""
    return (Path(config.output_dir) / "result.json").exists()


def find_run(config: Config) -> RunResult | RunCheckpoint | None:
    """Return the result of the finished run in `config.output_dir`, or the checkpoint to go on from, or None.

    Raises:
        ConfigError: the folder's run has other settings, of those that its numbers depend on; all are named.

    """
    folder = Path(config.output_dir)
    if is_finished(config):
        _check_settings(asdict(load_config(folder / "config.yaml")), config)
        try:
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except ValueError as error:
            found = f"a result.json in {config.output_dir!r} that is not JSON ({error})"
            raise ConfigError(f"output_dir: found {found}, allowed: a whole one, or none") from None
        shown = [path for path in sorted(folder.iterdir()) if path.name != FOLDER and not path.name.startswith(".")]
        return RunResult(result, {path.stem: path for path in shown})
    checkpoint = load_newest(folder / FOLDER)
    if checkpoint is not None:
        _check_settings(checkpoint.config, config)
        _compare_environments(checkpoint.environment, run_environment(config))
    return checkpoint


def _check_settings(saved: Mapping[str, Any], config: Config) -> None:
    changed = changed_settings(saved, config)
    if changed:
        listed = "; ".join(changed)
        raise ConfigError(f"output_dir: the run in {config.output_dir!r} has other settings (saved -> now): {listed}")


def _compare_environments(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{key} {saved.get(key)} -> {now.get(key)}" for key in now if saved.get(key) != now[key]]
    if changed:
        message = f"resumed under other conditions, the last bits may differ: {', '.join(changed)}"
        warnings.warn(message, stacklevel=3)
