"""What accuracy costs: the axes on which groups are compared, and which groups are Pareto-optimal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.filesize import decimal as format_bytes

from fedpft.metrics.table import Goal
from fedpft.report.compare.groups import Group
from fedpft.report.compute import format_flops
from fedpft.report.wording import duration


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One price of a run."""

    title: str
    short: str
    """For the head of a column."""
    of: Callable[[Mapping[str, Any]], float | None]
    """`result.json` -> the price; None if the run did not measure it."""
    shown: Callable[[float], str] | None
    """None: it is a difference of the primary metric, in that one's unit."""
    unit: str = ""
    """After an SI prefix on plots."""
    goal: Goal = "min"


def _bytes(result: Mapping[str, Any]) -> float | None:
    ways = ("bytes_up_total", "bytes_down_total")
    return sum(result[way] for way in ways) if result.keys() >= set(ways) else None


def _align_seconds(result: Mapping[str, Any]) -> float | None:
    """Return the seconds of construction and all alignments; None if the sub-FM came from the cache."""
    made = result.get("construction", {})
    if made.get("cached"):
        return None
    return made.get("seconds", 0.0) + result.get("align_seconds", 0.0)


def _leakage_gap(result: Mapping[str, Any]) -> float | None:
    """Return by how much the plugged-in FM is better than what clients hold; 0 where they hold the FM."""
    if "sub_fm" not in result:
        return None
    gap = result["fm"] - result["sub_fm"]
    return gap if result["metric_goal"] == "max" else -gap


def _membership(result: Mapping[str, Any]) -> float | None:
    """Return how well the audit told the clients' examples from others by the models that the run made."""
    attacks = result.get("audit", {}).get("membership", {})
    return max((attack["auc"] for model, attack in attacks.items() if model != "untuned_fm"), default=None)


def _shared_skill(result: Mapping[str, Any]) -> float | None:
    """Return the part of the untuned FM's last hidden states that can be had from the sub-FM's."""
    return result.get("audit", {}).get("skill", {}).get("probe")


def _epsilon_of(unit: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Return what gives epsilon where it is a guarantee for this unit: of another it is another quantity."""

    def epsilon(result: Mapping[str, Any]) -> float | None:
        found = result.get("privacy", {})
        return found.get("epsilon") if found.get("unit", "client") == unit else None

    return epsilon


def _share(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Return which part of this skill of the untuned FM the run's untuned sub-FM has."""

    def of(result: Mapping[str, Any]) -> float | None:
        return result.get("skill", {}).get(name)

    return of


AXES: dict[str, Axis] = {
    "bytes": Axis(
        title="traffic of all rounds", short="traffic", of=_bytes, shown=lambda v: format_bytes(round(v)), unit="B"
    ),
    "client_flops": Axis(
        title="compute of a client and round",
        short="compute a round",
        of=lambda r: r.get("client_flops_per_round"),
        shown=format_flops,
        unit="FLOP",
    ),
    "client_memory": Axis(
        title="memory of a client",
        short="memory",
        of=lambda r: r.get("client_memory_bytes"),
        shown=lambda v: format_bytes(round(v)),
        unit="B",
    ),
    "proxy_params": Axis(
        title="parameters of the proxy",
        short="proxy",
        of=lambda r: r.get("num_params_sub_fm"),
        shown=lambda v: f"{v / 1e6:.3g} M",
    ),
    "align_seconds": Axis(
        title="time to construct and align", short="align", of=_align_seconds, shown=duration, unit="s"
    ),
    "epsilon": Axis(
        title="epsilon of a client", short="epsilon (client)", of=_epsilon_of("client"), shown=lambda v: f"{v:.3g}"
    ),
    "epsilon_of_example": Axis(
        title="epsilon of an example", short="epsilon (example)", of=_epsilon_of("example"), shown=lambda v: f"{v:.3g}"
    ),
    "membership": Axis(
        title="AUC of membership inference", short="membership", of=_membership, shown=lambda v: f"{v:.3f}"
    ),
    "shared_skill": Axis(
        title="part of the FM that the proxy gives away",
        short="shared",
        of=_shared_skill,
        shown=lambda v: f"{100 * v:.1f} %",
    ),
    "agreement": Axis(
        title="answers that the untuned FM and the proxy share",
        short="agreement",
        of=_share("agreement"),
        shown=lambda v: f"{100 * v:.1f} %",
    ),
    "shared_loss": Axis(
        title="part of the FM's loss that the proxy gives away",
        short="loss shared",
        of=_share("loss"),
        shown=lambda v: f"{100 * v:.1f} %",
    ),
    "leakage_gap": Axis(title="leakage gap (FM minus proxy)", short="gap", of=_leakage_gap, shown=None, goal="max"),
}
"""Key in `compare.json` -> axis. A group's price is the mean over its runs."""


def group_costs(group: Group) -> dict[str, float]:
    """Return the group's price on each axis that all of its finished runs measured."""
    runs = group.finished
    prices = {key: [axis.of(run.result) for run in runs] for key, axis in AXES.items()}
    measured = {key: [price for price in each if price is not None] for key, each in prices.items()}
    return {key: fmean(each) for key, each in measured.items() if runs and len(each) == len(runs)}


def pareto_front(prices: Mapping[str, float], scores: Mapping[str, float], goals: tuple[Goal, Goal]) -> list[str]:
    """Return the labels that no other beats on one axis without losing on the other, the lowest price first.

    Args:
        prices: label -> price.
        scores: label -> metric; may have more labels.
        goals: which way price and metric are better.

    """
    price_sign, score_sign = (1 if goal == "max" else -1 for goal in goals)
    points = {label: (price_sign * price, score_sign * scores[label]) for label, price in prices.items()}

    def is_beaten(label: str) -> bool:
        x, y = points[label]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())

    return sorted((label for label in points if not is_beaten(label)), key=prices.__getitem__)
