"""Settings of what clients make of their gradients: the rule of a local step, and its rate within a round."""

from dataclasses import dataclass
from typing import Literal

from fedpft.config.checks import require, require_non_negative, require_positive
from fedpft.config.plugins import is_own, require_known

CLIENT_STEPS = {
    "adamw": ("adamw",),
    "sgd": ("sgd",),
    "prox": ("adamw", "sgd"),
    "scaffold": ("sgd",),
    "fednova": ("sgd",),
}
"""`federated.client.kind` -> optimisers that it may have, its own one first."""


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How clients make their local steps; the rate is `federated.lr`, which suits AdamW: SGD needs a higher one."""

    kind: str = "adamw"
    """The rule of a local step: `adamw`; `sgd`, with `momentum`; `prox` (FedProx), which keeps a client near the
    adapter that it was sent, with `mu`; `scaffold`, SGD with control variates against client drift; `fednova`, SGD
    whose updates are normalised by the number of a client's steps. A rule of your own is `module:name` or a plug-in's
    name."""
    optimiser: Literal["adamw", "sgd"] | None = None
    """With `prox`, which optimiser makes the steps; null takes `adamw`. SCAFFOLD and FedNova are made for SGD."""
    momentum: float = 0.0
    """Momentum of SGD. SCAFFOLD has none."""
    mu: float = 0.01
    """With `prox`, the weight of the proximal term: `mu / 2` times the squared distance to the adapter that was sent is
    added to a client's loss."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate changes over a client's steps of a round. `linear` and `cosine` fall to 0, which they would
    reach one step after the last."""
    warmup_steps: int = 0
    """In how many first steps of a round a client's learning rate grows linearly. A client with no more steps than
    these never gets beyond."""

    def __post_init__(self) -> None:
        section = "federated.client"
        require_known("client_step", self.kind, CLIENT_STEPS)
        kinds = " or ".join(self._optimisers)
        allowed = f"null or {kinds} with {section}.kind = {self.kind}"
        if self._optimisers == ("sgd",) and self.kind != "sgd":
            allowed += ", which assumes SGD"
        require(self.optimiser in (None, *self._optimisers), f"{section}.optimiser", self.optimiser, allowed)
        require(0 <= self.momentum < 1, f"{section}.momentum", self.momentum, "a fraction in [0, 1)")
        plain = self.kind != "scaffold" or self.momentum == 0
        why = "0 with federated.client.kind = scaffold: its control variates are means of plain gradients"
        require(plain, f"{section}.momentum", self.momentum, why)
        require_positive(section, self, "mu")
        require_non_negative(section, self, "warmup_steps")

    @property
    def is_own(self) -> bool:
        """Whether `kind` names a rule of others."""
        return self.kind not in CLIENT_STEPS and is_own("client_step", self.kind)

    @property
    def reads(self) -> tuple[str, ...] | None:
        """Settings of this section that do something with this kind; None: it is not known."""
        if self.is_own:
            return None
        common = ("kind", "optimiser", "schedule", "warmup_steps")
        return (*common, *(["mu"] * (self.kind == "prox")), *(["momentum"] * (self.base == "sgd")))

    @property
    def base(self) -> str:
        """The optimiser of the steps, `adamw` or `sgd`."""
        return self.optimiser or self._optimisers[0]

    @property
    def keeps_state(self) -> bool:
        """Whether the server keeps something of each client from round to round."""
        return self.kind == "scaffold"

    @property
    def rows(self) -> int:
        """How many numbers a client that trains keeps for each weight, besides value and gradient; of others, 2."""
        own = int(self.momentum > 0) if self.base == "sgd" else 2
        return own + (self.kind in ("prox", "scaffold"))

    @property
    def _optimisers(self) -> tuple[str, ...]:
        return CLIENT_STEPS.get(self.kind, ("adamw", "sgd"))
