"""Runs of the board as `report.compare` takes them, finished or not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from fedpft.board.lines import as_object, open_plain
from fedpft.board.run import BoardRun
from fedpft.report.compare.groups import comparable_terms
from fedpft.report.compare.runs import NEEDED, LeftOut, Run, telling_settings
from fedpft.report.scores import metric_title
from fedpft.storage.output import PARTITION_FILE

MAX_RUNS = 300
"""In one comparison; beyond, its figures are no longer to be read."""


@dataclass(frozen=True, kw_only=True)
class Set:
    """Runs whose numbers measure the same thing."""

    key: str
    title: str
    runs: Sequence[Run]


def comparable_sets(runs: Sequence[BoardRun]) -> tuple[list[Set], list[LeftOut]]:
    """Return the sets, the largest first, and the runs that cannot be compared with any."""
    seen: dict[str, Run] = {}
    left_out: list[LeftOut] = []
    for board_run in sorted(runs, key=lambda run: run.state != "finished"):  # of a repetition, the finished one counts
        found = compared(board_run)
        if isinstance(found, LeftOut):
            left_out.append(found)
            continue
        identity = json.dumps([found.seed, found.settings], sort_keys=True)
        if identity in seen:
            left_out.append(LeftOut(board_run.folder, f"same settings and seed as {seen[identity].folder}"))
        else:
            seen[identity] = found
    sets: dict[str, list[Run]] = {}
    for run in sorted(seen.values(), key=lambda run: not run.is_finished):
        terms = comparable_terms(run)
        fitting = (key for key, members in sets.items() if _fit(terms, comparable_terms(members[0])))
        sets.setdefault(next(fitting, json.dumps(terms, sort_keys=True)), []).append(run)
    found_sets = [
        Set(key=blake2b(key.encode(), digest_size=4).hexdigest(), title=_title(members), runs=_ordered(members))
        for key, members in sets.items()
    ]
    return sorted(found_sets, key=lambda each: -len(each.runs)), left_out


def compared(run: BoardRun) -> Run | LeftOut:
    """Return a run for a comparison, or why it cannot be in one."""
    result = run.result or _so_far(run)
    if not run.settings:
        return LeftOut(run.folder, f"{run.state}: no config.yaml that can be read")
    if run.metric is None or run.value is None:
        return LeftOut(run.folder, f"{run.state}: {run.reason or 'no evaluation yet'}")
    is_finished = run.state == "finished"
    if is_finished and (missing := [key for key in NEEDED if key not in result]):
        return LeftOut(run.folder, f"result.json has no {', '.join(missing)}")
    clients, losses = list(run.history.losses), list(run.history.losses.values())
    records = run.history.thinned(run.num_rounds or 1) if run.is_followed else []
    last = [{"round": run.round, "clients": clients, "client_losses": losses}] if clients else []
    return Run(
        folder=run.folder,
        settings=telling_settings(run.config),
        result=result,
        records=[*records, *last],
        partition=_partition(run),
        is_finished=is_finished,
    )


def _so_far(run: BoardRun) -> dict[str, Any]:
    """Return the keys of `result.json` that an unfinished run tells."""
    goal = {**run.history.scored, **run.last}.get("metric_goal", "max")
    return {
        "name": str(run.setting("name")),
        "seed": run.seed,
        "method": run.method,
        "metric": run.metric,
        "metric_goal": goal,
        "fm": run.value,
        "rounds": run.round,
    }


def _fit(terms: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    return all(others.get(key, value) == value for key, value in terms.items())


def _ordered(runs: Sequence[Run]) -> list[Run]:
    """Return the runs in the order of their folders, as `fedpft compare` finds them."""
    return sorted(runs, key=lambda run: run.folder)


def _title(runs: Sequence[Run]) -> str:
    result, task = runs[0].result, json.loads(runs[0].settings.get("task.name", '"?"'))
    number = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    return f"{metric_title(result['metric'])} on {task}, {comparable_terms(runs[0])['rounds']} rounds: {number}"


def _partition(run: BoardRun) -> Mapping[str, Any] | None:
    try:
        with open_plain(run.folder / PARTITION_FILE) as file:
            found = as_object(file.read(2**24))
    except OSError:
        return None
    return found if found and {"label_names", "label_histogram"} <= found.keys() else None
