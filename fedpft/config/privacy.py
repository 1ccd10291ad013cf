"""Settings of differential privacy and of secure aggregation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedpft.config.adversary import OMNISCIENT, ON_DATA
from fedpft.config.checks import require, require_non_negative, require_positive, require_positive_or_none
from fedpft.config.federated import FederatedConfig


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy (DP) and secure aggregation, simulated; what a run's files may know of clients."""

    kind: Literal["none", "client", "example"] = "none"
    """The guarantee. `client` is DP of whole clients: each update is clipped, noise is added once to their sum, and the
    sum is divided by the expected number of clients. Neighbouring data sets differ in one whole client, which is there
    or not. `example` is DP of single examples, by DP-SGD in each client: a step's examples are drawn by Poisson
    sampling, `federated.batch_size * federated.accumulate` on average, each example's gradient is clipped, noise is
    added to their sum, and the sum is divided by that average. Neighbouring data sets differ in one example of one
    client."""
    noise_multiplier: float | None = None
    """The noise's standard deviation divided by `clip`, called z. null takes the smallest one with which all rounds
    stay within `target_epsilon`, with `example` for a client that takes part in all of them."""
    target_epsilon: float | None = None
    """The budget. A round that would exceed it, with `example` for any client that is drawn, is not run, and the run
    ends there with its result. null sets no limit."""
    delta: float = 1e-5
    """The probability with which epsilon may not hold. It must be below 1 divided by the number of clients, with
    `example` by the number of examples of the largest client."""
    clip: float = 1.0
    """The largest L2 norm, C, of a client's update, or with `example` of an example's gradient (LoRA and head as one
    vector). A longer one is scaled down to it."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """Whether `clip` stays as it is. With `adaptive` it is the clip of round 1, which then follows a quantile of the
    norms (Andrew et al. 2021)."""
    clip_quantile: float = 0.5
    """With `adaptive`, the fraction of updates that should be shorter than the clip."""
    clip_lr: float = 0.2
    """With `adaptive`, how fast the clip moves: each round it is multiplied by exp(-clip_lr * (fraction that was
    shorter - clip_quantile))."""
    clip_count_noise: float | None = None
    """With `adaptive`, the standard deviation of the noise on how many updates were shorter. null takes a twentieth of
    a round's clients, but no less than the noise multiplier, which leaves three quarters of the budget to the
    updates."""
    noise_cohort_size: int | None = None
    """Simulate the noise that rounds of so many clients would have, from a population that is larger in the same
    proportion. Epsilon is then that population's, not that of this run's clients. null simulates none."""
    counts_share: float = 0.1
    """With `align.neurons.counts = clients`, the part of a round's budget that neuron counts take in rounds that ask
    for them, as a second query in the same release."""
    secure_aggregation: bool = False
    """Whether clients put masks on their updates that cancel out in the sum (Bonawitz et al. 2017). The server then
    sees the sum, to the last bit of a fixed-point number, and no single update. With `kind: client` clients clip, and
    the noise is added to the sum as before."""
    secure_threshold: float = 0.5
    """More than this fraction of a round's clients must be there at its end: they take the masks of those who dropped
    out off the sum. With fewer the round does not count; with `kind: client` the run ends. Clients that are too late
    are among the round's clients."""
    secure_bound: float = 16.0
    """The largest number that an update may have; it decides how fine fixed-point numbers are. A client whose update
    has a larger one is dropped. With `kind: client` the clip is the bound."""
    canaries: int = 0
    """How many canaries to plant, so that `fedpft audit` can bound epsilon from below by this very run (Steinke et al.
    2023). A canary is a text of random tokens with a random label, and a coin decides whether anybody trains on it. It
    is one more example of a client; with `kind: client` it is a whole client, which has no other example and takes part
    like all others or never."""
    strict: bool = False
    """Whether files and screen leave out what would never leave real clients one by one: who took part, losses, sizes,
    label counts, reasons of failures and examples. It works without DP as well."""

    def __post_init__(self) -> None:
        require_positive("privacy", self, "clip", "clip_lr", "secure_bound")
        require_non_negative("privacy", self, "canaries")
        simulated = self.noise_cohort_size is not None and self.canaries > 0
        allowed = "0 with privacy.noise_cohort_size: epsilon is that of other clients than those that train"
        require(not simulated, "privacy.canaries", self.canaries, allowed)
        allowed = "a fraction in [0.5, 1): with fewer both secrets of a client could come together"
        require(0.5 <= self.secure_threshold < 1, "privacy.secure_threshold", self.secure_threshold, allowed)
        names = ("noise_multiplier", "target_epsilon", "clip_count_noise", "noise_cohort_size")
        require_positive_or_none("privacy", self, *names)
        for name in ("delta", "clip_quantile", "counts_share"):
            require(0 < getattr(self, name) < 1, f"privacy.{name}", getattr(self, name), "a fraction in (0, 1)")
        known = self.noise_multiplier is not None or self.target_epsilon is not None
        allowed = "a number > 0, or privacy.target_epsilon from which it follows"
        require(self.kind == "none" or known, "privacy.noise_multiplier", self.noise_multiplier, allowed)

    @property
    def is_on(self) -> bool:
        """Whether the run has a guarantee."""
        return self.kind != "none"

    @property
    def is_of_clients(self) -> bool:
        """Whether whole updates are clipped and noise is added to their sum."""
        return self.kind == "client"

    @property
    def is_of_examples(self) -> bool:
        """Whether clients clip the gradients of their examples and add noise themselves."""
        return self.kind == "example"


