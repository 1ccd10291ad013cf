"""One-line errors for settings that cannot work: the key, what was found, what is allowed."""

import os
from math import inf

LARGEST_SIGMA = 10
"""Of a log-normal law: from -2 to +2 standard deviations its draws span 17 orders of magnitude."""

MOST_REPEATS = 1_000_000
"""Of what is done again and again; with more of it a run would never end."""

MOST_THREADS = 1024
"""Of torch in a process."""


class ConfigError(ValueError):
    """A setting that the user must change; the message is one line."""


def require(condition: bool, key: str, found: object, allowed: str) -> None:
    """Raise a ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: found {found!r}, allowed: {allowed}")


def require_positive(section: str, config: object, *names: str) -> None:
    """Raise a ConfigError for the first of the section's fields that is not above 0, or not finite."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{section}.{name}", value, "a number > 0")
        require(value < inf, f"{section}.{name}", value, "a finite number")


def require_positive_or_none(section: str, config: object, *names: str) -> None:
    """Raise a ConfigError for the first of the section's fields that is neither None nor above 0 and finite."""
    for name in names:
        value = getattr(config, name)
        require(value is None or 0 < value < inf, f"{section}.{name}", value, "null or a finite number > 0")


def require_non_negative(section: str, config: object, *names: str) -> None:
    """Raise a ConfigError for the first of the section's fields that is below 0, or not finite."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{section}.{name}", value, "a number >= 0")
        require(value < inf, f"{section}.{name}", value, "a finite number")


def require_repeats(section: str, config: object, *names: str) -> None:
    """Raise a ConfigError for the first of the section's fields, times that something is done, that never ends."""
    for name in names:
        value = getattr(config, name)
        require(value <= MOST_REPEATS, f"{section}.{name}".removeprefix("."), value, f"at most {MOST_REPEATS}")


def require_threads(key: str, found: int) -> None:
    """Raise a ConfigError unless torch can have so many threads in a process."""
    require(found <= MOST_THREADS, key, found, f"at most {MOST_THREADS}")


def require_gpus(key: str, found: object, others: str = "") -> None:
    """Raise a ConfigError unless a process can claim that many GPUs from Ray, which divides one but not several."""
    ok = isinstance(found, int | float) and (0 <= found <= 1 or (1 < found < inf and found == int(found)))
    require(ok, key, found, f"{others}a number >= 0: a fraction up to 1, or a whole number")


def require_sigma(section: str, config: object, name: str) -> None:
    """Raise a ConfigError unless the field is the sigma of a log-normal law whose draws do not overflow."""
    value = getattr(config, name)
    require(0 <= value <= LARGEST_SIGMA, f"{section}.{name}", value, f"a number in [0, {LARGEST_SIGMA}]")


def require_nameable(key: str, path: str | None) -> None:
    """Raise a ConfigError unless the system's encoding and UTF-8, that of our files, have every sign of a path."""
    try:
        os.fsencode(path or "")
        (path or "").encode()
    except UnicodeEncodeError as error:
        sign = error.object[error.start]
        allowed = f"a path without {sign!r}, which is not in {error.encoding}, or any with PYTHONUTF8=1"
        raise ConfigError(f"{key}: found {path!r}, allowed: {allowed}") from None
