"""What a loaded FM remembers of its loading: what its files lacked, and what was done about it."""

from dataclasses import dataclass

from torch import nn

from fedpft.models.ffn import find_backbone

_ATTRIBUTE = "fedpft_origin"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Of one FM; copies of it, sub-FMs too, have the same."""

    random_weights: tuple[str, ...] = ()
    """Names of the tensors that were drawn from the seed, sorted; `*`: all."""
    new_modules: tuple[str, ...] = ()
    """Modules of the backbone, by their names in it, that were drawn: they belong to the head, clients tune them."""
    revision: str | None = None
    """The hub's commit that was loaded; None: no hub."""
    notes: tuple[str, ...] = ()
    """What a user must know, one line each."""


def remember_origin(model: nn.Module, origin: Origin) -> None:
    """Attach it to the backbone; it is copied with the model and written nowhere."""
    setattr(find_backbone(model), _ATTRIBUTE, origin)


def origin_of(model: nn.Module) -> Origin:
    """Return what was attached, or that nothing is known."""
    return getattr(find_backbone(model), _ATTRIBUTE, Origin())