def check_strict(federated: FederatedConfig) -> None:
    """Refuse what must write numbers of single clients into checkpoints, so that a run can go on.

    Raises:
        ConfigError: a setting that cannot be with `privacy.strict`, and why.

    """
    why = "with privacy.strict: a checkpoint would hold"
    sampling, kind = federated.sampling, federated.client.kind
    allowed = f"any but power_of_choice {why} the clients' losses"
    require(sampling != "power_of_choice", "federated.sampling", sampling, allowed)
    require(not federated.client.keeps_state, "federated.client.kind", kind, f"any but scaffold {why} their states")


def check_secure_aggregation(privacy: PrivacyConfig, federated: FederatedConfig, counts: str) -> None:
    """Refuse what needs to see a single client's update, or what a client would have to tell besides.

    Args:
        privacy: the run's.
        federated: the run's.
        counts: whose data neuron counts come from.

    Raises:
        ConfigError: a setting that cannot be with `privacy.secure_aggregation`, and why.

    """
    mode = "with privacy.secure_aggregation"

    def refuse_unless(condition: bool, name: str, found: object, allowed: str, why: str) -> None:
        require(condition, name, found, f"{allowed} {mode}: {why}")

    refuse_unless(
        federated.cohort_size > 1, "federated.clients_per_round", federated.cohort_size, "2 or more",
        "the sum of one update is that update",
    )  # fmt: skip
    kind = federated.aggregator.kind
    why = "other rules compare or bound single updates, and the server has only their sum"
    refuse_unless(kind == "mean", "federated.aggregator.kind", kind, "mean", why)
    kind = federated.lora_aggregation
    why = "it is a mean of products of each client's factors"
    refuse_unless(kind != "svd", "federated.lora_aggregation", kind, "any but svd", why)
    kind = federated.sampling
    why = "they draw by losses or sizes, which clients keep to themselves"
    allowed = "uniform, full or poisson"
    refuse_unless(kind not in ("power_of_choice", "md"), "federated.sampling", kind, allowed, why)
    kind = federated.client.kind
    why = "they send a state in the clear, or are normalised by each client's steps"
    allowed = "any but scaffold and fednova"
    refuse_unless(kind not in ("scaffold", "fednova"), "federated.client.kind", kind, allowed, why)
    kind = federated.adversary.kind
    why = "the others replace what is sent, where it is masked"
    refuse_unless(
        kind in ("none", *ON_DATA), "federated.adversary.kind", kind, f"none, {', '.join(ON_DATA)}", why
    )  # fmt: skip
    why = "each client's counts would have to be scaled before they are masked"
    public = not privacy.is_of_clients or counts == "public"
    refuse_unless(public, "align.neurons.counts", counts, "public", f"and privacy.kind = {privacy.kind}: {why}")
    if privacy.is_of_clients and federated.sampling == "poisson":
        rate, others = federated.cohort_size / federated.num_clients, federated.num_clients - 1
        lone = (1 - rate) ** others * (1 - rate + federated.num_clients * rate)
        why = (
            f"privacy.kind = {privacy.kind}: no sum for one client, which must be less likely than privacy.delta / 100"
        )
        found, rare = federated.cohort_size, lone * federated.rounds <= privacy.delta / 100
        refuse_unless(rare, "federated.clients_per_round", found, "more", f"and {why}")


