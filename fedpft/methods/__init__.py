"""The registry of methods, by `method.name`."""

from collections.abc import Callable

from fedpft.config.plugins import load_part
from fedpft.methods.base import Method
from fedpft.methods.full_model import FullModel
from fedpft.methods.influential_layers import InfluentialLayers
from fedpft.methods.offsite_tuning import OffsiteTuning
from fedpft.methods.proxy_tuning import ProxyTuning

METHODS: dict[str, Callable[..., Method]] = {
    "fedpft": ProxyTuning,
    "fedot": OffsiteTuning,
    "fedproxy": InfluentialLayers,
    "full": FullModel,
}


def find_method(name: str) -> Callable[..., Method]:
    """Return the class of a method, called with (fm, public, config, progress).

    Args:
        name: a key of `METHODS`, a plug-in's, or `module:Class`; of a notebook or script, `__main__:Class`.

    Raises:
        ConfigError: the module cannot be imported here, or has no such class.

    """
    if name in METHODS:
        return METHODS[name]
    return load_part("method", name)
