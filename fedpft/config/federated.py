"""Settings of federated learning: the clients and their data, rounds, local training."""

from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from fedpft.config.adversary import AdversaryConfig
from fedpft.config.algorithms import AggregatorConfig, LoraAggregation, ServerOptimiserConfig
from fedpft.config.checks import (
    require,
    require_non_negative,
    require_positive,
    require_positive_or_none,
    require_repeats,
    require_sigma,
)
from fedpft.config.client import ClientConfig


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the training data is dealt out to the clients."""

    kind: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    """How examples are dealt out: `iid` at random; `dirichlet` with labels in drawn proportions; `shards` with few
    labels for each client; `natural` by the values of a column."""
    dirichlet_alpha: float = 1.0
    """With `dirichlet`, the concentration of the clients' label distributions: the smaller, the more they differ."""
    concentration: Literal["total", "per_label"] = "total"
    """With `dirichlet`, what `dirichlet_alpha` multiplies. `total` draws from Dir(dirichlet_alpha * p), where p is the
    global label distribution (the paper); `per_label` draws from Dir(dirichlet_alpha * 1)."""
    labels_per_client: int = 2
    """With `shards`, how many labels each client has."""
    column: str | None = None
    """With `natural`, the column whose values are the owners of the rows."""
    size_imbalance: float = 0.0
    """Sigma of the log-normal distribution of client sizes. 0 gives all clients the same size. Not for `natural`."""

    def __post_init__(self) -> None:
        require_positive("federated.partition", self, "dirichlet_alpha", "labels_per_client")
        require_sigma("federated.partition", self, "size_imbalance")
        if self.kind == "natural":
            require(self.column is not None, "federated.partition.column", None, "a column name for kind natural")