def _check_client_level(privacy: PrivacyConfig, federated: FederatedConfig, counts: str) -> None:
    """Refuse what makes it depend on others or on data who is drawn, kept and weighed."""
    mode = "with privacy.kind = client"

    def refuse_unless(condition: bool, name: str, allowed: str, why: str) -> None:
        require(condition, f"federated.{name}", getattr(federated, name), f"{allowed} {mode}: {why}")

    refuse_unless(
        federated.sampling in ("poisson", "full"), "sampling", "poisson, full",
        "epsilon is accounted for clients that come independently of each other",
    )  # fmt: skip
    refuse_unless(
        federated.aggregation == "uniform", "aggregation", "uniform",
        "a client that weighs by its examples changes the sum by more than the clip",
    )  # fmt: skip
    kind = federated.aggregator.kind
    allowed = f"mean {mode}: how much one client changes a robust aggregate is not bounded by the clip"
    require(kind == "mean", "federated.aggregator.kind", kind, allowed)
    refuse_unless(
        federated.lora_aggregation != "svd", "lora_aggregation", "any but svd",
        "how much one client changes a mean of products is not bounded by the clip",
    )  # fmt: skip
    kind = federated.client.kind
    allowed = f"any but scaffold and fednova {mode}: they send or make use of more of a client than its clipped update"
    require(kind not in ("scaffold", "fednova"), "federated.client.kind", kind, allowed)
    kind = federated.adversary.kind
    allowed = (
        f"any but {', '.join(OMNISCIENT)} {mode}: an update that is made of others' carries more of them than a clip"
    )
    require(kind not in OMNISCIENT, "federated.adversary.kind", kind, allowed)
    refuse_unless(
        federated.over_selection == 1, "over_selection", "1",
        "who is kept depends on how fast the others are",
    )  # fmt: skip
    refuse_unless(
        federated.deadline is None, "deadline", "null",
        "a client with more data is late more often, so that presence tells its size",
    )  # fmt: skip
    refuse_unless(
        federated.min_clients == 1, "min_clients", "1",
        "whether a round counts must not depend on how many came, which is private",
    )  # fmt: skip
    cohort = federated.cohort_size
    larger = privacy.noise_cohort_size is None or privacy.noise_cohort_size >= cohort
    allowed = f"null or at least the {cohort} clients that a round draws on average"
    require(larger, "privacy.noise_cohort_size", privacy.noise_cohort_size, allowed)
    population = federated.num_clients * (privacy.noise_cohort_size or cohort) / cohort
    allowed = f"a number below 1 / {population:g} clients: one client in so many could be given away whole"
    require(privacy.delta < 1 / population, "privacy.delta", privacy.delta, allowed)


def _check_example_level(privacy: PrivacyConfig, federated: FederatedConfig, counts: str) -> None:
    """Refuse what would let more of an example out than the noised steps of its client, which all else may work on."""
    mode = "with privacy.kind = example"
    sampling = federated.sampling
    allowed = f"any but power_of_choice {mode}: it draws by training losses, which nobody adds noise to"
    require(sampling != "power_of_choice", "federated.sampling", sampling, allowed)
    allowed = f"public {mode}: counts on a client's examples would leave it without noise"
    require(counts == "public", "align.neurons.counts", counts, allowed)
    allowed = f"fixed {mode}: the clip follows a noised count of updates, which only kind = client has"
    require(privacy.clipping == "fixed", "privacy.clipping", privacy.clipping, allowed)
    cohort = privacy.noise_cohort_size
    allowed = f"null {mode}: each client adds its own noise, and a larger population would not lower it"
    require(cohort is None, "privacy.noise_cohort_size", cohort, allowed)


_CHECKS: Mapping[str, Callable[[PrivacyConfig, FederatedConfig, str], None]] = {
    "client": _check_client_level,
    "example": _check_example_level,
}


def check_guarantee(privacy: PrivacyConfig, federated: FederatedConfig, counts: str) -> None:
    """Refuse what would break the guarantee that a run has.

    Args:
        privacy: the run's.
        federated: the run's.
        counts: whose data neuron counts come from.

    Raises:
        ConfigError: a setting that cannot be with `privacy.kind`, and why.

    """
    if privacy.is_on:
        _CHECKS[privacy.kind](privacy, federated, counts)
