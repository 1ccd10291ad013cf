"""The page of one run: what report.html has, while it runs."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedpft.board.cluster import Cluster
from fedpft.board.files import Stamp, stamp
from fedpft.board.lines import as_object, open_plain
from fedpft.board.run import BoardRun
from fedpft.board.views.cluster import run_job
from fedpft.board.views.page import Page, ago, text, until, wrapped
from fedpft.board.views.states import state_mark
from fedpft.config import Config, ConfigError, load_config
from fedpft.report.html import note, section, table
from fedpft.report.page import result_so_far, run_parts
from fedpft.storage.output import PARTITION_FILE, ROUNDS_FILE

MAX_RECORDS = 1000
"""Rounds in the figures: of more, evaluations first, then every 2nd, 4th ..."""
_MAX_FAILURES = 20
_LARGEST = 2**28
"""Bytes of rounds that a page reads, from the beginning."""


def run_page(run: BoardRun, cluster: Cluster | None = None) -> Page:
    """Return the page of a run; what is wrong with its files stands on it, and which job of the cluster it is."""
    parts = {
        "now": wrapped("now", "".join([*_now(run), run_job(run, cluster)])),
        "report": wrapped("report", "\n".join(_report(run))),
    }
    return Page(title=run.title, parts=parts, has_figures=True)


def _now(run: BoardRun) -> Iterator[str]:
    """Yield what the run is doing."""
    total = run.num_rounds
    said = [state_mark(run.state), f"round {run.round}" + (f" of {total}" if total else "")]
    if run.doing:
        said.append(text(run.doing))
    if (end := run.end) is not None:
        said.append(f"{until(end)} left")
    if run.history.epsilon is not None:
        said.append(f"ε = {run.history.epsilon:.3g} spent")
    if run.written:
        said.append(f"written {ago(run.written)}")
    yield f'<p class="facts">{"".join(f"<span>{each}</span>" for each in said)}</p>'
    if run.state == "running" and total:
        yield f'<progress class="long" value="{run.round}" max="{total}" aria-label="rounds done"></progress>'
    yield f'<p class="quiet">{text(run.folder)}{_holder(run)}</p>'
    if run.reason and run.state in ("stopped", "failed"):
        yield f"<p>It ended: {text(run.reason)}</p>"
    if run.state in ("stopped", "stale", "failed"):
        yield f'<p class="quiet">Go on with: <code>fedpft resume {text(shlex.quote(str(run.folder)))}</code></p>'


@lru_cache(maxsize=64)
def _config(path: Path, at: Stamp | None) -> Config:
    """Return a config; reading one takes some hundredths of a second."""
    return load_config(path)


def _holder(run: BoardRun) -> str:
    holder = run.holder.content
    if not holder:
        return ""
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
    return f"; {text(who)}"


def _report(run: BoardRun) -> Iterator[str]:
    records = _records(run)
    try:
        config = _config(run.folder / "config.yaml", stamp(run.folder / "config.yaml"))
    except ConfigError as error:
        yield note(f"config.yaml: {error}")
        return
    yield from _tolerant(run, config, _thinned(records))
    if failures := _failures(records):
        number = sum(len(record.get("failures", ())) for record in records)
        about = f"The last {len(failures)} of {number}." if number > len(failures) else ""
        yield section("Clients that failed", table(["round", "what happened"], failures, "failures"), note(about))


def _tolerant(run: BoardRun, config: Config, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the report's parts, and where the files do not have what it reads, what is missing."""
    result = run.result or result_so_far(config, records)
    try:
        yield from run_parts(result, config, records, _partition(run))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        yield note(f"The files are not whole, or of another version: {type(error).__name__}: {error}")


def _records(run: BoardRun) -> list[dict[str, Any]]:
    try:
        with open_plain(run.folder / ROUNDS_FILE) as file:
            lines = file.read(_LARGEST).splitlines(keepends=True)
    except OSError:
        return []
    found = [as_object(line) for line in lines if line.endswith(b"\n")]
    return [record for record in found if record and isinstance(record.get("round"), int) and "lr" in record]


def _thinned(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(records) <= MAX_RECORDS:
        return list(records)
    step = 1
    while len(records) / step > MAX_RECORDS:
        step *= 2
    return [record for record in records if record["round"] % step == 0 or record is records[-1]]


def _failures(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [[str(record["round"]), text(failure)] for record in records for failure in record.get("failures", ())]
    return rows[: -_MAX_FAILURES - 1 : -1]


def _partition(run: BoardRun) -> dict[str, Any] | None:
    try:
        with open_plain(run.folder / PARTITION_FILE) as file:
            return as_object(file.read(2**24))
    except OSError:
        return None
