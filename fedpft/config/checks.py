"""One-line errors for settings that cannot work: the key, what was found, what is allowed."""


class ConfigError(ValueError):
    """A setting that the user must change; the message is one line."""


def require(condition: bool, key: str, found: object, allowed: str) -> None:
    """Raise a ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: found {found!r}, allowed: {allowed}")


def require_positive(section: str, config: object, *names: str) -> None:
    """Raise a ConfigError for the first of the section's fields that is not above 0."""
    for name in names:
        require(getattr(config, name) > 0, f"{section}.{name}", getattr(config, name), "a number > 0")


def require_non_negative(section: str, config: object, *names: str) -> None:
    """Raise a ConfigError for the first of the section's fields that is below 0."""
    for name in names:
        require(getattr(config, name) >= 0, f"{section}.{name}", getattr(config, name), "a number >= 0")
