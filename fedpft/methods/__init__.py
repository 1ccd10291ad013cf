"""The registry of methods, by `method.name`."""

import importlib
from collections.abc import Callable

from fedpft.config import ConfigError
from fedpft.methods.base import Method
from fedpft.methods.full_model import FullModel
from fedpft.methods.offsite_tuning import OffsiteTuning
from fedpft.methods.proxy_tuning import ProxyTuning

METHODS: dict[str, Callable[..., Method]] = {"fedpft": ProxyTuning, "fedot": OffsiteTuning, "full": FullModel}


def find_method(name: str) -> Callable[..., Method]:
    """Return the class of a method, called with (fm, public, config, progress).

    Args:
        name: a key of `METHODS`, or `module:Class`; of a notebook or script, `__main__:Class`.

    Raises:
        ConfigError: the module cannot be imported here, or has no such class.

    """
    if name in METHODS:
        return METHODS[name]
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        allowed = "a class that this process can import"
        raise ConfigError(f"method.name: found {name!r} ({error}), allowed: {allowed}") from None
