"""PURE: what a Ray dashboard answers -> our jobs, and what their actors use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpft.storage.output import JOB_FOLDER


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job whose command is ours."""

    id: str
    """Of a submitted one its name, of a driver that joined by itself Ray's number."""
    ray_id: str | None
    """Ray's number; None: its driver has not begun."""
    state: str
    """Ray's word: PENDING, RUNNING, SUCCEEDED, STOPPED, FAILED."""
    reason: str
    """What Ray says of the state, its last line: of a failed one the end of the log."""
    command: str
    start: float | None
    """Seconds since 1970."""
    end: float | None
    node_id: str | None
    """Where its log is."""
    is_submitted: bool
    folder: Path | None
    """Of the run, as this machine would call it; None: the job does not say."""

    @property
    def is_over(self) -> bool:
        """Whether nothing about it changes any more."""
        return self.state in ("SUCCEEDED", "STOPPED", "FAILED")


@dataclass(frozen=True, kw_only=True)
class Actor:
    """An actor that lives, and what its process uses; None: nobody has measured it yet."""

    id: str
    ray_id: str
    """Ray's number of its job."""
    name: str
    """Of its class."""
    place: str
    """`IP, process N`."""
    cpu_percent: float | None
    """100: one core."""
    memory_bytes: float | None
    gpu_percent: float | None
    """The process's share of the time of the GPUs that it is on; a sum."""
    gpu_bytes: float | None
    gpus: str
    """`N NAME` of those, if any."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What the cluster said last."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    """The newest first."""
    actors: tuple[Actor, ...] = ()
    logs: Mapping[str, str] = field(default_factory=dict)
    """A job's id -> end of its log."""
    is_asked: bool = False
    """Whether any answer came, or failed to."""
    error: str | None = None
    """Why the newest one failed, one line; the rest is from before."""

    def job_in(self, folder: Path) -> Job | None:
        """Return the newest job that works in a run's folder."""
        return next((job for job in self.jobs.values() if job.folder == folder), None)


def jobs_of(found: list[dict[str, Any]]) -> dict[str, Job]:
    """Return the jobs whose command is ours, the newest first."""
    jobs = [_job(job) for job in found if "fedpft" in (job.get("entrypoint") or "")]
    return {job.id: job for job in sorted(jobs, key=lambda job: -(job.start or 0.0))}


def _job(job: Mapping[str, Any]) -> Job:
    folder = (job.get("metadata") or {}).get(JOB_FOLDER)
    return Job(
        id=job.get("submission_id") or job["job_id"],
        ray_id=job.get("job_id"),
        state=str(job["status"]),
        reason=_last_line(job.get("message") or ""),
        command=job["entrypoint"],
        start=_seconds(job.get("start_time")),
        end=_seconds(job.get("end_time")),
        node_id=job.get("driver_node_id"),
        is_submitted=job.get("submission_id") is not None,
        folder=_resolved(folder) if folder else None,
    )


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def _resolved(folder: str) -> Path | None:
    """Return a folder of the cluster's, of its user's home folder where it is relative, as it is called here."""
    try:
        return Path("~", folder).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # no home folder, no path
        return None


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) and milliseconds > 0 else None


def actors_of(found: Mapping[str, Any], running: set[str | None]) -> tuple[Actor, ...]:
    """Return the actors of running jobs that live, by class and place."""
    known = found["data"]["actors"].values()
    alive = [_actor(actor) for actor in known if actor["jobId"] in running and actor["state"] == "ALIVE"]
    return tuple(sorted(alive, key=lambda actor: (actor.ray_id, actor.name, actor.place)))


def _actor(actor: Mapping[str, Any]) -> Actor:
    used = actor.get("processStats") or {}
    gpus = actor.get("gpus") or ()
    return Actor(
        id=actor["actorId"],
        ray_id=actor["jobId"],
        name=actor.get("actorClass") or actor["className"],
        place=f"{actor['address']['ipAddress']}, process {actor.get('pid', '?')}",
        cpu_percent=used.get("cpuPercent"),
        memory_bytes=(used.get("memoryInfo") or {}).get("rss"),
        gpu_percent=used.get("gpuUtilization") if gpus else None,
        gpu_bytes=2**20 * (used.get("gpuMemoryUsage") or 0) if gpus else None,
        gpus=", ".join(f"{gpu.get('index', '?')} {gpu.get('name', '')}".strip() for gpu in gpus),
    )
