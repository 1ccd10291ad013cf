"""How much each setting of a sweep changes the metric: functional ANOVA (Hutter et al., ICML 2014) by Optuna.

A random forest learns the metric from the settings; a setting's effect is the share of the forest's variance that the
setting explains alone, averaged over all others. Shares need not sum to 1: the rest are interactions.

A forest also learns noise, and with few points takes interactions for effects. So every share comes with an interval
(points are drawn again with replacement, of each some of its seeds, and another forest learns from them), and with what
chance gives: the largest share in 19 forests that learned from values shuffled over the points. A share above it is
one that a permutation test finds, with p = 0.05 or less.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpft.report.compare.groups import Group, differing_keys, short_key
from fedpft.report.html import PALETTE
from fedpft.report.intervals import CONFIDENCE

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

MIN_POINTS = 9
"""Groups below which a forest has nothing to learn from."""
NUM_DRAWS, NUM_SHUFFLES, NUM_TREES = 20, 19, 16
MISSING = "The effect of each setting needs Optuna and scikit-learn: pip install 'fedpft[sweep]'."


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Of one setting, as shares of variance."""

    key: str
    """Dotted."""
    share: float
    low: float
    high: float
    """The 95 % interval, by the bootstrap."""
    chance: float
    """The largest share of a shuffle."""

    @property
    def is_found(self) -> bool:
        """Whether the share is more than chance gives."""
        return self.share > self.chance


def setting_effects(groups: Sequence[Group]) -> list[Effect] | None:
    """Return the effect of each setting that differs, the largest first; only finished runs count.

    Returns:
        Nothing where there is no sweep: fewer than two settings that differ, or `MIN_POINTS` finished groups. None
        where Optuna or scikit-learn is not installed.

    """
    counted = [group for group in groups if group.finished and not group.is_elsewhere]
    keys = differing_keys([group.settings for group in counted])
    if len(keys) < 2 or len(counted) < MIN_POINTS:
        return []
    points = tuple(
        (tuple(group.settings.get(key, "null") for key in keys), tuple(group.values.values())) for group in counted
    )
    try:
        return list(effects_of(tuple(keys), tuple(sorted(points))))
    except ImportError:
        return None


COLUMNS = ("share of variance", "95 %", "by chance up to")


def effect_words(effect: Effect) -> tuple[str, str, str]:
    """Return the cells of `COLUMNS`, e.g. `62 %`, `48 to 71 %`, `20 %`."""
    interval = f"{100 * effect.low:.0f} to {100 * effect.high:.0f} %"
    return f"{100 * effect.share:.0f} %", interval, f"{100 * effect.chance:.0f} %"


def effect_figure(effects: Sequence[Effect]) -> "Figure":
    """Return a row for each setting, the largest at the top: share and interval, and a line where chance ends.

    A setting is grey where chance gives as much.
    """
    from plotly.graph_objects import Figure, Scatter

    shown = list(reversed(effects))
    names = [short_key(effect.key) for effect in shown]
    bars = {
        "symmetric": False, "array": [effect.high - effect.share for effect in shown],
        "arrayminus": [effect.share - effect.low for effect in shown], "color": "#8a8a8a", "thickness": 2,
    }  # fmt: skip
    colours = [PALETTE[0] if effect.is_found else PALETTE[-1] for effect in shown]
    share = Scatter(
        x=[effect.share for effect in shown], y=names, error_x=bars, mode="markers", name="share of variance",
        marker={"size": 13, "color": colours}, hovertemplate="%{y}: %{x:.0%}<extra></extra>", showlegend=False,
    )  # fmt: skip
    line = {"symbol": "line-ns-open", "size": 18, "color": PALETTE[5], "line": {"width": 2}}
    chance = Scatter(
        x=[effect.chance for effect in shown], y=names, mode="markers", name="by chance up to", marker=line,
        hovertemplate="by chance up to %{x:.0%}<extra></extra>", showlegend=False,
    )  # fmt: skip
    axis = {"title": "share of variance", "tickformat": ".0%", "range": [0, 1.02]}
    margin = {"l": 55, "r": 15, "t": 15, "b": 50}
    return Figure([chance, share]).update_layout(height=110 + 34 * len(effects), margin=margin, xaxis=axis)


@lru_cache(maxsize=32)
def effects_of(
    keys: tuple[str, ...], points: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...]
) -> tuple[Effect, ...]:
    """Return the effects; cached, as a live page asks again whenever any run has a new round.

    Args:
        keys: of the settings.
        points: each with the JSON of every setting and the metric of every seed.

    Raises:
        ImportError: Optuna or scikit-learn is not installed.

    """
    laws = _laws(keys, [point for point, _ in points])
    whole = _shares(laws, [(point, value) for point, values in points for value in values], seed=0)
    rng = np.random.default_rng(0)
    draws = []
    for seed in range(1, NUM_DRAWS + 1):
        drawn = [points[index] for index in rng.integers(len(points), size=len(points))]
        rows = [
            (point, values[place]) for point, values in drawn for place in rng.integers(len(values), size=len(values))
        ]
        draws.append(_shares(laws, rows, seed=seed))
    shuffles = []
    for seed in range(NUM_SHUFFLES):
        order = rng.permutation(len(points))
        rows = [(point, value) for (point, _), other in zip(points, order, strict=True) for value in points[other][1]]
        shuffles.append(_shares(laws, rows, seed=seed))
    tails = [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2]
    found = []
    for key in keys:
        low, high = np.percentile([draw[key] for draw in draws], tails)
        share, chance = whole[key], max(shuffle[key] for shuffle in shuffles)
        low, high = min(float(low), share), max(float(high), share)
        found.append(Effect(key=key, share=share, low=low, high=high, chance=chance))
    return tuple(sorted(found, key=lambda effect: -effect.share))


def _laws(keys: Sequence[str], points: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return Optuna's distribution of each setting: a range of numbers, else a list of words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    laws: dict[str, Any] = {}
    for place, key in enumerate(keys):
        values = [json.loads(point[place]) for point in points]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            laws[key] = FloatDistribution(min(values), max(values))
        else:
            laws[key] = CategoricalDistribution(sorted({point[place] for point in points}))
    return laws


def _shares(laws: Mapping[str, Any], rows: Sequence[tuple[Sequence[str], float]], seed: int) -> dict[str, float]:
    import optuna
    import sklearn  # noqa: F401  # of which the evaluator is made

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if len({value for _, value in rows}) == 1:
        return dict.fromkeys(laws, 0.0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.add_trials([
        optuna.trial.create_trial(params=_params(laws, point), distributions=dict(laws), value=value)
        for point, value in rows
    ])  # fmt: skip
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=NUM_TREES, seed=seed)
    found = evaluator.evaluate(study)
    return {key: float(np.clip(np.nan_to_num(found.get(key, 0.0)), 0.0, 1.0)) for key in laws}


def _params(laws: Mapping[str, Any], point: Sequence[str]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution

    return {
        key: text if isinstance(law, CategoricalDistribution) else float(json.loads(text))
        for (key, law), text in zip(laws.items(), point, strict=True)
    }


def seed_share(groups: Sequence[Group]) -> float | None:
    """Return the share of all runs' variance that is between seeds of one group; None without two seeds."""
    values = [list(group.values.values()) for group in groups if group.finished]
    if all(len(each) < 2 for each in values):
        return None
    grand = fmean(value for each in values for value in each)
    total = sum((value - grand) ** 2 for each in values for value in each)
    within = sum((value - fmean(each)) ** 2 for each in values for value in each)
    return within / total if total else None
