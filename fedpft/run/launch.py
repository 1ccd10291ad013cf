"""Where the server's side of a run works: in this process, or in one of Ray's that has claimed its GPUs.

It claims them where others may claim some, actors of this run or other users of a cluster; so nobody gets the same.

The server's side is all but the clients: FM, public data, construction, alignment, aggregation, evaluation, files. It
moves as a whole, so that a run has one path wherever it works, and the FM is loaded where it is used and never sent.
"""

from functools import partial

import torch

from fedpft.config import Config
from fedpft.config.gpus import server_claim
from fedpft.data.sources.memory import GivenData
from fedpft.federated.observer import RunObserver
from fedpft.run.pipeline import RunResult, run
from fedpft.run.resume import go_on


def launch(config: Config, observer: RunObserver, *, resume: bool = False, given: GivenData | None = None) -> RunResult:
    """Run an experiment where `server.num_gpus` says, and wait for its end.

    Args:
        config: the run's.
        observer: hears what happens.
        resume: go on with what is in `config.output_dir`, if there is something.
        given: data that the caller has in memory; they travel with the config.

    Raises:
        ConfigError: as :func:`fedpft.run.pipeline.run`; or no node has so many GPUs.
        RunStoppedError: as the driver; or the server's process ended.

    """
    visible = torch.cuda.device_count()
    num_gpus = server_claim(config, visible)
    shares = config.pool.kind == "ray" and (config.pool.gpu_claim > 0 or config.pool.address is not None)
    if num_gpus <= visible and not (num_gpus and shares):
        return serve(config, observer, resume=resume, given=given)
    from fedpft.simulation.server import serve_elsewhere

    return serve_elsewhere(partial(serve, resume=resume, given=given), config, observer, num_gpus)


def serve(config: Config, observer: RunObserver, *, resume: bool, given: GivenData | None = None) -> RunResult:
    """Run an experiment, or go on with it, in this process."""
    return go_on(config, observer, observer.note, given) if resume else run(config, observer, given=given)
