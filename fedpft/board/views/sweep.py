"""The pages of sweeps: which trials there are, how far they got, whom the scheduler stopped, what it comes to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedpft.board.compared import comparable_sets
from fedpft.board.index import Index
from fedpft.board.run import BoardRun
from fedpft.board.state import STATES
from fedpft.board.sweep import BoardSweep
from fedpft.board.views.page import Page, ago, text, wrapped
from fedpft.board.views.runs import has_epsilon, run_row, run_table
from fedpft.board.views.states import state_mark
from fedpft.metrics.table import metric_row
from fedpft.report.compare.comparison import compare_runs
from fedpft.report.compare.page import comparison_parts
from fedpft.report.html import PALETTE, note, plot, section, table
from fedpft.report.scores import metric_title

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

_HEIGHT = 320
_MARGIN = {"l": 55, "r": 15, "t": 30, "b": 50}
_ENDS = {
    "finished": {"symbol": "circle", "color": PALETTE[2]},
    "running": {"symbol": "triangle-right-open", "color": PALETTE[0]},
    "stopped": {"symbol": "square", "color": PALETTE[1]},
    "failed": {"symbol": "x", "color": PALETTE[5]},
    "stale": {"symbol": "diamond-open", "color": PALETTE[6]},
}
"""State -> how a trial's curve ends, told apart by form as well as colour."""


def sweeps_page(index: Index) -> Page:
    """Return the list of all sweeps."""
    rows = []
    for sweep in sorted(index.sweeps, key=lambda sweep: sweep.title):
        counts = Counter[str](trial.state for trial in index.trials(sweep))
        name = f'<a href="/sweep/{sweep.key}">{text(sweep.title)}</a>'
        search = f"{sweep.search}, scheduler {sweep.scheduler}"
        rows.append([name, state_mark(sweep.state), _tally(counts, sweep), text(search)])
    head = ["sweep", "state", "trials", "search"]
    body = table(head, rows, "sweeps") if rows else "<p>No sweeps yet: <code>fedpft sweep</code> makes some.</p>"
    return Page(title="Sweeps", parts={"sweeps": wrapped("sweeps", body)})


def sweep_page(index: Index, sweep: BoardSweep) -> Page:
    """Return a sweep's page."""
    trials = index.trials(sweep)
    counts = Counter[str](trial.state for trial in trials)
    about = f"{sweep.search} search by {sweep.metric}, scheduler {sweep.scheduler}"
    written = max((trial.written for trial in trials), default=0.0)
    facts = [state_mark(sweep.state), _tally(counts, sweep), text(about), f"written {ago(written)}" if written else ""]
    said = "".join(f"<span>{each}</span>" for each in facts if each)
    now = f'<p class="facts">{said}</p>{_bar(counts, sweep)}<p class="quiet">{text(sweep.folder)}</p>'
    parts = {"now": wrapped("now", now), "ends": wrapped("ends", _ends(sweep, trials))}
    parts["report"] = wrapped("report", _report(trials))
    private = has_epsilon(trials)
    listed = f"<h2>Trials</h2>{run_table('trials', private)}" if trials else "<p>No trials yet.</p>"
    parts["table"] = wrapped("table", listed)
    rows = {f"r-{trial.key}": run_row(trial, private, pick=False) for trial in trials}
    return Page(title=sweep.title, parts=parts, rows=rows, has_figures=True)


def stops_figure(sweep: BoardSweep, trials: Sequence[BoardRun]) -> "Figure | None":
    """Return each trial's metric by round, up to where it ended; None without any evaluation.

    Dotted lines are the rounds at which ASHA decides who goes on.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for trial in trials:
        lines = trial.history.thinned(trial.num_rounds or 1)
        rounds, values = [line["round"] for line in lines], [line["fm"] for line in lines]
        if not lines:
            continue
        end = _ENDS[trial.state]
        line = Scatter(
            x=rounds, y=values, mode="lines+markers", line={"color": end["color"], "width": 1.2}, showlegend=False,
            marker={"size": [0] * (len(rounds) - 1) + [10], "symbol": end["symbol"]}, opacity=0.8,
            hovertemplate=f"{trial.folder.name}, {trial.state}: %{{y:.4f}}, round %{{x}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(line)
    if not figure.data:
        return None
    for state in [state for state in STATES if any(trial.state == state for trial in trials)]:
        figure.add_trace(Scatter(x=[None], y=[None], mode="markers", marker={**_ENDS[state], "size": 10}, name=state))
    last = max(trace.x[-1] or 0 for trace in figure.data)
    for rung in sweep.rungs:
        if rung < last:
            figure.add_vline(x=rung, line={"width": 1, "dash": "dot", "color": "#8a8a8a"}, layer="below")
    metric = next((trial.metric for trial in trials if trial.metric), None)
    figure.update_layout(
        height=_HEIGHT, margin=_MARGIN, legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        xaxis={"title": "round", "rangemode": "tozero"},
    )  # fmt: skip
    if metric:
        figure.update_yaxes(title=metric_title(metric), tickformat=".0~%" if metric_row(metric).is_fraction else None)
    return figure


def _ends(sweep: BoardSweep, trials: Sequence[BoardRun]) -> str:
    figure = stops_figure(sweep, trials)
    if figure is None:
        return ""
    about = "Each trial's plugged-in FM up to where it ended or is now."
    if sweep.scheduler != "none":
        about += " Stopped: by the scheduler, or paused by it, or interrupted."
    if sweep.rungs:
        about += " Dotted: the rounds at which ASHA decides who goes on."
    title = "How far trials got"
    return section(title, plot(figure, title), note(about))


def _report(trials: Sequence[BoardRun]) -> str:
    """Return the comparison's sections of all trials: parallel coordinates, prices with their fronts, points."""
    sets, left_out = comparable_sets(trials)
    if not sets:
        return ""
    comparison = compare_runs(sets[0].runs, left_out)
    return "\n".join(comparison_parts(comparison))


def _tally(counts: Mapping[str, int], sweep: BoardSweep) -> str:
    said = [f"{counts[state]} {state}" for state in STATES if counts.get(state)]
    total, begun = sweep.num_trials, sum(counts.values())
    if total and total > begun:
        said.append(f"{total - begun} not begun")
    return ", ".join(said)


def _bar(counts: Mapping[str, int], sweep: BoardSweep) -> str:
    """Return a bar of the trials by state."""
    total = max(sweep.num_trials or 0, sum(counts.values())) or 1
    pieces = "".join(
        f'<span class="{state}" style="width: {100 * counts[state] / total:.2f}%"></span>'
        for state in ("finished", "running", "stopped", "stale", "failed")
        if counts.get(state)
    )
    return f'<div class="bar" role="img" aria-label="{_tally(counts, sweep)}">{pieces}</div>'
