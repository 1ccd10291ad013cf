"""Settings of what the server makes of a round's updates: how it aggregates them, and the step that it then takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedpft.config.checks import (
    require,
    require_non_negative,
    require_positive,
    require_positive_or_none,
    require_repeats,
)
from fedpft.config.plugins import is_own, require_known

LoraAggregation = Literal["separate", "ffa", "svd", "fedsvd", "alternate"]


@dataclass(frozen=True)
class AggregatorFacts:
    """What is known of an aggregator before it runs."""

    factor: int = 0
    """Without `factor * num_byzantine + constant` updates its guarantee does not hold."""
    constant: int = 1
    reads: tuple[str, ...] | None = ("num_byzantine",)
    """Settings of the section that it reads; None: not known."""
    is_stacked: bool = True
    """Whether it needs all updates at once; else what it holds does not grow with the cohort."""
    weighs: bool = False
    """Whether updates have weights (`federated.aggregation`)."""
    remembers: bool = False
    """Whether it has an adapter's numbers in mind from round to round."""

    def fewest(self, num_byzantine: int) -> int:
        """Return how many updates it needs."""
        return self.factor * num_byzantine + self.constant


LEAST_KEPT = 0.2
"""What H-TIES takes off the part that the update least like the others keeps."""

AGGREGATORS: Mapping[str, AggregatorFacts] = {
    "mean": AggregatorFacts(reads=(), is_stacked=False, weighs=True),
    "median": AggregatorFacts(2, 1),
    "trimmed_mean": AggregatorFacts(2, 1),
    "krum": AggregatorFacts(2, 3),
    "multi_krum": AggregatorFacts(2, 3, reads=("num_byzantine", "num_selected")),
    "bulyan": AggregatorFacts(4, 3),
    "geometric_median": AggregatorFacts(2, 1, reads=("num_byzantine", "iterations", "smoothing")),
    "norm_bound": AggregatorFacts(reads=("norm",), is_stacked=False),
    "h_ties": AggregatorFacts(reads=("keep",)),
    "centered_clipping": AggregatorFacts(2, 1, reads=("num_byzantine", "norm", "iterations"), remembers=True),
}
"""`federated.aggregator.kind` -> what is known of it."""

OWN_AGGREGATOR = AggregatorFacts(reads=None, weighs=True)
"""What is assumed of an aggregator of others."""


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """How a round's updates become one; all but `mean` and `h_ties` bound what a few bad clients can do."""

    kind: str = "mean"
    """The rule. `mean` has the weights of `federated.aggregation`. Robust rules take no weights: `median` and
    `trimmed_mean` of each number, `krum` (the update with the nearest neighbours), `multi_krum` (the mean of the best
    such updates), `bulyan` (a trimmed mean of Krum's choices), `geometric_median`, `norm_bound` (the mean of updates
    that are scaled down to a norm) and `centered_clipping` (around the previous round's). `h_ties` is FedProxy's rule,
    for clients that pull apart: each number is the mean of the updates with its dominant sign. A rule of your own is
    `module:name` or a plug-in's name."""
    num_byzantine: int = 0
    """How many bad updates in a round the robust rules withstand. Each rule needs a number of updates that grows with
    it."""
    num_selected: int | None = None
    """With `multi_krum`, how many updates its mean takes. null takes all but `num_byzantine`."""
    norm: float = 1.0
    """With `norm_bound` and `centered_clipping`, updates farther than this from 0, or from the centre, are scaled
    down."""
    iterations: int = 8
    """With `geometric_median` and `centered_clipping`, how many steps are made towards the fixed point."""
    smoothing: float = 1e-6
    """With `geometric_median`, the smallest distance that counts; shorter ones count as this, so that no weight is
    infinite."""

    keep: float = 0.8
    """With `h_ties`, the fraction of its largest numbers that an update keeps. The update that is least like the others
    keeps 0.2 less."""

    def __post_init__(self) -> None:
        section = "federated.aggregator"
        require(LEAST_KEPT < self.keep <= 1, f"{section}.keep", self.keep, f"a fraction above {LEAST_KEPT}, up to 1")
        require_known("aggregator", self.kind, AGGREGATORS)
        require_non_negative(section, self, "num_byzantine")
        require_positive_or_none(section, self, "num_selected")
        require_positive(section, self, "norm", "iterations", "smoothing")
        require_repeats(section, self, "iterations")

    @property
    def is_own(self) -> bool:
        """Whether `kind` names a rule of others."""
        return self.kind not in AGGREGATORS and is_own("aggregator", self.kind)

    @property
    def facts(self) -> AggregatorFacts:
        """What is known of the rule."""
        return AGGREGATORS.get(self.kind, OWN_AGGREGATOR)

    @property
    def min_updates(self) -> int:
        """With fewer good updates a round does not count."""
        selected = self.num_selected if self.kind == "multi_krum" else None
        return max(self.facts.fewest(self.num_byzantine), selected or 1)

    def check_cohort(self, cohort_size: int) -> None:
        """Raise a ConfigError unless a whole cohort is enough for the rule."""
        facts = self.facts
        enough = facts.fewest(self.num_byzantine) <= cohort_size
        needs = f"{facts.factor} * num_byzantine + {facts.constant}"
        allowed = f"{self.kind} needs {needs} updates in a round, which has at most {cohort_size}"
        require(enough, "federated.aggregator.num_byzantine", self.num_byzantine, allowed)
        if self.kind == "multi_krum" and self.num_selected is not None:
            allowed = f"null or at most the clients of a round, {cohort_size}"
            require(self.num_selected <= cohort_size, "federated.aggregator.num_selected", self.num_selected, allowed)


