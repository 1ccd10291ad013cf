"""The server's side of a run in a process on a node with GPUs; this process follows what happens there.

    here                                          a node with the server's GPUs
    serve_elsewhere --- config ------------->     _serve: loads the FM there, starts the actors, runs all rounds
    observer  <--- what it hears, by a queue ---  _Relay
    Ctrl-C    ---- ray.cancel --------------->    Interrupted: last checkpoint, actors closed
    result    <-----------------------------      the FM stays: neither the queue nor the result has a tensor of it

Ray knows the process as a task, not as an actor: a task can be interrupted in the middle of what it does.
"""

import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Queue

from fedpft.config import Config, ConfigError
from fedpft.federated.messages import ClientUpdate
from fedpft.federated.observer import RunObserver
from fedpft.interrupt import Interrupted, RunStoppedError, interruptible
from fedpft.simulation.cluster import cluster_nodes, connect
from fedpft.simulation.reasons import reason

STOP_SECONDS = 120
"""For the last checkpoint and the end of the actors, after an interrupt."""
PATIENCE_SECONDS = 20.0
"""With a process that does not start, before it is told; most of them need a few for their imports."""
_LOOK_SECONDS = 0.1
"""How often to look what happened, and how often a stage's progress is told."""

Result = TypeVar("Result")
Serve = Callable[[Config, RunObserver], Result]


def serve_elsewhere(serve: Serve[Result], config: Config, observer: RunObserver, num_gpus: float) -> Result:
    """Call `serve(config, observer)` in a process on a node that has so many GPUs free, and wait for its end.

    Relative folders start at this process' working folder, or at the home folder where that node has no such folder.

    Args:
        serve: the server's side; travels to the process.
        config: the run's.
        observer: hears here what happens there.
        num_gpus: that the process claims.

    Raises:
        ConfigError: no node has so many GPUs, or none is free in `pool.start_timeout_seconds`.
        RunStoppedError: the process ended before the run.

    """
    if config.pool.address is None and not ray.is_initialized() and num_gpus > torch.cuda.device_count():
        own = f"at most {torch.cuda.device_count()}, the GPUs of this machine"
        raise _refusal(num_gpus, f"{own}; for a cluster's say pool.address")
    owned = connect(config.pool.address)
    try:
        largest = max((node.gpus for node in cluster_nodes() if node.cpus >= 1), default=0)
        if largest < num_gpus:
            raise _refusal(num_gpus, f"at most {largest:g}, the GPUs of the cluster's largest node")
        events = Queue(actor_options={"num_cpus": 0})
        remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(_serve)
        task = remote.remote(serve, config, events, os.getcwd())
        try:
            _follow(task, events, config, observer, num_gpus)
        except BaseException:
            ray.cancel(task, recursive=False)
            ray.wait([task], timeout=STOP_SECONDS)
            raise
        return _result(task, config)
    finally:
        if owned:
            ray.shutdown()


def _follow(task: "ray.ObjectRef[Any]", events: Queue, config: Config, observer: RunObserver, num_gpus: float) -> None:
    """Tell the observer what happens until the task ends."""
    start, has_started, has_said = time.monotonic(), False, False
    hear = {"warning": partial(warnings.warn, stacklevel=3)}
    ended = False
    while not ended:
        ended = bool(ray.wait([task], timeout=_LOOK_SECONDS)[0])
        for event, arguments in events.get_nowait_batch(events.qsize()):
            has_started = True
            (hear.get(event) or getattr(observer, event))(*arguments)
        waited = 0.0 if has_started else time.monotonic() - start
        if waited > PATIENCE_SECONDS and not has_said:
            observer.note(f"server  waits for a process with 1 CPU + {num_gpus:g} GPU on one node")
            has_said = True
        if waited > config.pool.start_timeout_seconds:
            allowed = f"what a node has free; waited {waited:.0f} s (pool.start_timeout_seconds)"
            raise _refusal(num_gpus, allowed)


def _result(task: "ray.ObjectRef[Any]", config: Config) -> Any:
    """Return what the run gave, or raise what a run here would have raised."""
    go_on = f"go on with: fedpft resume {config.output_dir}"
    try:
        result = ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError | RunStoppedError | OSError):
            raise error.cause from None
        raise
    except RayError as error:
        raise RunStoppedError(f"the server's process ended ({reason(error)}); {go_on}") from error
    if result is None:
        raise RunStoppedError(f"the server's process was told to end; {go_on}")
    return result


def _serve(serve: Serve[Result], config: Config, events: Queue, home: str) -> Result | None:
    """Serve in the process that Ray started for it; None: it was interrupted."""
    os.chdir(home if Path(home).is_dir() else Path.home())
    # Ray has set one thread, as for a client
    torch.set_num_threads(config.server.num_threads or psutil.cpu_count(logical=False) or 1)
    relay = _Relay(events)
    relay.note(f"server  on {platform.node()}, run folder {Path(config.output_dir).resolve()}")
    with warnings.catch_warnings():
        warnings.showwarning = relay.show_warning  # type: ignore[assignment]
        try:
            with interruptible():
                return serve(config, cast(RunObserver, relay))
        except Interrupted:
            return None


class _Relay:
    """A `RunObserver` that puts what it hears into a queue, as (event, arguments)."""

    def __init__(self, events: Queue) -> None:
        self._events, self._next_progress = events, 0.0

    def __getattr__(self, event: str) -> Callable[..., None]:
        assert hasattr(RunObserver, event), event
        return partial(self._tell, event)

    def stage(self, title: str) -> None:
        self._next_progress = 0.0
        self._tell("stage", title)

    def progress(self, done: int, total: int, *metrics: Any) -> None:
        """Tell a part of many steps: the first, the last, and some between."""
        if done == total or time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + _LOOK_SECONDS
            self._tell("progress", done, total, *metrics)

    def client_finished(self, update: ClientUpdate) -> None:
        """Tell all but what was learned: who watches wants numbers."""
        self._tell("client_finished", replace(update, adapter=update.adapter[:0], counts=None, masked=None))

    def show_warning(self, message: Warning | str, category: type[Warning], *_: Any) -> None:
        """Tell our own warnings; the libraries' stay in this process' log."""
        if category is UserWarning:
            self._tell("warning", str(message))

    def _tell(self, event: str, *arguments: Any) -> None:
        self._events.put((event, arguments))


def _refusal(num_gpus: float, allowed: str) -> ConfigError:
    return ConfigError(f"server.num_gpus: found {num_gpus:g}, allowed: {allowed}")
