"""Which settings a method does not read."""

from dataclasses import asdict
from fnmatch import fnmatch

from fedpft.config.flat import flat_settings
from fedpft.config.run import Config

_COMPRESSION = ("method.retained_ratio", "method.uncompressed_layers", "method.scorer")
_LAYER_DROP = ("method.adapter_layers", "method.kept_layers")

UNREAD = {
    "fedpft": _LAYER_DROP,
    "fedot": (
        *_COMPRESSION,
        *("align.layers.num_examples", "align.layers.refit", "align.layers.product_weight", "align.neurons.*"),
    ),
    "fedproxy": (*_COMPRESSION, "method.adapter_layers", "align.layers.*", "align.neurons.*"),
    "full": (*_COMPRESSION, *_LAYER_DROP, "method.plug_in", "align.*", "evaluation.fidelity_examples"),
}
"""`method.name` -> keys (patterns) that do nothing then; what a method of others reads is not known."""


def is_read(key: str, method: str) -> bool:
    """Whether a method reads a setting, by its dotted key."""
    return not any(fnmatch(key, pattern) for pattern in UNREAD.get(method, ()))


def unread_settings(config: Config, method: str) -> list[str]:
    """Return the keys that are not at their default and that the method does not read."""
    defaults, found = flat_settings(asdict(Config())), flat_settings(asdict(config))
    return [key for key, value in found.items() if value != defaults.get(key) and not is_read(key, method)]
