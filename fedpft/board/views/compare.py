"""The page of a comparison: that of `fedpft compare`, with the runs that are still going on."""

from collections.abc import Iterator, Sequence

from fedpft.board.compared import MAX_RUNS, Set, comparable_sets
from fedpft.board.index import Index
from fedpft.board.run import BoardRun
from fedpft.board.views.choice import Choice
from fedpft.board.views.page import Page, text, wrapped
from fedpft.config import ConfigError
from fedpft.report.compare.comparison import Comparison, compare_runs
from fedpft.report.compare.differences import differences_section, traits
from fedpft.report.compare.page import comparison_parts
from fedpft.report.compare.runs import LeftOut, telling_settings
from fedpft.report.html import note


def compare_page(index: Index, choice: Choice) -> Page:
    """Return the page of the runs that the choice allows, against its baseline."""
    title = "Comparison"
    runs = compared_runs(index, choice)
    allowed = sum(choice.allows(run) for run in index.runs)
    sets, left_out = comparable_sets(runs)
    chosen = next((each for each in sets if each.key == choice.set), sets[0] if sets else None)
    if chosen is None:
        why = "; ".join(f"{left.folder.name}: {left.reason}" for left in left_out[:5])
        body = note(f"Nothing to compare yet. {why}") if runs else "<p>No run is like that.</p>"
        body += _two(runs) if choice.run else ""
    else:
        comparison, lost = _compared(chosen, left_out, choice)
        lost += note(f"Only the newest {MAX_RUNS} of {allowed} runs.") if allowed > MAX_RUNS else ""
        apart = _two(runs) if choice.run and len(chosen.runs) < len(runs) else ""
        body = "\n".join([_form(choice, comparison, sets, chosen), lost, *comparison_parts(comparison), apart])
    return Page(title=title, parts={"report": wrapped("report", body)}, has_figures=True)


def compared_runs(index: Index, choice: Choice) -> list[BoardRun]:
    """Return the newest runs that the choice allows, as many as one comparison takes."""
    found = [run for run in index.runs if choice.allows(run)]
    return sorted(found, key=lambda run: -run.written)[:MAX_RUNS]


def _two(runs: Sequence[BoardRun]) -> str:
    """Return what differs between two runs that were chosen, comparable or not; nothing of more."""
    if len(runs) != 2:
        return ""
    known = {run.folder: run.result or {"seed": run.seed} for run in sorted(runs, key=lambda run: run.title)}
    settings = {run.folder: telling_settings(run.config) for run in runs}
    return differences_section([(place, traits(settings[place], result, place)) for place, result in known.items()])


def _compared(chosen: Set, left_out: Sequence[LeftOut], choice: Choice) -> tuple[Comparison, str]:
    """Return the comparison, and what is to be said of a baseline that is gone: labels name what sets groups apart."""
    try:
        return compare_runs(chosen.runs, left_out, choice.baseline or None), ""
    except ConfigError:
        lost = note(f"No group is called {choice.baseline!r} any more; the baseline is the first one.")
        return compare_runs(chosen.runs, left_out), lost


def _form(choice: Choice, comparison: Comparison, sets: Sequence[Set], chosen: Set) -> str:
    return f'<form class="choose">{"".join(_fields(choice, comparison, sets, chosen))}<button>Show</button></form>'


def _fields(choice: Choice, comparison: Comparison, sets: Sequence[Set], chosen: Set) -> Iterator[str]:
    kept = [("q", choice.q), *(("state", state) for state in choice.state), *(("run", key) for key in choice.run)]
    yield from (f'<input type="hidden" name="{name}" value="{text(value)}">' for name, value in kept if value)
    if len(sets) > 1:
        options = [(each.key, each.title) for each in sets]
        yield f'<label>Runs <select name="set" data-submit>{_options(options, chosen.key)}</select></label>'
    labels = _options([(group.label, group.label) for group in comparison.groups], comparison.baseline)
    yield f'<label>Baseline <select name="baseline" data-submit>{labels}</select></label>'


def _options(pairs: Sequence[tuple[str, str]], chosen: str) -> str:
    return "".join(
        f'<option value="{text(value)}"{" selected" * (value == chosen)}>{text(title)}</option>'
        for value, title in pairs
    )
