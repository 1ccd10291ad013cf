"""Nested settings as one level of dotted keys, to compare them."""

import json
from collections.abc import Mapping
from typing import Any


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and values as JSON, in which tuples and lists are equal."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
