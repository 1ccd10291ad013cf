"""The guarantees by `privacy.kind`."""

from collections.abc import Callable, Mapping

import numpy as np

from fedpft.config import Config
from fedpft.privacy.client_level import ClientLevel
from fedpft.privacy.example_level import ExampleLevel
from fedpft.privacy.guarantee import Guarantee

GUARANTEES: Mapping[str, Callable[[Config, np.ndarray, float | None], Guarantee]] = {
    "client": lambda config, sizes, noise: ClientLevel.of(config.privacy, config.federated, noise, config.seed),
    "example": lambda config, sizes, noise: ExampleLevel.of(config.privacy, config.federated, sizes, noise),
}
"""`privacy.kind` -> (config, examples of each client, noise multiplier from before) -> the guarantee."""


def guarantee_of(config: Config, sizes: np.ndarray, noise_multiplier: float | None = None) -> Guarantee | None:
    """Return a run's guarantee; None for a run without DP.

    Args:
        config: the run's.
        sizes: (num_clients,) examples of each client.
        noise_multiplier: of the run so far; None: the settings', or solved for.

    Raises:
        ConfigError: a budget that not even one round keeps to, or settings that cannot be together.

    """
    make = GUARANTEES.get(config.privacy.kind)
    return None if make is None else make(config, sizes, noise_multiplier)
