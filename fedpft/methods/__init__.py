"""The registry of methods, by `method.name`."""

from collections.abc import Callable

from fedpft.methods.base import Method
from fedpft.methods.full_model import FullModel
from fedpft.methods.offsite_tuning import OffsiteTuning
from fedpft.methods.proxy_tuning import ProxyTuning

METHODS: dict[str, Callable[..., Method]] = {"fedpft": ProxyTuning, "fedot": OffsiteTuning, "full": FullModel}
