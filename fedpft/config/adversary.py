"""Clients that do harm, simulated: how many, and what they do."""

from dataclasses import dataclass
from typing import Literal

from fedpft.config.checks import require, require_positive, require_positive_or_none

ON_DATA = ("label_flip", "backdoor")
"""Kinds that spoil what their clients train on; the others spoil what these send."""
OMNISCIENT = ("alie", "inner_product", "min_max")
"""Kinds that know the honest updates of their round."""
DEFAULT_SCALES = {"sign_flip": 1.0, "gaussian": 1.0, "alie": 1.5, "inner_product": 2.0}


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """Byzantine clients. Which ones is drawn by the clients' seed; honest clients train as they would without them."""

    kind: Literal["none", "label_flip", "sign_flip", "gaussian", "alie", "inner_product", "min_max", "backdoor"] = (
        "none"
    )
    """What the adversaries do. `label_flip` trains class c as C - 1 - c; `backdoor` trains examples with a trigger as
    `target_label`. The others replace the update (adapter sent minus adapter received). `sign_flip` sends minus `scale`
    times it, `gaussian` sends noise. `alie`, `inner_product` and `min_max` make one update for all adversaries from the
    round's honest ones: their mean plus `scale` standard deviations; minus `scale` times their mean; and the point
    farthest against the standard deviation that is no farther from any honest update than two of these are from each
    other."""
    fraction: float = 0.2
    """Fraction of all clients that are adversaries, rounded to whole clients. A higher fraction includes the
    adversaries of a lower one."""
    scale: float | None = None
    """Strength of `sign_flip`, `gaussian` (its standard deviation), `alie` and `inner_product`. null takes 1, 1, 1.5
    and 2."""
    target_label: int = 0
    """With `backdoor`, the class that the trigger stands for."""
    poison_ratio: float = 0.5
    """With `backdoor`, the share of an adversary's examples, rounded up, that get the trigger and the class."""
    trigger: str = "cf"
    """With `backdoor` on texts, the word whose tokens replace those after the first one."""
    patch_ratio: float = 0.2
    """With `backdoor` on images, the side of a white square in the lower right corner, as a share of the shorter
    side."""

    def __post_init__(self) -> None:
        section = "federated.adversary"
        require(0 <= self.fraction < 1, f"{section}.fraction", self.fraction, "a fraction in [0, 1)")
        require_positive_or_none(section, self, "scale")
        require(self.target_label >= 0, f"{section}.target_label", self.target_label, "a label, an integer >= 0")
        require_positive(section, self, "poison_ratio", "patch_ratio")
        for name in ("poison_ratio", "patch_ratio"):
            require(getattr(self, name) <= 1, f"{section}.{name}", getattr(self, name), "a fraction in (0, 1]")
        require(bool(self.trigger.strip()), f"{section}.trigger", self.trigger, "a word")

    @property
    def strength(self) -> float:
        """`scale`, or the kind's default."""
        return DEFAULT_SCALES.get(self.kind, 1.0) if self.scale is None else self.scale
