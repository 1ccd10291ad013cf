"""The table of all runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite

from rich.filesize import decimal as format_bytes

from fedpft.board.index import Index
from fedpft.board.run import BoardRun
from fedpft.board.state import STATES
from fedpft.board.views.choice import PAGE_LENGTH, SORTS, Choice
from fedpft.board.views.cluster import cluster_line
from fedpft.board.views.page import Page, ago, listing, listing_row, text, until, wrapped
from fedpft.board.views.states import GLYPHS, MEANINGS, state_mark
from fedpft.report.compute import format_flops
from fedpft.report.scores import metric_title, metric_value
from fedpft.report.wording import duration

COLUMNS = ("run", "state", "round", "metric", "time", "failures", "ε", "traffic", "compute", "written")
"""`ε` only where a run shown has an accountant."""
_WIDTH, _HEIGHT, _POINTS = 90, 22, 45  # of a spark line


def runs_page(index: Index, choice: Choice) -> Page:
    """Return the page of the runs that the choice allows."""
    known = index.runs
    shown = [run for run in known if choice.allows(run)]
    first = PAGE_LENGTH * (choice.page - 1)
    rows = choice.sorted(shown)[first : first + PAGE_LENGTH]
    private = has_epsilon(rows)
    counts = Counter[str](run.state for run in known if choice.allows(run, any_state=True))
    parts = {
        **({"jobs": wrapped("jobs", cluster_line(index))} if index.cluster else {}),
        "states": wrapped("states", _states(choice, counts)),
        "table": wrapped("table", run_table("runs", private) if shown else f"<p>{_nothing(index, choice)}</p>"),
        "pages": wrapped("pages", _pages(choice, len(shown))),
    }
    return Page(
        title="Runs",
        before=_form(choice, index),
        parts=parts,
        rows={f"r-{run.key}": run_row(run, private, pick=True) for run in rows},
    )


def visible(index: Index, choice: Choice) -> list[BoardRun]:
    """Return the runs on the page, which are to be read first."""
    first = PAGE_LENGTH * (choice.page - 1)
    return choice.sorted([run for run in index.runs if choice.allows(run)])[first : first + PAGE_LENGTH]


def has_epsilon(runs: Sequence[BoardRun]) -> bool:
    """Whether any of them has an accountant of privacy."""
    return any(run.history.epsilon is not None for run in runs)


def run_table(label: str, private: bool) -> str:
    """Return a table whose rows are :func:`run_row`; `private`: with a column of epsilon."""
    return listing(label, _columns(private), "{rows}", "rows")


def run_row(run: BoardRun, private: bool, *, pick: bool) -> str:
    """Return a run's row; `pick`: with a box that chooses it for a comparison."""
    history, result = run.history, run.result
    where, _, short = run.title.rpartition("/")
    about = f"{text(where)}: {_about(run)}" if where else _about(run)
    box = f'<input type="checkbox" form="pick" name="run" value="{run.key}" aria-label="compare {text(run.title)}">'
    name = f'<a href="/run/{run.key}">{text(short)}</a><span class="quiet">{about}</span>'
    name = f'<div class="name">{box * pick}<span>{name}</span></div>'
    cells = [
        state_mark(run.state, run.reason, run.doing),
        _round(run),
        _metric(run),
        _time(run),
        str(history.num_dropped) if history.num_dropped else "",
        *(["" if history.epsilon is None else f"{history.epsilon:.3g}"] if private else []),
        _bytes(result, history.num_bytes),
        _flops(result, history.flops),
        ago(run.written),
    ]
    return listing_row(name, _columns(private), cells, f"r-{run.key}")


def _columns(private: bool) -> list[str]:
    return [title for title in COLUMNS if private or title != "ε"]


def spark_line(values: Sequence[float]) -> str:
    """Return a small curve of at most `_POINTS` points, scaled to its own range; nothing for fewer than two."""
    finite = [(index, value) for index, value in enumerate(values) if isfinite(value)]
    step = -(-len(finite) // _POINTS)
    points = finite[:: max(1, step)]
    if finite and points[-1] != finite[-1]:
        points.append(finite[-1])
    if len(points) < 2:
        return ""
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]
    places = [
        f"{2 + (_WIDTH - 6) * (x - first) / (last - first):.1f},"
        f"{2 + (_HEIGHT - 4) * (0.5 if high == low else (high - y) / (high - low)):.1f}"
        for x, y in points
    ]
    x, y = places[-1].split(",")
    return (
        f'<svg class="spark" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">'
        f'<polyline points="{" ".join(places)}"/><circle cx="{x}" cy="{y}" r="2.5"/></svg>'
    )


