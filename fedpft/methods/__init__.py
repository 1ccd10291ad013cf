"""The registry of methods, by `method.name`."""

from collections.abc import Callable

from fedpft.methods.base import Method
from fedpft.methods.proxy_tuning import ProxyTuning

METHODS: dict[str, Callable[..., Method]] = {"fedpft": ProxyTuning}
