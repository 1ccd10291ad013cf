"""Which parts a config may name: this package's, and those of installed plug-ins."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fedpft.config.algorithms import AGGREGATORS, SERVER_OPTIMISERS
from fedpft.config.client import CLIENT_STEPS
from fedpft.config.method import METHOD_NAMES, SCORER_NAMES
from fedpft.config.plugins import KINDS, plugins
from fedpft.data.tasks.table import TASKS
from fedpft.metrics.table import METRICS
from fedpft.storage.output import package_versions

OWN: Mapping[str, Sequence[str]] = {
    "aggregator": tuple(AGGREGATORS),
    "server_optimiser": tuple(SERVER_OPTIMISERS),
    "client_step": tuple(CLIENT_STEPS),
    "method": METHOD_NAMES,
    "scorer": SCORER_NAMES,
    "task": tuple(TASKS),
    "metric": tuple(METRICS),
    "tracker": ("jsonl", "wandb"),
}
"""Kind of part -> names of those that come with this package."""


def known_parts() -> list[dict[str, str]]:
    """Return `kind`, `setting`, `name`, `place` and `package` of every part, this package's first; imports no plug-in.

    Raises:
        ConfigError: an installed package that names a part wrongly.

    """
    own = f"fedpft {package_versions()['fedpft']}"
    here = [
        {"kind": kind, "name": name, "place": "fedpft", "package": own} for kind, names in OWN.items() for name in names
    ]
    found = [*here, *(asdict(plugin) for plugin in plugins())]
    return [part | {"setting": KINDS[part["kind"]]} for part in found]