@dataclass(frozen=True, kw_only=True)
class ServerOptimiserConfig:
    """The server's step with a round's aggregate (Reddi et al. 2021); `update` is the aggregate minus the adapter."""

    kind: str = "avg"
    """The rule of the step. `avg` adds `lr * update` to the adapter, so that with `lr` 1 the aggregate itself is the
    result. `momentum` is FedAvgM. `adam`, `yogi` and `adagrad` have a learning rate for each number. A rule of your own
    is `module:name` or a plug-in's name."""
    lr: float | None = None
    """The server's learning rate. null takes 1 for `avg` and `momentum`, and 0.01 for the others."""
    head_lr: float | None = None
    """The server's learning rate of the task head. null takes `lr`."""
    beta1: float = 0.9
    """How much is kept of earlier updates; `avg` keeps none."""
    beta2: float = 0.99
    """With `adam` and `yogi`, how much is kept of earlier squares."""
    tau: float = 1e-3
    """With `adam`, `yogi` and `adagrad`, a number that is added to the root of the squares, so that small updates do
    not become large ones."""

    def __post_init__(self) -> None:
        section = "federated.server"
        require_known("server_optimiser", self.kind, SERVER_OPTIMISERS)
        require_positive_or_none(section, self, "lr", "head_lr")
        require_positive(section, self, "tau")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{section}.{name}", value, "a fraction in [0, 1)")

    @property
    def is_own(self) -> bool:
        """Whether `kind` names one of others."""
        return self.kind not in SERVER_OPTIMISERS and is_own("server_optimiser", self.kind)

    @property
    def rates(self) -> tuple[float, float]:
        """Of LoRA and of the head."""
        lr = self.lr or (0.01 if self.kind in ADAPTIVE else 1.0)
        return lr, self.head_lr or lr


ADAPTIVE = ("adam", "yogi", "adagrad")
"""Those that have a rate for each number."""

_RATES = ("lr", "head_lr")
SERVER_OPTIMISERS: Mapping[str, tuple[str, ...]] = {
    "avg": _RATES,
    "momentum": (*_RATES, "beta1"),
    "adam": (*_RATES, "beta1", "beta2", "tau"),
    "yogi": (*_RATES, "beta1", "beta2", "tau"),
    "adagrad": (*_RATES, "beta1", "tau"),
}
"""`federated.server.kind` -> settings of the section that it reads."""
