"""A Ray cluster as the dashboard of its head tells of it over HTTP; it is only read, and nothing here loads Ray.

    /api/jobs/           our jobs: state, reason, times
    /logical/actors      what each actor's process uses: the nodes' Prometheus endpoints have that by class alone,
                         and are mostly out of reach from outside
    /api/v0/logs/file    the end of a log, of jobs that somebody looks at

A thread asks while somebody looks, and rests a while in between. So no page ever waits for a cluster.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from fedpft.board.jobs import Job, Snapshot, actors_of, jobs_of
from fedpft.config import ConfigError
from fedpft.config.tracking import shown_url

LOG_LINES = 200
"""Of a log's end."""
_LARGEST = 2**26
"""Bytes of an answer."""
_TIMEOUT_SECONDS = 5.0
_PAUSE_SECONDS = 2.0
_SHARE, _LONGEST_SECONDS = 5, 30.0
"""A slow cluster is left alone for so many times as long as its answers took, but not longer than this."""
_LOOKED_SECONDS = 15.0
"""Since a page was last made, after which nobody looks any more."""


class Cluster:
    """One cluster.

    Args:
        address: of the head's dashboard, e.g. `http://127.0.0.1:8265`.
        headers: returns what each request has to carry, such as a token; called in the thread.

    Raises:
        ConfigError: the address is none.

    """

    def __init__(self, address: str, headers: Callable[[], Mapping[str, str]] = dict) -> None:
        self.url = address.rstrip("/")
        if not re.match(r"https?://[^/@]+$", self.url) or shown_url(self.url) != self.url:
            allowed = "the URL of the head's dashboard, e.g. http://127.0.0.1:8265"
            raise ConfigError(f"--address: found {shown_url(address)!r}, allowed: {allowed}")
        self._headers = headers
        self._opener = build_opener(_NoRedirect)  # a token is for this address alone
        self._snapshot = Snapshot()
        self.version = 0
        """Grows with everything that people see."""
        self._wanted: dict[str, float] = {}  # a job whose log is shown -> when somebody last looked
        self._looked = 0.0
        self._has_looked = threading.Condition()
        self._thread: threading.Thread | None = None

    def look(self, job_id: str | None = None) -> Snapshot:
        """Return what is known, at once, and have it asked for anew; `job_id`: with the end of this job's log."""
        with self._has_looked:
            self._looked = time.monotonic()
            if job_id is not None:
                self._wanted[job_id] = self._looked
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="cluster")
                self._thread.start()
            self._has_looked.notify_all()
        return self._snapshot

    def ask(self) -> Snapshot:
        """Ask the cluster now, wait for its answers and keep them; what fails is in the snapshot."""
        try:
            jobs = jobs_of(self._get("/api/jobs/"))
            running = {job.ray_id for job in jobs.values() if not job.is_over}
            actors = actors_of(self._get("/logical/actors"), running) if running else ()
            found = Snapshot(jobs=jobs, actors=actors, logs=self._logs(jobs), is_asked=True)
        except Exception as error:  # of a network, of something that is no Ray or another one: the board goes on
            found = replace(self._snapshot, actors=(), is_asked=True, error=_reason(error))
        if found != self._snapshot:
            self._snapshot = found
            self.version += 1
        return self._snapshot

    def _work(self) -> None:
        while True:
            start = time.monotonic()
            self.ask()
            rest = min(_LONGEST_SECONDS, max(_PAUSE_SECONDS, _SHARE * (time.monotonic() - start)))
            time.sleep(rest)
            with self._has_looked:
                while time.monotonic() - self._looked > _LOOKED_SECONDS:
                    self._has_looked.wait()

    def _logs(self, jobs: Mapping[str, Job]) -> dict[str, str]:
        """Return the ends of the logs that are looked at; those of jobs that are over are asked for once."""
        now, logs = time.monotonic(), {}
        with self._has_looked:
            self._wanted = {job: seen for job, seen in self._wanted.items() if now - seen < _LOOKED_SECONDS}
            wanted = [job for job in jobs.values() if job.id in self._wanted]
        for job in wanted:
            before = self._snapshot.jobs.get(job.id)
            if before is not None and before.is_over and job.id in self._snapshot.logs:
                logs[job.id] = self._snapshot.logs[job.id]
            elif job.is_submitted and job.node_id:
                logs[job.id] = self._log(job)
        return logs

    def _log(self, job: Job) -> str:
        query = {"node_id": job.node_id, "filename": f"job-driver-{job.id}.log", "lines": LOG_LINES}
        try:
            found = self._read(f"/api/v0/logs/file?{urlencode(query | {'filter_ansi_code': 'true'})}")
        except HTTPError as error:  # the node is gone, or its log is
            return f"(no log: the dashboard answers {error.code})"
        return found.decode("utf-8", "replace")

    def _get(self, path: str) -> Any:
        return json.loads(self._read(path))

    def _read(self, path: str) -> bytes:
        request = Request(self.url + path, headers=dict(self._headers()))
        with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return answer.read(_LARGEST)


class _NoRedirect(HTTPRedirectHandler):
    """Takes no answer for a place elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _reason(error: Exception) -> str:
    """Return in a line why there is no answer."""
    if isinstance(error, HTTPError) and error.code in (401, 403):
        return "it wants a token: export RAY_AUTH_MODE=token and put the cluster's into ~/.ray/auth_token"
    if isinstance(error, HTTPError):
        return f"it answers {error.code}"
    if isinstance(error, URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, OSError | HTTPException | URLError):
        lines = str(getattr(error, "strerror", None) or error).splitlines()
        return lines[0] if lines else type(error).__name__
    return f"what answers there is no Ray dashboard: {type(error).__name__}"