def _about(run: BoardRun) -> str:
    seed = run.seed
    said = (run.method, run.setting("task.name"), None if seed is None else f"seed {seed}")
    return text(", ".join(str(each) for each in said if each))


def _round(run: BoardRun) -> str:
    done, total = run.round, run.num_rounds
    if not total:
        return str(done) if done else ""
    bar = f'<progress value="{done}" max="{total}" aria-hidden="true"></progress>' if run.state == "running" else ""
    return f"{done}/{total}{bar}"


def _metric(run: BoardRun) -> str:
    if run.metric is None or run.value is None:
        return ""
    value = f'<span title="{text(metric_title(run.metric))}">{metric_value(run.value, run.metric)}</span>'
    return f"{spark_line(run.history.fm)} {value}"


def _time(run: BoardRun) -> str:
    if (end := run.end) is not None:
        return f"{until(end)} left"
    seconds = run.result.get("wall_seconds")
    return f"took {duration(seconds)}" if isinstance(seconds, int | float) else ""


def _bytes(result: Mapping[str, object], counted: float) -> str:
    ways = [result.get(f"bytes_{way}_total") for way in ("up", "down")]
    total = sum(way for way in ways if isinstance(way, int | float)) or counted
    return format_bytes(round(total)) if total else ""


def _flops(result: Mapping[str, object], counted: float) -> str:
    total = result.get("client_flops_total") or counted
    return format_flops(total) if isinstance(total, int | float) and total else ""


def _form(choice: Choice, index: Index) -> str:
    sorts = "".join(
        f'<option value="{key}"{" selected" * (key == choice.sort)}>{title}</option>' for key, title in SORTS.items()
    )
    states = "".join(f'<input type="hidden" name="state" value="{state}">' for state in choice.state)
    where = ", ".join(text(folder) for folder in index.folders)
    return (
        f'<p class="quiet">below {where}</p><div class="choose"><form class="choose" role="search">'
        f'<label>Find <input type="search" name="q" value="{text(choice.q)}" '
        'placeholder="name, task, retained_ratio=0.5" accesskey="f"></label>'
        f'<label>Sort <select name="sort" data-submit>{sorts}</select></label>{states}<button>Show</button></form>'
        f'<form id="pick" action="/compare"><input type="hidden" name="q" value="{text(choice.q)}">'
        f'{states}<button>Compare</button> <output class="quiet">all that are shown</output></form></div>'
    )


def _states(choice: Choice, counts: Mapping[str, int]) -> str:
    if not counts and not choice.state:
        return ""
    links = [_state_link(choice, (), f"all {sum(counts.values())}", "")]
    links += [
        _state_link(choice, (state,), f"{GLYPHS[state]} {state} {counts[state]}", MEANINGS[state])
        for state in STATES
        if counts.get(state) or state in choice.state
    ]
    return f'<nav class="states" aria-label="states">{" ".join(links)}</nav>'


def _state_link(choice: Choice, state: tuple[str, ...], title: str, meaning: str) -> str:
    here = " aria-current=true" * (choice.state == state)
    about = f' title="{meaning}"' if meaning else ""
    return f'<a href="/{text(choice.query(state=state, page=1))}"{here}{about}>{title}</a>'


def _pages(choice: Choice, number: int) -> str:
    last = -(-number // PAGE_LENGTH)
    if last < 2:
        return ""
    links = [
        f'<a href="/{text(choice.query(page=page))}"{" aria-current=page" * (page == choice.page)}>{page}</a>'
        for page in range(1, last + 1)
    ]
    return f'<nav class="states" aria-label="pages of runs">{number} runs, page {" ".join(links)}</nav>'


def _nothing(index: Index, choice: Choice) -> str:
    if index.runs:
        return 'No run is like that. <a href="/">Show all</a>'
    missing = [text(folder) for folder in index.folders if not folder.exists()]
    why = f" There is no folder {', '.join(missing)} yet." if missing else ""
    how = "<code>fedpft init</code> writes a config to start from, <code>fedpft run CONFIG</code> starts it."
    return f"No runs yet.{why} They appear here as soon as one has loaded its libraries: {how}"
