"""The pages of a Ray cluster: its jobs of ours, one job with the end of its log, and what their actors use."""

from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

from rich.filesize import decimal as format_bytes

from fedpft.board.cluster import LOG_LINES, Cluster
from fedpft.board.index import Index
from fedpft.board.jobs import Actor, Job, Snapshot
from fedpft.board.run import BoardRun
from fedpft.board.views.page import Page, ago, listing, listing_row, text, wrapped
from fedpft.board.views.states import state_mark
from fedpft.report.html import note, section
from fedpft.report.wording import duration

_STATES = {"RUNNING": "running", "SUCCEEDED": "finished", "STOPPED": "stopped", "FAILED": "failed"}
"""Ray's word for a job's state -> ours for a run's; any other is pending."""
JOB_COLUMNS = ("job", "state", "started", "took")
_MAX_JOBS = 200


def cluster_page(index: Index, cluster: Cluster) -> Page:
    """Return the list of jobs, and what the actors of those that run use."""
    found = cluster.look()
    jobs = list(found.jobs.values())[:_MAX_JOBS]
    rows = [_row(index, job) for job in jobs]
    listed = listing("jobs", JOB_COLUMNS, "".join(rows)) if rows else _no_jobs(found)
    parts = {"now": wrapped("now", _facts(cluster, found)), "jobs": wrapped("jobs", listed)}
    parts["actors"] = wrapped("actors", _actors(cluster, found.actors) if jobs else "")
    return Page(title="Cluster", parts=parts)


def job_page(index: Index, cluster: Cluster, key: str) -> Page:
    """Return a job's page."""
    found = cluster.look(key)
    job = found.jobs.get(key)
    if job is None:
        return Page(title=key, parts={"now": wrapped("now", _facts(cluster, found))})
    facts = [state_mark(_state(job)), _times(job), *_links(index, cluster, job)]
    said = f'<p class="facts">{"".join(f"<span>{each}</span>" for each in facts if each)}</p>'
    said += "".join(f'<p class="quiet">{text(line)}</p>' for line in (_why(job), _command(job)) if line)
    actors = [actor for actor in found.actors if actor.ray_id == job.ray_id]
    parts = {
        "now": wrapped("now", _trouble(cluster, found) + said),
        "actors": wrapped("actors", _actors(cluster, actors)),
        "log": wrapped("log", section("Log", _log(cluster, job, found))),
    }
    return Page(title=job.id, parts=parts)


def cluster_line(index: Index) -> str:
    """Return what the table of runs says of the cluster: how many jobs of ours, or why it does not answer."""
    if index.cluster is None:
        return ""
    found = index.cluster.look()
    if found.error or not found.is_asked:
        return _trouble(index.cluster, found)
    counts = Counter(_state(job) for job in found.jobs.values() if not job.is_over)
    said = ", ".join(f"{number} {state}" for state, number in sorted(counts.items(), reverse=True)) or "none running"
    return f'<p class="quiet">Jobs on <a href="/cluster">{text(index.cluster.url)}</a>: {said}</p>'


def run_job(run: BoardRun, cluster: Cluster | None) -> str:
    """Return a line that names the job which works in a run's folder, if there is one."""
    job = cluster.look().job_in(run.folder) if cluster else None
    return f'<p class="quiet">Job {_job_link(job)}: state and log</p>' if job else ""


def _job_link(job: Job) -> str:
    return f'<a href="/job/{quote(job.id, safe="")}">{text(job.id)}</a>'


def _facts(cluster: Cluster, found: Snapshot) -> str:
    link = _out(cluster.url + "/", f"Ray dashboard at {cluster.url}")
    return _trouble(cluster, found) + f'<p class="facts"><span>{link}</span></p>'


def _trouble(cluster: Cluster, found: Snapshot) -> str:
    """Return one line while there is no answer, or the newest one failed."""
    where = text(cluster.url)
    if not found.is_asked:
        return f'<p class="quiet">Asking {where} …</p>'
    if found.error is None:
        return ""
    before = "; what is below is from before" if found.jobs else ""
    return f'<p class="trouble">No answer from {where}: {text(found.error)}; asked again and again{before}.</p>'


def _no_jobs(found: Snapshot) -> str:
    if found.error or not found.is_asked:
        return ""
    return "<p>No jobs of ours yet: <code>fedpft submit</code> sends one.</p>"


def _row(index: Index, job: Job) -> str:
    run = index.run_in(job.folder)
    where = f'run <a href="/run/{run.key}">{text(run.title)}</a>' if run else text(job.folder or _command(job))
    about = "".join(f'<span class="quiet">{line}</span>' for line in (where, text(_why(job))) if line)
    name = f'<div class="name"><span>{_job_link(job)}{about}</span></div>'
    return listing_row(name, JOB_COLUMNS, [state_mark(_state(job)), ago(job.start or 0.0), _took(job)])


def _state(job: Job) -> str:
    return _STATES.get(job.state, "pending")


def _why(job: Job) -> str:
    """Return why it does not run, where Ray says more than the state does."""
    return "" if job.state in ("RUNNING", "SUCCEEDED") else job.reason


def _command(job: Job) -> str:
    """Return the command of a driver; all that were submitted have the same."""
    return "" if job.is_submitted else job.command


def _took(job: Job) -> str:
    return duration(job.end - job.start) if job.start and job.end else ""


def _times(job: Job) -> str:
    if job.start is None:
        return ""
    return f"started {ago(job.start)}" + (f", took {_took(job)}" if job.end else "")


def _links(index: Index, cluster: Cluster, job: Job) -> list[str]:
    run = index.run_in(job.folder)
    links = [f'run <a href="/run/{run.key}">{text(run.title)}</a>'] if run else []
    return [*links, _out(f"{cluster.url}/#/jobs/{quote(job.ray_id or job.id, safe='')}", "in the Ray dashboard")]


def _out(address: str, title: str) -> str:
    """Return a link out of the board."""
    return f'<a href="{text(address)}" target="_blank" rel="noreferrer">{text(title)} ↗</a>'


def _actors(cluster: Cluster, actors: Sequence[Actor]) -> str:
    if not actors:
        return ""
    has_gpus = any(actor.gpus for actor in actors)
    head = ["actor", "where", "CPU", "memory", *(["GPU", "GPU use", "GPU memory"] if has_gpus else [])]
    rows = []
    for actor in actors:
        gpu = [text(actor.gpus), _percent(actor.gpu_percent), _bytes(actor.gpu_bytes)] if has_gpus else []
        name = _out(f"{cluster.url}/#/actors/{actor.id}", f"{actor.name} {actor.id[:8]}")
        used = [text(actor.place), _percent(actor.cpu_percent), _bytes(actor.memory_bytes), *gpu]
        rows.append(listing_row(name, head, used))
    return section("Actors", note("CPU: 100 % is one core."), listing("actors", head, "".join(rows)))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} %"


def _bytes(value: float | None) -> str:
    return "" if value is None else format_bytes(round(value))


def _log(cluster: Cluster, job: Job, found: Snapshot) -> str:
    if job.is_submitted and job.id not in found.logs:
        return note("Its driver has not begun." if job.node_id is None else "Asked for …")
    if not job.is_submitted:
        return note("It was not submitted: its log is where it was started.")
    whole = f"<code>fedpft follow {text(job.id)} --address {text(cluster.url)}</code>"
    about = f'<p class="quiet">The last {LOG_LINES} lines; all of it: {whole}</p>'
    lines = f"<pre>{text(found.logs[job.id])}</pre>"
    return f'{about}<div class="log" tabindex="0" role="region" aria-label="log">{lines}</div>'
