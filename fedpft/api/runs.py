"""A run from Python: the config, perhaps data and a method of one's own, and a result."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fedpft.api.data import own_data
from fedpft.api.quiet import quiet_libraries
from fedpft.api.result import Result
from fedpft.config import Config, doubtful_settings, load_config, resolved
from fedpft.data.sources.memory import GivenData
from fedpft.federated.observer import RunObserver, SilentObserver
from fedpft.interrupt import unmasked
from fedpft.methods.base import Method
from fedpft.report.notebook import NotebookScreen
from fedpft.report.screen import Screen
from fedpft.run.launch import launch


def run(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    data: Any = None,
    method: Callable[..., Method] | None = None,
    resume: bool = False,
    progress: bool | RunObserver = True,
) -> Result:
    """Run an experiment: construct, align, tune federatedly, plug in, evaluate; files go to `config.output_dir`.

    The same as `fedpft run` with the same settings, bit for bit.

    Args:
        config: settings, or the YAML file that holds them.
        overrides: of a file: `key=value`, e.g. `federated.rounds=4`.
        data: own data in memory, see :mod:`fedpft.api.data`: a table (a `datasets.Dataset`, a DataFrame, a list of
            rows, a torch `Dataset`), tables by `train` or `clients`, `validation` and `public`, or a
            LightningDataModule. None: what `task` and `public` say.
        method: own method: a class with the protocol `fedpft.methods.base.Method` that this process can import, or one
            of the notebook's; stands in the config as `method.name`.
        resume: go on with what is in `config.output_dir`, if there is something; data in memory are given again.
        progress: live bars in a notebook and on a terminal, lines elsewhere; False: nothing; or an observer of one's
            own, which hears every event.

    Raises:
        ConfigError: a setting or data that cannot work, in one line, before anything is trained.
        RunStoppedError: going on made no sense; the message says why.

    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    elif overrides:
        raise ValueError("overrides: allowed with a config file; use dataclasses.replace on a Config")
    if method is not None:
        name = f"{method.__module__}:{getattr(method, '__qualname__', method)}"
        config = replace(config, method=replace(config.method, name=name))
    given: GivenData | None = None
    if data is not None:
        with quiet_libraries():
            config, given = own_data(config, data)
    config = resolved(config)
    for line in doubtful_settings(config) if progress is True else ():
        warnings.warn(line, stacklevel=2)
    with unmasked(), quiet_libraries(), _watching(progress) as observer:
        finished = launch(config, observer, resume=resume, given=given)
    if clients := finished.result.get("never_trained"):
        warnings.warn(f"{len(clients)} clients never got an update through: {clients[:10]}", stacklevel=2)
    return Result(config.output_dir)


def _watching(progress: bool | RunObserver) -> AbstractContextManager[RunObserver]:
    if not isinstance(progress, bool):
        return nullcontext(progress)
    if not progress:
        return nullcontext(SilentObserver())
    console = Console()
    return NotebookScreen() if console.is_jupyter else Screen(console)
