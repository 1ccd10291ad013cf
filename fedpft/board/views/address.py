"""Which page an address names, of which runs, and whether the cluster is on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedpft.board.cluster import Cluster
from fedpft.board.index import Index
from fedpft.board.run import BoardRun
from fedpft.board.views.choice import Choice
from fedpft.board.views.cluster import cluster_page, job_page
from fedpft.board.views.compare import compare_page, compared_runs
from fedpft.board.views.page import Page
from fedpft.board.views.run import run_page
from fedpft.board.views.runs import runs_page, visible
from fedpft.board.views.sweep import sweep_page, sweeps_page


@dataclass(frozen=True, kw_only=True)
class View:
    """A page before it is made."""

    runs: Sequence[BoardRun]
    """Whose files it shows, and which are to be read first."""
    make: Callable[[], Page]
    cluster: Cluster | None = None
    """Whose answers it shows too."""


def view_of(index: Index, path: str, choice: Choice) -> View | None:
    """Return what an address names; None: nothing."""
    kind, _, key = path.strip("/").partition("/")
    cluster = index.cluster
    if kind == "run":
        run = index.run(key)
        return View(runs=[run], make=lambda: run_page(run, cluster)) if run else None
    if kind == "sweep":
        sweep = index.sweep(key)
        return View(runs=index.trials(sweep), make=lambda: sweep_page(index, sweep)) if sweep else None
    if kind == "compare":
        return View(runs=compared_runs(index, choice), make=lambda: compare_page(index, choice))
    if kind == "sweeps":
        return View(runs=[], make=lambda: sweeps_page(index))
    if kind == "cluster" and cluster:
        return View(runs=[], make=lambda: cluster_page(index, cluster), cluster=cluster)
    if kind == "job" and cluster:
        found = cluster.look(key)
        if found.is_asked and not found.error and key not in found.jobs:
            return None
        return View(runs=[], make=lambda: job_page(index, cluster, key), cluster=cluster)
    if kind:
        return None
    return View(runs=visible(index, choice), make=lambda: runs_page(index, choice), cluster=cluster)
