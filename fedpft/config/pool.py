"""Settings of the pool: where the clients run, and on what."""

from dataclasses import dataclass
from typing import Literal, Union

from fedpft.config.checks import (
    require,
    require_gpus,
    require_non_negative,
    require_positive,
    require_positive_or_none,
    require_repeats,
    require_threads,
)


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Where the clients run."""

    kind: Literal["ray", "sequential"] = "ray"
    """Where clients train: `ray` in actors, or `sequential`, one by one in the driver's process. The result is the same
    on the same kind of device."""
    actors: Union[int, str] = "auto"  # noqa: UP007 - OmegaConf reads this form
    """How many actors there are. `auto` starts as many as what is free can hold, memory included; `per_client` starts
    one for each drawn client; a number starts so many, and is the most there are where `gpus_per_actor` is `auto`."""
    cpus_per_actor: float = 1.0
    """How many cores each actor claims from Ray. A fraction puts several actors on a core."""
    gpus_per_actor: Union[int, float, str] = 0.0  # noqa: UP007
    """How many GPUs each actor claims from Ray; a fraction where actors share one. `auto` puts as many actors on each
    GPU as its free memory holds, measured by a try with the longest examples."""
    memory_per_actor_gigabytes: float = 0.6
    """RAM that each actor claims where `actors` is `auto`, in 10^9 bytes; the default is what its libraries take. The
    claim grows where a try with the longest examples takes more."""
    gpu_gigabytes: float | None = None
    """The same as `server.gpu_gigabytes`, of each GPU on which clients train."""
    clients_per_batch: Union[int, str] = 1  # noqa: UP007
    """How many clients an actor trains together, so that the frozen weights meet all of their batches at once. `auto`
    finds on the first steps how many pay. On a CPU in float32 the result does not depend on it in any bit; elsewhere it
    is part of the numerics."""
    threads_per_client: int = 1
    """How many torch threads a client trains with. They are part of the numerics, so the number is the same for every
    pool."""
    address: str | None = None
    """The Ray cluster to use. null starts one on this machine. `auto`, or the head's `host:port`, joins the cluster
    that this machine belongs to."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Lightning's precision of local training. There is no float16, whose gradient scaler would carry over from client
    to client."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """In how many bits clients hold the frozen weights of the proxy's attention and FFNs. `int8` takes 8 and a scale
    for each row; `nf4` is QLoRA's, 4.5 with its scales. The server quantises once and sends so much less; what it
    keeps itself and evaluates is not quantised. LoRA and head stay float32. It needs `pip install
    'fedpft[quantize]'`."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of local training. `auto` takes the GPU that the actor was given, or any GPU with `sequential`."""
    matmul_precision: Literal["highest", "high"] = "highest"
    """The same as `server.matmul_precision`, in actors. With `sequential` clients have the server's."""
    deterministic: bool = False
    """The same as `server.deterministic`, where clients train."""
    max_retries: int = 2
    """How often a client that fails is tried again, each time in a fresh place. Then it is dropped from the round."""
    client_timeout_seconds: float | None = None
    """A client that trains for longer counts as failed (with `ray` only). null sets no limit."""
    start_timeout_seconds: float = 300.0
    """How long an actor may take to start, or to receive the proxy and the data; after that the pool goes on with fewer
    actors. It is also how long a run waits until others on the cluster leave room for its actors; after that the run
    ends."""
    max_actor_memory_gigabytes: float | None = None
    """An actor whose resident memory is above this after a client is replaced by a fresh one (10^9 bytes). null sets no
    limit."""

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
        require_positive_or_none("pool", self, "gpu_gigabytes")

    @property
    def gpu_claim(self) -> float:
        """`gpus_per_actor` as a number: `auto` claims whole GPUs until it is known how many actors one holds."""
        return 1.0 if self.gpus_per_actor == "auto" else float(self.gpus_per_actor)

    @property
    def memory_claim(self) -> float:
        """Bytes of RAM that each actor claims; a number of actors is taken as it is, whatever they need."""
        return 1e9 * self.memory_per_actor_gigabytes if self.actors == "auto" else 0.0
