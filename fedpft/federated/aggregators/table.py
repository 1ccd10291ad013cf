"""The aggregators by `federated.aggregator.kind`; `fedpft.config.algorithms` has what each asks for."""

from collections.abc import Callable, Mapping

from fedpft.config import AggregatorConfig
from fedpft.federated.aggregators import robust, ties
from fedpft.federated.aggregators.base import Aggregator, Stacked, stacked
from fedpft.federated.aggregators.mean import Mean, NormBound

MAKERS: Mapping[str, Callable[[AggregatorConfig], Aggregator]] = {
    "mean": lambda config: Mean(),
    "median": lambda config: stacked(robust.median),
    "trimmed_mean": lambda config: stacked(robust.trimmed_mean, f=config.num_byzantine),
    "krum": lambda config: stacked(robust.krum, f=config.num_byzantine),
    "multi_krum": lambda config: stacked(robust.multi_krum, f=config.num_byzantine, num_selected=config.num_selected),
    "bulyan": lambda config: stacked(robust.bulyan, f=config.num_byzantine),
    "geometric_median": lambda config: stacked(
        robust.geometric_median, iterations=config.iterations, smoothing=config.smoothing
    ),
    "h_ties": lambda config: stacked(ties.h_ties, keep=config.keep),
    "norm_bound": lambda config: NormBound(config.norm),
    "centered_clipping": lambda config: Stacked(
        lambda updates, weights, memory: robust.around_the_last(updates, memory, config.norm, config.iterations)
    ),
}


def make_aggregator(config: AggregatorConfig) -> Aggregator:
    """Return the rule of this package that the settings ask for."""
    return MAKERS[config.kind](config)
