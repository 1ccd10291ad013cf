"""Runs as jobs of a Ray cluster: the driver runs there, this machine packs config and code and follows the log.

Everything goes over HTTP to the head's dashboard, so that the run does not end with this machine's connection.
"""

import asyncio
import logging
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from fedpft.config import Config, ConfigError, dump_config
from fedpft.config.loading import resolved
from fedpft.storage.output import JOB_FOLDER

STOP_SECONDS = 120
"""From SIGTERM to SIGKILL: a run writes its last checkpoint in between (Ray's own limit is 3 s)."""
STOPPED_EXIT_CODE = 143
"""Of a job that was stopped, as if it had been here: 128 + SIGTERM."""

_TALKATIVE = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that tell of every upload and closed connection."""
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 10
"""With a job that does not start, before the reason is shown."""
_CONFIG_FILE = "config.yaml"


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the head's dashboard, e.g. `http://127.0.0.1:8265`.

    Raises:
        ConfigError: nobody answers there, or wants a token that we do not have.

    """

    def __init__(self, address: str) -> None:
        if not re.match(r"https?://[^/]", address):
            raise _refusal(address, "it is not a URL")
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it to the argument, whoever set it
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(address)
        except AuthenticationError:
            reason = "it wants a token: export RAY_AUTH_MODE=token and put the cluster's into ~/.ray/auth_token"
            raise _refusal(address, reason) from None
        except (OSError, RuntimeError, ValueError, KeyError) as error:  # the last two: something that is no Ray
            raise _refusal(address, _first_line(error)) from None

    def submit(
        self,
        config: Config,
        *,
        resume: bool = False,
        python: str = "python",
        driver_cpus: float = 0.0,
        driver_gpus: float = 0.0,
    ) -> str:
        """Send config and code; return the id of the job, which is `fedpft run` on the cluster.

        Relative folders of the config are taken from the home folder of the cluster's user. Actors get the same code.

        Args:
            config: the run's; its pool joins the cluster, whatever `pool.address` says.
            resume: go on from the newest checkpoint in `output_dir`.
            python: interpreter on the cluster, a path or found in the PATH of its Ray.
            driver_cpus: cores reserved for the driver; with these or GPUs it may run on any node that has them, else
                it runs on the head.
            driver_gpus: GPUs reserved for the driver; `server.num_gpus` if that is more. The driver then is where the
                server's side belongs.

        """
        driver_gpus = max(driver_gpus, config.server.gpu_claim)
        config = resolved(replace(config, pool=replace(config.pool, address="auto")))
        if driver_gpus:  # the job claims them
            config = replace(config, server=replace(config.server, num_gpus=0.0))
        command = f"{shlex.quote(python)} -m fedpft.cli run $config{' --resume' if resume else ''}"
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, _CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
            return self._client.submit_job(
                # the working folder is a copy that Ray removes
                entrypoint=f"config=$PWD/{_CONFIG_FILE}; cd ~ && exec {command}",
                submission_id=f"{re.sub(r'[^A-Za-z0-9_-]+', '-', config.name)}-{secrets.token_hex(4)}",
                metadata={JOB_FOLDER: config.output_dir},
                runtime_env={
                    "working_dir": folder,
                    "py_modules": [str(Path(__file__).parents[1])],
                    "excludes": ["__pycache__"],
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                },
                entrypoint_num_cpus=driver_cpus or None,
                entrypoint_num_gpus=driver_gpus or None,
            )

    def follow(self, job_id: str, write: Callable[[str], None], say: Callable[[str], None]) -> int:
        """Pass on all of the job's log until it ends; return its exit code.

        Args:
            job_id: the job's.
            write: takes the log, in pieces with their line ends.
            say: takes a line when the job has to wait, and when Ray ended it.

        Raises:
            ConfigError: there is no such job.
            ConnectionError: the cluster cannot be reached any more; the job goes on.

        """
        self._wait_for_start(job_id, say)
        try:
            asyncio.run(self._tail(job_id, write))
        except Exception as error:  # of aiohttp, of Ray
            raise ConnectionError(f"{job_id}: its log broke off: {_first_line(error)}") from error
        info = self._wait_for_end(job_id)
        if info.status == JobStatus.STOPPED:
            return STOPPED_EXIT_CODE
        if info.driver_exit_code is None:  # no process of ours ever ended: its environment, its node
            say(f"{job_id}: {info.message or info.status}")
            return 1
        return info.driver_exit_code

    def stop(self, job_id: str) -> bool:
        """Send the job SIGTERM and wait for its end; return whether it was running.

        Raises:
            ConfigError: there is no such job.
            ConnectionError: the cluster cannot be reached any more.

        """
        self._info(job_id)
        was_running = self._client.stop_job(job_id)
        self._wait_for_end(job_id)
        return was_running

    async def _tail(self, job_id: str, write: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job_id):
            write(text)

    def _wait_for_start(self, job_id: str, say: Callable[[str], None]) -> None:
        patient_until, said = time.monotonic() + _PATIENCE_SECONDS, None
        while (info := self._info(job_id)).status == JobStatus.PENDING:
            if time.monotonic() > patient_until and info.message != said:
                say(f"{job_id}: {info.message}")
                said = info.message
            time.sleep(_POLL_SECONDS)

    def _wait_for_end(self, job_id: str) -> JobDetails:
        while not (info := self._info(job_id)).status.is_terminal():
            time.sleep(_POLL_SECONDS)
        return info

    def _info(self, job_id: str) -> JobDetails:
        try:
            return self._client.get_job_info(job_id)
        except (OSError, RuntimeError) as error:
            if "does not exist" in str(error):
                raise ConfigError(f"JOB_ID: found {job_id!r}, allowed: a job of this cluster") from None
            raise ConnectionError(f"{job_id}: {_first_line(error)}") from error


def token_headers() -> Mapping[str, str]:
    """Return what a request to a dashboard carries where RAY_AUTH_MODE=token: Ray finds the token, or there is none."""
    return get_auth_headers_if_auth_enabled({})


def _refusal(address: str, reason: str) -> ConfigError:
    allowed = "the URL of the head's dashboard, e.g. http://127.0.0.1:8265"
    return ConfigError(f"--address: found {address!r}, allowed: {allowed}; {reason}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