@dataclass(frozen=True, kw_only=True)
class FederatedConfig:
    """Clients, rounds and local training; local defaults are the authors'."""

    num_clients: int = 100
    """How many clients own data."""
    rounds: int = 100
    """How many communication rounds the run has."""
    clients_per_round: int = 10
    """How many clients are drawn for each round. With `sampling: full` all take part; with `poisson` it is the
    average."""
    sampling: Literal["uniform", "md", "full", "poisson", "power_of_choice"] = "uniform"
    """How a round's clients are drawn. `uniform` draws without replacement; `md` by data volume, with replacement;
    `full` takes everyone; `poisson` takes each client independently with probability clients_per_round / num_clients (a
    round that draws nobody counts, and changes nothing); `power_of_choice` draws `num_candidates` by data volume
    without replacement, and takes those whose training loss was highest the last time they trained. Clients that never
    trained come last, and nothing is evaluated for it."""
    num_candidates: int | None = None
    """With `power_of_choice`, how many candidates are drawn. null takes twice `clients_per_round`, or all clients if
    there are fewer."""
    seed: int | None = None
    """Seed of what is drawn about clients and their data: the examples that `task.max_train_examples` and
    `task.max_eval_examples` leave, who owns them, which of them a client holds out, and who takes part, is absent, is
    late or is an adversary. null takes the run's seed. With a number these stay the same while `seed` varies the rest:
    initial values, batches and their order, dropout."""
    aggregation: Literal["weighted", "uniform"] = "weighted"
    """Weights of the mean: `weighted` by each client's number of examples, or `uniform`."""
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    server: ServerOptimiserConfig = field(default_factory=ServerOptimiserConfig)
    lora_aggregation: LoraAggregation = "separate"
    """How the clients' factors A and B of LoRA become one pair; note that the mean of products is not the product of
    means. `separate` averages A and B separately nevertheless. `ffa` keeps A as it began, with half the traffic. `svd`
    takes the mean of the products, cut to `lora.rank`. With `fedsvd` clients tune B, and the server then gives A
    orthonormal rows. `alternate` tunes B in odd rounds and A in even ones."""
    local_epochs: int = 1
    """How often a client goes through its data in a round."""
    batch_size: int = 4
    """How many examples a local batch has."""
    accumulate: int = 1
    """How many batches make one local step, whose gradient is the mean over all of their examples. An epoch's last step
    may have fewer."""
    gradient_checkpointing: bool = False
    """Whether clients compute each layer's activations again in the backward pass instead of keeping them. This gives
    the same gradients with much less memory, in about a third more time. `clients/flops` and `clients/memory_bytes`
    take it into account."""
    client: ClientConfig = field(default_factory=ClientConfig)
    lr: float = 8e-4
    """Learning rate of local steps in round 1."""
    head_lr_ratio: float = 1.0
    """Learning rate of the task head, divided by `lr`. Above 1 it helps a new head on an FM whose pooled features are
    small."""
    head_inputs: Literal["raw", "standardized"] = "raw"
    """What the task head reads while it is tuned. `standardized` takes from each of the FM's features its mean over
    public examples, and divides by the deviation. A new head then learns in a few steps, also with differential
    privacy, since clip and noise are those of its standardized weights; with it leave `head_lr_ratio` at 1. The FM's
    outputs do not change, and what a run saves is a plain head. Needs a head whose first layer has a bias. `fedpft
    audit` then says nothing of single updates."""
    lr_schedule: Literal["constant", "exponential", "inverse", "linear"] = "linear"
    """How the learning rate changes over the rounds; `federated.client.schedule` is how it changes within one."""
    lr_decay: float = 0.95
    """With `lr_schedule: exponential`, the factor by which the learning rate changes in each round."""
    weight_decay: float = 0.01
    """Weight decay of local steps. AdamW applies it apart from the gradient, SGD as a part of it."""
    max_grad_norm: float = 1.0
    """Local gradients with a larger norm are scaled down to it."""
    min_clients: int = 1
    """How many good updates a round needs to count. With fewer the adapter stays as it was."""
    allow_dropped: bool = False
    """Whether a run counts as a success (exit code 0) although some client failed in every round for which it was
    drawn."""
    dropout_ratio: float = 0.0
    """Probability that a drawn client is unavailable in a round. It is simulated, like all keys below."""
    over_selection: float = 1.0
    """Factor by which more clients are drawn than needed: ceil(clients_per_round * this). The first clients_per_round
    to finish are kept."""
    deadline: float | None = None
    """Clients that take longer than this are dropped. Simulated time has as its unit one example at the median speed: a
    client takes examples * local_epochs * its speed factor. null sets no limit."""
    speed_sigma: float = 0.0
    """Sigma of the log-normal distribution, with median 1, of the speed factors, which are drawn for every client and
    round."""
    client_eval_ratio: float = 0.0
    """Share of its own examples, rounded down, that each client holds out of training. The plugged-in FM is evaluated
    on them, client by client (classification only). 0 holds nothing out."""
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)

    def __post_init__(self) -> None:
        names = ("num_clients", "rounds", "clients_per_round", "local_epochs", "batch_size", "accumulate", "lr")
        require_positive("federated", self, *names, "head_lr_ratio", "max_grad_norm")
        require_repeats("federated", self, "num_clients", "rounds", "clients_per_round", "local_epochs")
        require_non_negative("federated", self, "weight_decay")
        require(0 < self.lr_decay <= 1, "federated.lr_decay", self.lr_decay, "a fraction in (0, 1]")
        if self.sampling in ("uniform", "poisson", "power_of_choice"):
            allowed = f"at most federated.num_clients = {self.num_clients}"
            require(
                self.clients_per_round <= self.num_clients,
                "federated.clients_per_round",
                self.clients_per_round,
                allowed,
            )
        candidates = self.num_candidates
        allowed = f"null or {self.clients_per_round} to {self.num_clients}, clients_per_round to num_clients"
        ok = candidates is None or self.clients_per_round <= candidates <= self.num_clients
        require(ok or self.sampling != "power_of_choice", "federated.num_candidates", candidates, allowed)
        require(self.seed is None or self.seed >= 0, "federated.seed", self.seed, "null or an integer >= 0")
        ratio = self.client_eval_ratio
        require(0 <= ratio < 1, "federated.client_eval_ratio", ratio, "a fraction in [0, 1)")
        self._check_attendance()
        self.aggregator.check_cohort(self.cohort_size)
        self._check_lora_aggregation()

    @property
    def num_memory(self) -> int:
        """How many numbers a client that trains keeps for each weight, besides value and gradient."""
        return self.client.rows + (self.accumulate > 1)

    @property
    def cohort_size(self) -> int:
        """How many clients a round draws; with `poisson` on average."""
        return self.num_clients if self.sampling == "full" else self.clients_per_round

    @property
    def expected_clients(self) -> float:
        """How many different clients a round draws on average; with `md` for clients of equal size, the most."""
        if self.sampling != "md":
            return self.cohort_size
        return self.num_clients * (1 - (1 - 1 / self.num_clients) ** self.clients_per_round)

    @property
    def drawn_clients(self) -> int:
        """How many clients begin a round, those included who will be too late; with `poisson` on average."""
        return self.cohort_size if self.sampling == "full" else ceil(self.cohort_size * self.over_selection - 1e-9)

    @property
    def drawn_candidates(self) -> int:
        """How many candidates `power_of_choice` draws for a round."""
        return self.num_candidates or min(2 * self.clients_per_round, self.num_clients)

    def _check_lora_aggregation(self) -> None:
        if self.lora_aggregation in ("svd", "fedsvd"):
            plain = self.server.kind == "avg" and self.server.rates == (1, 1)
            allowed = f"avg with lr 1, as federated.lora_aggregation = {self.lora_aggregation} gives other factors"
            require(plain, "federated.server.kind", self.server.kind, f"{allowed} in every round")
            allowed = f"one without states, as federated.lora_aggregation = {self.lora_aggregation} gives other factors"
            kept = self.client.keeps_state
            require(not kept, "federated.client.kind", self.client.kind, f"{allowed} in every round")
            kind, fresh = self.aggregator.kind, not self.aggregator.facts.remembers
            allowed = f"one without memory, as federated.lora_aggregation = {self.lora_aggregation} gives other factors"
            require(fresh, "federated.aggregator.kind", kind, f"{allowed} in every round")
        if self.lora_aggregation == "svd":
            allowed = "mean with federated.lora_aggregation = svd, which is itself a mean"
            require(self.aggregator.kind == "mean", "federated.aggregator.kind", self.aggregator.kind, allowed)

    def _check_attendance(self) -> None:
        drawn = self.num_clients if self.sampling == "full" else min(self.clients_per_round, self.num_clients)
        allowed = f"1 to the clients of a round, {drawn}"
        require(1 <= self.min_clients <= drawn, "federated.min_clients", self.min_clients, allowed)
        require(0 <= self.dropout_ratio < 1, "federated.dropout_ratio", self.dropout_ratio, "a fraction in [0, 1)")
        most, allowed = float("inf"), "a number >= 1"
        if self.sampling == "uniform":
            most = self.num_clients / self.clients_per_round
            allowed = f"1 to num_clients / clients_per_round = {most:g}"
        elif self.sampling == "power_of_choice":
            most = self.drawn_candidates / self.clients_per_round
            allowed = f"1 to candidates / clients_per_round = {most:g}"
        elif self.sampling == "poisson":
            most, allowed = 1.0, "1 with federated.sampling = poisson, which keeps all that it draws"
        require(1 <= self.over_selection <= most, "federated.over_selection", self.over_selection, allowed)
        require_positive_or_none("federated", self, "deadline")
        require_sigma("federated", self, "speed_sigma")
