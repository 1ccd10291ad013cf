"""Where the server's side of a run works: in this process, or in one on a node that has its GPUs.

The server's side is all but the clients: FM, public data, construction, alignment, aggregation, evaluation, files. It
moves as a whole, so that a run has one path wherever it works, and the FM is loaded where it is used and never sent.
"""

from functools import partial

import torch

from fedpft.config import Config
from fedpft.federated.observer import RunObserver
from fedpft.run.pipeline import RunResult, run
from fedpft.run.resume import go_on


def launch(config: Config, observer: RunObserver, *, resume: bool = False) -> RunResult:
    """Run an experiment where `server.num_gpus` says, and wait for its end.

    Args:
        config: the run's.
        observer: hears what happens.
        resume: go on with what is in `config.output_dir`, if there is something.

    Raises:
        ConfigError: as :func:`fedpft.run.pipeline.run`; or no node has so many GPUs.
        RunStoppedError: as the driver; or the server's process ended.

    """
    if torch.cuda.device_count() >= config.server.num_gpus:
        return serve(config, observer, resume=resume)
    from fedpft.simulation.server import serve_elsewhere

    return serve_elsewhere(partial(serve, resume=resume), config, observer)


def serve(config: Config, observer: RunObserver, *, resume: bool) -> RunResult:
    """Run an experiment, or go on with it, in this process."""
    return go_on(config, observer, observer.note) if resume else run(config, observer)
