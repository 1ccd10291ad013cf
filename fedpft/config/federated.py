"""Settings of the clients: partition, rounds, local training, and where they run."""

from dataclasses import dataclass, field
from math import ceil
from typing import Literal, Union

from fedpft.config.adversary import AdversaryConfig
from fedpft.config.algorithms import AggregatorConfig, LoraAggregation, ServerOptimiserConfig
from fedpft.config.checks import (
    require,
    require_gpus,
    require_non_negative,
    require_positive,
    require_positive_or_none,
    require_repeats,
    require_sigma,
    require_threads,
)
from fedpft.config.client import ClientConfig


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the training data is dealt out to the clients."""

    kind: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    """`iid`: at random; `dirichlet`: labels in drawn proportions; `shards`: few labels each; `natural`: by a column."""
    dirichlet_alpha: float = 1.0
    """Concentration of the clients' label laws."""
    concentration: Literal["total", "per_label"] = "total"
    """`total`: Dir(dirichlet_alpha * p), p the global label law (the paper); `per_label`: Dir(dirichlet_alpha * 1)."""
    labels_per_client: int = 2
    """For `shards`."""
    column: str | None = None
    """For `natural`: the column whose values are the owners."""
    size_imbalance: float = 0.0
    """Sigma of the log-normal law of client sizes; 0: equal sizes. Not for `natural`."""

    def __post_init__(self) -> None:
        require_positive("federated.partition", self, "dirichlet_alpha", "labels_per_client")
        require_sigma("federated.partition", self, "size_imbalance")
        if self.kind == "natural":
            require(self.column is not None, "federated.partition.column", None, "a column name for kind natural")


