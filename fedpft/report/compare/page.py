"""The page of a comparison: verdicts, table, figures, and a filter of groups that holds for all of them."""

from collections import Counter
from collections.abc import Iterator
from html import escape

from fedpft.report.clients import VIEWS, View
from fedpft.report.compare.clients import client_figure
from fedpft.report.compare.comparison import Comparison
from fedpft.report.compare.costs import AXES
from fedpft.report.compare.differences import differences_section, traits
from fedpft.report.compare.effects import COLUMNS, MISSING, effect_figure, effect_words, seed_share
from fedpft.report.compare.elsewhere import elsewhere_note
from fedpft.report.compare.figures import (
    MARKERS,
    curve_figure,
    fidelity_figure,
    group_colours,
    group_markers,
    parallel_figure,
    pareto_figure,
    partitions,
    spread_figure,
)
from fedpft.report.compare.groups import short_key
from fedpft.report.compare.noise import noise_line
from fedpft.report.html import choice, details, document, note, paragraph, plot, section, table
from fedpft.report.partition import partition_figure
from fedpft.report.scores import CURVES, metric_title

_MIN_AXIS_WIDTH = 110
"""Pixels that an axis of parallel coordinates, or a column of the fidelity meter, needs."""

_MAX_VERDICTS = 4
"""On a first screen; more are folded under their tally."""

_MIN_BOX_WIDTH = 480
"""Pixels that boxes beside their labels need."""


def compare_page(comparison: Comparison) -> str:
    """Return the page's HTML."""
    return document(f"Comparison of {metric_title(comparison.metric)}", comparison_parts(comparison))


def comparison_parts(comparison: Comparison) -> Iterator[str]:
    """Yield what is under the title."""
    metric = metric_title(comparison.metric)
    runs = sum(len(group.runs) for group in comparison.groups)
    found = f"{_count(runs, 'run')} in {_count(len(comparison.groups), 'group')}"
    yield paragraph(f"{found}, by {metric} of the plugged-in FM after the last round")
    yield from _verdicts(comparison)
    yield from _sections(comparison)


