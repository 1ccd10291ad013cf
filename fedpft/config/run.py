"""A whole run's settings."""

from dataclasses import dataclass, field, replace
from typing import Literal, Union

from fedpft.config.adversary import ON_DATA
from fedpft.config.checks import (
    require,
    require_gpus,
    require_nameable,
    require_non_negative,
    require_positive,
    require_positive_or_none,
    require_threads,
)
from fedpft.config.data import FMConfig, PublicConfig, TaskConfig
from fedpft.config.federated import FederatedConfig
from fedpft.config.method import (
    AdapterAlignConfig,
    AlignConfig,
    LayerAlignConfig,
    LoraConfig,
    MethodConfig,
    NeuronAlignConfig,
)
from fedpft.config.pool import PoolConfig
from fedpft.config.privacy import PrivacyConfig, check_guarantee, check_secure_aggregation, check_strict
from fedpft.config.stop import StopConfig
from fedpft.config.tracking import TrackingConfig

CONFIG_VERSION = 1
"""Raised when a key changes its name or meaning; CHANGELOG.md then says what to change in a file."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The driver's own work: construction, alignment, evaluation."""

    num_gpus: Union[int, float, str] = "auto"  # noqa: UP007 - OmegaConf reads this form
    """How many GPUs the server's work claims from Ray. It then runs in a process on a node that has them, and the FM is
    loaded only there. A fraction shares a GPU with actors. With `auto`, where actors claim GPUs and this process sees
    some, it claims one for each of `devices`, or a part of the only one there is. 0 claims none: the server then uses
    what it sees, beside whatever else does."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """The server's device. `auto` takes a GPU where torch sees one, else the CPU."""
    devices: int = 1
    """How many GPUs (CPU processes where there are none) share every batch of a distillation, by Lightning's
    `ddp_spawn`. Everything else runs on the first. The batch size is that of all devices together, and their number is
    part of the numerics."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning's precision of distillations and evaluations. Closed forms and the fidelity meter stay in float32."""
    matmul_precision: Literal["highest", "high"] = "highest"
    """Precision of float32 matrix products on a GPU: `highest` keeps all bits, `high` those of TF32, which is several
    times as fast. It holds for the whole process, so clients of `pool.kind = sequential` have it as well (actors have
    `pool.matmul_precision`). On a CPU it changes nothing."""
    deterministic: bool = False
    """Whether a GPU uses only torch's deterministic algorithms, so that equal runs on equal GPUs end with equal bits.
    They are slower (usually by 10 to 30 %) and take more memory, and an operation that has none ends the run."""
    gpu_gigabytes: float | None = None
    """The memory of the server's GPU, in 10^9 bytes, for `fedpft plan` alone, which says what does not fit. null takes
    that of a GPU of this machine. A number tells of a machine that is not at hand."""
    num_threads: int | None = None
    """How many torch threads the driver has; null takes one for each core. The number is part of the alignments'
    numerics: with the same number the bits are the same."""
    seed: int | None = None
    """Seed of what the server makes before federated learning: an FM that starts from scratch, its draw of public data,
    the sub-FM. null takes the run's seed. With a number, runs with different seeds tune the same sub-FM, which the
    cache builds only once."""

    def __post_init__(self) -> None:
        if self.num_gpus != "auto":
            require_gpus("server.num_gpus", self.num_gpus, "auto, or ")
        require_positive_or_none("server", self, "gpu_gigabytes")
        require(self.devices > 0, "server.devices", self.devices, "an integer > 0")
        claimed = self.gpu_claim == 0 or self.devices <= max(1, self.gpu_claim)
        require(
            claimed, "server.devices", self.devices, f"at most server.num_gpus = {self.gpu_claim:g}, what it claims"
        )
        require(self.num_threads is None or self.num_threads > 0, "server.num_threads", self.num_threads, "null or > 0")
        require_threads("server.num_threads", self.num_threads or 1)
        require(self.seed is None or self.seed >= 0, "server.seed", self.seed, "null or an integer >= 0")

    @property
    def gpu_claim(self) -> float:
        """`num_gpus` as a number: `auto` is none until it is known what there is (`fedpft.config.gpus`)."""
        return 0.0 if self.num_gpus == "auto" else float(self.num_gpus)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how models are evaluated, always on the whole evaluation set."""

    interval: int = 5
    """Evaluate after every round that is a multiple of this, and after the last round."""
    batch_size: int = 64
    """How many examples are evaluated at a time."""
    fidelity_examples: int = 64
    """How many evaluation examples are in the fidelity meter's fixed batch (all, if there are fewer). 0 turns the meter
    off."""

    def __post_init__(self) -> None:
        require_positive("evaluation", self, "interval", "batch_size")
        require_non_negative("evaluation", self, "fidelity_examples")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What an interrupted run goes on from."""

    interval: int = 1
    """Write a checkpoint after every round that is a multiple of this, and whenever the proxy changed. 0 writes
    none."""

    def __post_init__(self) -> None:
        require_non_negative("checkpoint", self, "interval")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Built sub-FMs, kept for later runs that would build the same one; they change a run's time, never its result."""

    enabled: bool = True
    """Whether the cache is read and written."""
    dir: str | None = None
    """The cache's folder, which several runs may use at the same time. null takes `$FEDPFT_CACHE`, else
    `~/.cache/fedpft`."""
    max_gigabytes: float = 10.0
    """Largest size of the cache, in 10^9 bytes. Beyond it the least recently used sub-FMs are removed; the newest one
    always stays."""

    def __post_init__(self) -> None:
        require(self.dir != "", "cache.dir", self.dir, "null or a folder")
        require_positive("cache", self, "max_gigabytes")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    config_version: int = CONFIG_VERSION
    """The version of the config's keys and of what they mean. A file without it is taken to be of the newest
    version."""
    name: str = "fedpft"
    """The run's name in `result.json`, in W&B and, by default, in `output_dir`."""
    seed: int = 42
    """Seed of every random draw: models, data, clients, batches."""
    output_dir: str = "outputs/${name}"
    """The run's folder. `${name}` stands for `name`."""
    fm: FMConfig = field(default_factory=FMConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    public: PublicConfig = field(default_factory=PublicConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    federated: FederatedConfig = field(default_factory=FederatedConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        version, said = self.config_version, "the file is of another version of fedpft; CHANGELOG.md says what changed"
        require(version == CONFIG_VERSION, "config_version", version, f"{CONFIG_VERSION}: {said}")
        require(self.seed >= 0, "seed", self.seed, "an integer >= 0")
        require(bool(self.name.strip("./ ")), "name", self.name, "a name, of the default output_dir too")
        require(bool(self.output_dir), "output_dir", self.output_dir, "a folder")
        paths = {"output_dir": self.output_dir, "fm.path": self.fm.path, "cache.dir": self.cache.dir}
        for key, path in (paths | {"task.path": self.task.path, "public.path": self.public.path}).items():
            require_nameable(key, path)
        devices = self.server.devices
        for key, align in self.distillations().items():
            allowed = f"a divisor of {key}.batch_size = {align.batch_size}, as all share every batch"
            require(align.batch_size % devices == 0, "server.devices", devices, allowed)
        if self.fm.device_map == "auto":
            self._check_spread()
        self._check_precision()
        together, allowed = self.pool.clients_per_batch, "1 with federated.gradient_checkpointing"
        alone = together == 1 or not self.federated.gradient_checkpointing
        require(alone, "pool.clients_per_batch", together, f"{allowed}, which computes a layer again for one client")
        kind = self.align.layers.kind
        fits = self.method.name != "fedot" or "closed_form" not in kind
        require(fits, "align.layers.kind", kind, "distill or none with method.name = fedot, which compresses no FFN")
        self._check_ranks()
        check_guarantee(self.privacy, self.federated, self.counts_neurons_on)
        if self.privacy.secure_aggregation:
            check_secure_aggregation(self.privacy, self.federated, self.counts_neurons_on)
        if self.privacy.strict:
            check_strict(self.federated)

    @property
    def counts_neurons_on(self) -> Literal["clients", "public"]:
        """Whose data the activation counts of neuron-level alignment come from."""
        chosen = self.align.neurons.counts
        return ("public" if self.privacy.is_on else "clients") if chosen == "auto" else chosen

    @property
    def plugs_in_by(self) -> Literal["copy", "distill"]:
        """How the tuned adapter gets back into the FM."""
        chosen = self.method.plug_in
        is_left_alone = self.method.name == "fedpft" and self.align.neurons.kind == "none"
        return ("distill" if is_left_alone else "copy") if chosen == "auto" else chosen

    @property
    def local_memory(self) -> int:
        """How many numbers a client that trains keeps for each weight, besides value and gradient."""
        of_examples = 2 * self.federated.batch_size if self.privacy.is_of_examples else 0  # value and gradient of each
        return self.federated.num_memory + of_examples

    def _check_spread(self) -> None:
        server, pool, key = self.server, self.pool, "fm.device_map"
        allowed = "none with server.accelerator = cpu: it is GPUs over which layers are spread"
        require(server.accelerator != "cpu", key, "auto", allowed)
        allowed = (
            f"none with server.devices = {server.devices}, each of which holds whole models for its part of a batch"
        )
        require(server.devices == 1, key, "auto", allowed)
        allowed = "none with fm.pretrain.num_epochs > 0, which trains the whole FM on one GPU"
        require(self.fm.pretrain.num_epochs == 0, key, "auto", allowed)
        shares = server.num_gpus == "auto" and pool.kind == "ray" and pool.gpu_claim > 0
        allowed = "a whole number with fm.device_map = auto: how many GPUs the FM gets, beside those of the actors"
        require(not shares and server.gpu_claim == int(server.gpu_claim), "server.num_gpus", server.num_gpus, allowed)

    def _check_precision(self) -> None:
        if self.fm.dtype == "float32":
            return
        precision, dtype = self.server.precision, f"fm.dtype = {self.fm.dtype}"
        allowed = f"32-true or bf16-mixed with {dtype}: float16 has not its range"
        require(precision != "16-mixed", "server.precision", precision, allowed)
        of_weights = {"fedpft": ("align.layers", "align.neurons"), "fedot": ("align.layers",)}
        for key in of_weights.get(self.method.name, ()):
            meets = precision == "bf16-mixed" or key not in self.distillations()
            other = "none" if self.method.name == "fedot" else "closed_form or none"
            require(meets, "server.precision", precision, f"bf16-mixed with {dtype}, or {other} as {key}.kind")

    @property
    def server_seed(self) -> int:
        """Seed of all that the server makes before federated learning: `server.seed`, or the run's."""
        return self.seed if self.server.seed is None else self.server.seed

    @property
    def client_seed(self) -> int:
        """Seed of what is drawn of clients and their data: `federated.seed`, or the run's."""
        return self.seed if self.federated.seed is None else self.federated.seed

    def shown(self) -> "Config":
        """Return the settings as a tracker or a screen may show them: without secrets in addresses."""
        return replace(self, tracking=self.tracking.shown())

    def _check_ranks(self) -> None:
        found, federated = list(self.lora.ranks), self.federated
        allowed = "none, or federated.lora_aggregation = svd: of factors of several ranks only products have a mean"
        require(not found or federated.lora_aggregation == "svd", "lora.ranks", found, allowed)
        kind = federated.adversary.kind
        allowed = f"none with federated.adversary.kind = {kind}, whose updates are of the whole adapter"
        require(not found or kind in ("none", *ON_DATA), "lora.ranks", found, allowed)

    def distillations(self) -> dict[str, LayerAlignConfig | NeuronAlignConfig | AdapterAlignConfig]:
        """Return the alignments that descend, by their sections."""
        kinds = {"layers": self.align.layers.kind, "neurons": self.align.neurons.kind, "adapter": self.plugs_in_by}
        return {f"align.{name}": getattr(self.align, name) for name, kind in kinds.items() if "distill" in kind}
