"""Commands for the jobs of a Ray cluster: submit a run, follow it, stop it."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedpft.cli.arguments import ConfigPath, Overrides, Resume
from fedpft.config import load_config
from fedpft.interrupt import Interrupted

if TYPE_CHECKING:  # Ray is loaded after the config was checked
    from fedpft.simulation.jobs import Jobs

jobs_app = typer.Typer()

Dashboard = Annotated[
    str,
    typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="URL of the cluster's dashboard."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="What `fedpft submit` printed.")]
Detach = Annotated[bool, typer.Option("--detach", help="Only print the job's id; do not follow its log.")]
Python = Annotated[str, typer.Option("--python", help="The cluster's, where its Ray does not find it by name.")]
DriverCpus = Annotated[float, typer.Option("--num-cpus", min=0, help="Cores to reserve for the driver, on any node.")]
DriverGpus = Annotated[float, typer.Option("--num-gpus", min=0, help="GPUs to reserve for the driver, on any node.")]

LOCAL_DASHBOARD = "http://127.0.0.1:8265"


@jobs_app.command()
def submit(
    config_path: ConfigPath,
    overrides: Overrides = None,
    address: Dashboard = LOCAL_DASHBOARD,
    resume: Resume = False,
    detach: Detach = False,
    python: Python = "python",
    num_cpus: DriverCpus = 0,
    num_gpus: DriverGpus = 0,
) -> None:
    """Run an experiment as a job of a Ray cluster, driver included; follow its log, end with its exit code."""
    config = load_config(config_path, overrides or [])
    from fedpft.simulation.jobs import Jobs

    jobs = Jobs(address)
    job_id = jobs.submit(config, resume=resume, python=python, driver_cpus=num_cpus, driver_gpus=num_gpus)
    if detach:
        print(job_id)
        return
    folder = Path(config.output_dir)
    print(f"job         {job_id}", f"run folder  {folder if folder.is_absolute() else Path('~', folder)}", sep="\n")
    _follow(jobs, job_id)


@jobs_app.command()
def follow(job_id: JobId, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Show the log of a submitted run from its beginning, until it ends; end with its exit code."""
    from fedpft.simulation.jobs import Jobs

    _follow(Jobs(address), job_id)


@jobs_app.command()
def stop(job_id: JobId, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Stop a submitted run; it keeps its checkpoint, and `fedpft submit --resume` goes on from there."""
    from fedpft.simulation.jobs import Jobs

    was_running = Jobs(address).stop(job_id)
    print(f"{job_id}: {'stopped' if was_running else 'was not running'}")


def _follow(jobs: "Jobs", job_id: str) -> NoReturn:
    """Show the job's log; exit with its code, or with 1 when the cluster is out of reach."""
    goes_on = f"the job goes on; see it with: fedpft follow {job_id}"
    try:
        code = jobs.follow(job_id, partial(print, end="", flush=True), partial(print, file=sys.stderr))
    except ConnectionError as error:
        print(f"error: {error}; {goes_on}", file=sys.stderr)
        code = 1
    except Interrupted as interrupted:
        interrupted.add_note(f"; {goes_on}, end it with: fedpft stop {job_id}")
        raise
    raise typer.Exit(code)