def _verdicts(comparison: Comparison) -> Iterator[str]:
    said = (
        f'<li data-group="{escape(group.label)}">{escape(comparison.verdict(group.label))}.</li>'
        for group in comparison.groups
        if group.label in comparison.differences
    )
    said_all = f"<ul>{''.join(said)}</ul>"
    if len(comparison.differences) <= _MAX_VERDICTS:
        yield said_all
    else:
        counted = Counter(comparison.standing(label) for label in comparison.differences)
        tally = ", ".join(f"{number} {standing}" for standing, number in sorted(counted.items()))
        yield details(f"Against {comparison.baseline}: {tally}", said_all)
    if comparison.differences:
        yield note(
            f"Paired t-tests against {comparison.baseline} over common seeds; p values by Holm for "
            f"{len(comparison.differences)} comparison(s). Distinguishable: p below 0.05."
        )
    if noise := comparison.noise:
        yield paragraph(f"{noise_line(noise, comparison.metric)}.")
    if comparison.num_unfinished:
        yield note(
            f"Not finished yet: {_count(comparison.num_unfinished, 'run')}. There are curves, but numbers and verdicts "
            "are of finished seeds alone and may turn. Whoever tests again after each seed and stops at the first "
            "difference finds one by chance more often than 5 % of the time: choose the number of seeds before, and "
            "judge when all are finished."
        )
    if said_of_others := elsewhere_note(comparison.groups):
        yield note(said_of_others)
    if comparison.left_out:
        left = "; ".join(f"{left.folder}: {left.reason}" for left in comparison.left_out)
        yield note(f"Left out: {left}.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _sections(comparison: Comparison) -> Iterator[str]:
    yield _filter(comparison)
    fronts = note("◆ Pareto-optimal in the metric and this price") if comparison.axes else ""
    yield section("Groups", _table(comparison), fronts)
    metric = metric_title(comparison.metric)
    curves = {title: curve_figure(comparison, model) for model, title in CURVES.items()}
    about = "Mean over seeds; the band is from the lowest to the highest seed. Round 0 is the untuned FM."
    if comparison.num_unfinished:
        about += " Where a seed has not got so far, the mean is over the others; dotted: no seed is finished."
    panels = {title: plot(figure, f"{metric} of the {title} by round") for title, figure in curves.items() if figure}
    yield section(f"{metric[0].upper()}{metric[1:]} by round", choice("model", panels), note(about))
    if comparison.axes:
        about = "The dotted line joins the Pareto-optimal groups; others are faded. Bars: lowest to highest seed."
        prices = {AXES[axis].title: pareto_figure(comparison, axis) for axis in _telling_first(comparison)}
        panels = {title: plot(figure, f"{metric} against {title}") for title, figure in prices.items()}
        yield section("What it costs", choice("price", panels), note(about))
    if figure := parallel_figure(comparison):
        width = _MIN_AXIS_WIDTH * len(figure.layout.xaxis.tickvals)
        yield section("Settings and outcome of every run", plot(figure, "parallel coordinates", width))
    yield _effects(comparison)
    if figure := fidelity_figure(comparison):
        width = _MIN_AXIS_WIDTH * len(comparison.groups) + 60
        about = "After the last round, mean over seeds. A group without a proxy of its own has no column."
        yield section("Fidelity by layer", plot(figure, "fidelity by layer", width), note(about))
    if owned := dict(partitions(comparison)):
        panels = {title: plot(partition_figure(table), f"partition, {title}") for title, table in owned.items()}
        yield section("Partition: label shares in each client", choice("partition", panels))
    yield from (_client_section(comparison, view) for view in VIEWS if comparison.client_spreads(view))
    if figure := spread_figure(comparison):
        about = "Mean training loss of each client in the last round that it finished, all seeds together."
        width = _MIN_AXIS_WIDTH * len(comparison.groups)
        yield section("Spread over clients", plot(figure, "spread over clients", width), note(about))
    if rows := comparison.setting_rows():
        labels = [group.label for group in comparison.groups]
        values = zip(*(each for _, each in rows), strict=True)
        cells = ([_name(comparison, label), *map(escape, each)] for label, each in zip(labels, values, strict=True))
        titles = ["group", *(escape(short_key(key)) for key, _ in rows)]
        yield section("Settings that differ", table(titles, cells, "settings that differ", labels))
    yield _differences(comparison)


def _effects(comparison: Comparison) -> str:
    """Return the section on what each setting does; nothing where runs are no sweep."""
    effects = comparison.effects
    title = "Effect of each setting"
    if effects is None:
        return section(title, note(MISSING))
    if not effects:
        return ""
    about = (
        "Share of the metric's variance over finished runs that a setting explains alone (functional ANOVA of random "
        "forests, by Optuna); what is missing to 100 % are interactions. 95 % intervals: bootstrap over points and "
        "seeds. Line: what chance gives, the largest share in 19 shuffles; grey: no more than that. Settings that "
        "always change together cannot be told apart, and what was searched in a wider range has more effect."
    )
    if (seeds := seed_share(comparison.groups)) is not None:
        about += f" Of the variance, {100 * seeds:.1f} % is between seeds of the same settings."
    rows = [[escape(short_key(effect.key)), *effect_words(effect)] for effect in effects]
    numbers = table(["setting", *COLUMNS], rows, "effect of each setting")
    return section(title, plot(effect_figure(effects), title), numbers, note(about))


def _differences(comparison: Comparison) -> str:
    """Return the section on two runs, at first one of the baseline and one of the best other group."""
    ours = [group for group in comparison.groups if not group.is_elsewhere]
    groups = sorted(ours, key=lambda group: group.label != comparison.baseline)
    runs = [run for group in groups for run in group.runs]
    second = len(groups[0].runs) if len(groups) > 1 else 1
    known = [(run.folder, traits(run.settings, run.result, run.folder)) for run in runs]
    return differences_section(known, (0, second))


def _client_section(comparison: Comparison, view: View) -> str:
    spreads = comparison.client_spreads(view)
    rows = (
        [_name(comparison, label), *(view.shown(key, spread[key]) for key in view.spread)]
        for label, spread in spreads.items()
    )
    numbers = table(["group", *view.spread.values()], rows, escape(view.title), list(spreads))
    groups = {group.label: group for group in comparison.groups if group.label in spreads}
    figure = client_figure(groups, group_colours(comparison), view)
    about = f"{view.about} Table: mean over seeds; figure: every client of every seed."
    return section(escape(view.title), numbers, plot(figure, view.title, _MIN_BOX_WIDTH), note(about))


def _filter(comparison: Comparison) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" checked value="{escape(group.label)}"> {_name(comparison, group.label)}</label>'
        for group in comparison.groups
    )
    return f'<fieldset class="filter"><legend>Groups: <output></output></legend>{boxes}</fieldset>'


def _table(comparison: Comparison) -> str:
    fronts = {axis: comparison.front(axis) for axis in comparison.axes}
    titles = ["group", f"{metric_title(comparison.metric)} [95 %]", "seeds", "minus baseline"]
    rows = []
    for group in comparison.groups:
        label = group.label
        prices = [_price(comparison.price(label, axis), label in front) for axis, front in fronts.items()]
        seeds = str(len(group.runs))
        if len(group.finished) < len(group.runs):
            seeds = f"{len(group.finished)} of {seeds}"
        said = [_score(comparison.score(label)), seeds, comparison.change(label)]
        rows.append([_name(comparison, label), *said, *prices])
    prices_head = [f'<abbr title="{escape(AXES[axis].title)}">{AXES[axis].short}</abbr>' for axis in fronts]
    labels = [group.label for group in comparison.groups]
    return table([*map(escape, titles), *prices_head], rows, "groups, the best first", labels)


def _score(said: str) -> str:
    """Return a group's score; what is said of it in brackets is as narrow as a column of numbers."""
    value, bracket, about = said.partition(" (")
    return escape(value) + (f' <span class="quiet aside">({escape(about)}</span>' if bracket else "")


def _telling_first(comparison: Comparison) -> list[str]:
    """Return the axes, those on which all groups pay the same last."""
    paid = {axis: {comparison.price(group.label, axis) for group in comparison.groups} for axis in comparison.axes}
    return sorted(comparison.axes, key=lambda axis: len(paid[axis]) == 1)


def _price(price: str | None, is_optimal: bool) -> str:
    if price is None:
        return "not measured"
    return f'<span class="front">{price}</span>' if is_optimal else price


def _name(comparison: Comparison, label: str) -> str:
    """Return a group's label after its marker in its colour."""
    glyph, colour = MARKERS[group_markers(comparison)[label]], group_colours(comparison)[label]
    return f'<span style="color: {colour}" aria-hidden="true">{glyph}</span>&nbsp;{escape(label)}'