@dataclass(frozen=True, kw_only=True)
class FederatedConfig:
    """Clients, rounds and local training; local defaults are the authors'."""

    num_clients: int = 100
    """All owners of data."""
    rounds: int = 100
    """Communication rounds."""
    clients_per_round: int = 10
    """Drawn for each round (with `sampling: full` all are; with `poisson` so many on average)."""
    sampling: Literal["uniform", "md", "full", "poisson", "power_of_choice"] = "uniform"
    """`uniform` without replacement; `md` by data volume with replacement; `full`: everyone; `poisson`: each client by
    itself with probability clients_per_round / num_clients (a round that draws nobody counts, and changes nothing);
    `power_of_choice`: of `num_candidates`, drawn by data volume without replacement, those whose training loss was
    highest the last time they trained, before all those who never did: nothing is evaluated for it."""
    num_candidates: int | None = None
    """For `power_of_choice`; null: twice `clients_per_round`, or all clients if there are fewer."""
    seed: int | None = None
    """Of what is drawn of clients and their data: the examples that `task.max_train_examples` and
    `task.max_eval_examples` leave, who owns them, which of them a client holds out, who takes part, who is absent, late
    or an adversary; null: the run's. With a number these stay while `seed` varies the rest: initial values, batches and
    their order, dropout."""
    aggregation: Literal["weighted", "uniform"] = "weighted"
    """Weights of the mean: examples of each client, or equal."""
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    server: ServerOptimiserConfig = field(default_factory=ServerOptimiserConfig)
    lora_aggregation: LoraAggregation = "separate"
    """How LoRA's factors A and B become one pair; their means apart are not the mean of their products. `separate`:
    apart all the same; `ffa`: A stays as it began, half the traffic; `svd`: the mean of the products, cut to
    `lora.rank`; `fedsvd`: clients tune B, the server then gives A orthonormal rows; `alternate`: B in odd rounds, A in
    even ones."""
    local_epochs: int = 1
    """Passes of a client over its data in a round."""
    batch_size: int = 4
    """Examples of a local batch."""
    accumulate: int = 1
    """Batches whose gradients make one local step, the mean over all of their examples; an epoch's last step may have
    fewer."""
    gradient_checkpointing: bool = False
    """Whether clients compute each layer's activations again in the backward pass instead of keeping them: the same
    gradients from much less memory, for about a third more time. `clients/flops` and `clients/memory_bytes` follow."""
    client: ClientConfig = field(default_factory=ClientConfig)
    lr: float = 8e-4
    """Learning rate of local steps in round 1."""
    head_lr_ratio: float = 1.0
    """Learning rate of the task head over `lr`; above 1 helps a new head on an FM whose pooled features are small."""
    lr_schedule: Literal["constant", "exponential", "inverse", "linear"] = "linear"
    """Over rounds; `federated.client.schedule` is that within a round."""
    lr_decay: float = 0.95
    """Factor per round of the `exponential` schedule."""
    weight_decay: float = 0.01
    """Of local steps: AdamW's is apart from the gradient, SGD's a part of it."""
    max_grad_norm: float = 1.0
    """Local gradients of a larger norm are scaled down to it."""
    min_clients: int = 1
    """Good updates that a round needs to count; with fewer, the adapter stays as it was."""
    allow_dropped: bool = False
    """Whether a run is a success, with exit code 0, although a client failed in every round that it was drawn for."""
    dropout_ratio: float = 0.0
    """Probability that a sampled client is unavailable in a round; simulated, like all keys below."""
    over_selection: float = 1.0
    """Sample ceil(clients_per_round * this) clients and keep the first clients_per_round that finish."""
    deadline: float | None = None
    """Drop clients that take longer. Unit of simulated time: one example at the median speed; a client takes
    examples * local_epochs * its speed factor."""
    speed_sigma: float = 0.0
    """Sigma of the log-normal law of the speed factors, median 1, drawn for every client and round."""
    client_eval_ratio: float = 0.0
    """Share of its own examples, rounded down, that each client holds out of training; on them the plugged-in FM is
    evaluated client by client (classification). 0: nothing is held out."""
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


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Where the clients run."""

    kind: Literal["ray", "sequential"] = "ray"
    """`ray`: actors; `sequential`: in the driver's process, one by one; the same result on the same kind of device."""
    actors: Union[int, str] = "auto"  # noqa: UP007 - OmegaConf reads this form
    """`auto`: as many as fit into what is free, memory included; `per_client`: one for each sampled client; or a
    number, which is the most where `gpus_per_actor` is `auto`."""
    cpus_per_actor: float = 1.0
    """Ray's claim of cores for each actor; a fraction puts several on a core."""
    gpus_per_actor: Union[int, float, str] = 0.0  # noqa: UP007
    """Ray's claim for each actor, a fraction where actors share a GPU; `auto`: as many actors on each GPU as its free
    memory holds, by a try with the longest examples."""
    memory_per_actor_gigabytes: float = 0.6
    """Claim of RAM for each actor where `actors` is `auto`, in 10^9 bytes: its libraries; it grows where a try with the
    longest examples takes more."""
    clients_per_batch: Union[int, str] = 1  # noqa: UP007
    """How many clients an actor trains together: the frozen weights meet all their batches at once. `auto`: as many as
    pay, found on the first steps. On a CPU in float32 no bit depends on it; elsewhere it is part of the numerics."""
    threads_per_client: int = 1
    """Torch threads while a client trains; part of the numerics, so equal for every pool."""
    address: str | None = None
    """Ray cluster: null starts one on this machine; `auto`, or the head's `host:port`, joins the one it is in."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Lightning precision of local training (no float16: its gradient scaler would carry over between clients)."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of local training: `auto` takes the GPU that the actor was given, or any GPU for `sequential`."""
    matmul_precision: Literal["highest", "high"] = "highest"
    """The same as `server.matmul_precision`, in actors; `sequential` clients have the server's."""
    deterministic: bool = False
    """The same as `server.deterministic`, where clients train."""
    max_retries: int = 2
    """Further attempts for a client that fails, each in a fresh place; then it is dropped from the round."""
    client_timeout_seconds: float | None = None
    """A client that trains for longer counts as failed (`ray` only); null: no limit."""
    start_timeout_seconds: float = 300.0
    """Limit for an actor to start, or to take over proxy and data; the pool then goes on with fewer actors. Also for
    the wait until others on the cluster have left room for the actors; the run then ends."""
    max_actor_memory_gigabytes: float | None = None
    """Replace an actor by a fresh one when its resident memory is above this (10^9 bytes) after a client."""

    def __post_init__(self) -> None:
        ok = self.actors in ("auto", "per_client") or (isinstance(self.actors, int) and self.actors > 0)
        require(ok, "pool.actors", self.actors, "auto, per_client or an integer > 0")
        ok = self.clients_per_batch == "auto" or (
            isinstance(self.clients_per_batch, int) and self.clients_per_batch > 0
        )
        require(ok, "pool.clients_per_batch", self.clients_per_batch, "auto or an integer > 0")
        if self.gpus_per_actor != "auto":
            require_gpus("pool.gpus_per_actor", self.gpus_per_actor, "auto, or ")
        sees_gpu = self.kind == "sequential" or self.accelerator != "cuda" or self.gpu_claim > 0
        require(sees_gpu, "pool.accelerator", self.accelerator, "cuda with pool.gpus_per_actor > 0, or auto, or cpu")
        names = ("cpus_per_actor", "memory_per_actor_gigabytes", "threads_per_client", "start_timeout_seconds")
        require_positive("pool", self, *names)
        inside = self.address is None or "://" not in self.address
        allowed = "null, auto or host:port; from outside a cluster: fedpft submit CONFIG --address http://HEAD:8265"
        require(inside, "pool.address", self.address, allowed)
        require_non_negative("pool", self, "max_retries")
        require_repeats("pool", self, "max_retries")
        require_threads("pool.threads_per_client", self.threads_per_client)
        require_positive_or_none("pool", self, "client_timeout_seconds", "max_actor_memory_gigabytes")

    @property
    def gpu_claim(self) -> float:
        """`gpus_per_actor` as a number: `auto` claims whole GPUs until it is known how many actors one holds."""
        return 1.0 if self.gpus_per_actor == "auto" else float(self.gpus_per_actor)

    @property
    def memory_claim(self) -> float:
        """Bytes of RAM that each actor claims; a number of actors is taken as it is, whatever they need."""
        return 1e9 * self.memory_per_actor_gigabytes if self.actors == "auto" else 0.0
