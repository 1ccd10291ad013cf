"""What driver, server's GPU, each actor and the object store of a run will hold at most, and what does not fit where.

driver (RAM)         libraries and data, as this process has them now; FM, proxy and the server's phases without GPU
server (GPU)         FM, proxy and the server's phases; of an FM over several GPUs, all of them together
actor (RAM), (GPU)   libraries; a proxy and a client's training. On a CPU all actors of a node read one proxy
object store         of a node: the proxy, the rows, and what an alignment changed in the proxy
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import nn

from fedpft.config import Config, PoolConfig, ServerConfig
from fedpft.data.datamodule import FederatedData
from fedpft.federated.broadcast import packed_proxy
from fedpft.federated.memory import CUDA_CONTEXT_BYTES, MARGIN, process_memory
from fedpft.methods.base import Proxy
from fedpft.models.ffn import find_ffns
from fedpft.models.live_memory import DeviceKind
from fedpft.models.lora import AdaptedModel, adapter_parameters
from fedpft.run.phases import Peaks, client_peak, model_bytes, round_peaks
from fedpft.trainer import accelerator

OBJECT_STORE_SHARE = 0.3
"""Of the RAM that is free when Ray starts: its own default."""


@dataclass(frozen=True, kw_only=True)
class Holding:
    """The most that one holder has at a time."""

    holder: str
    kind: str
    """`RAM`, `GPU`, `shared memory`, or several GPUs together, e.g. `4 GPUs`."""
    num_bytes: int
    during: str
    """The phase in which it is so much."""
    room_bytes: int | None = None
    """What there is for it; None: not known here."""
    share: float = 1.0
    """Of that room, the part which is this holder's."""

    @property
    def fits(self) -> bool | None:
        """Whether it fits with a margin; None: the room is not known."""
        return None if self.room_bytes is None else self.num_bytes * (1 + MARGIN) <= self.share * self.room_bytes

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self) | {"fits": self.fits}


def holdings(
    config: Config,
    fm: AdaptedModel,
    proxy: Proxy,
    data: FederatedData,
    construction: Peaks,
    num_actors: int,
) -> tuple[list[Holding], list[str]]:
    """Return who holds how much at most, and lines: what is not counted, and what does not fit.

    Args:
        config: the run's.
        fm, proxy: with adapters, on the meta device.
        data: the run's.
        construction: of `construction_peaks`.
        num_actors: that will be started.

    """
    server, clients = server_device(config), client_device(config)
    phases, client = (
        construction | round_peaks(config, fm, proxy, data, server),
        client_peak(config, proxy, data, clients),
    )
    trained = client.by_phase.get("train a client", 0)
    sent = packed_proxy(config, proxy.model).skeleton
    sizes = {"FM": model_bytes(fm), "proxy": model_bytes(proxy.model), "FFNs": _changed_bytes(proxy, proxy.model)}
    sizes |= {"sent": model_bytes(sent), "sent FFNs": _changed_bytes(proxy, sent)}
    parts = [_driver(config, phases.by_phase, sizes, trained, server, clients)]
    if server == "cuda":
        parts.append(_server_gpu(config, phases.by_phase, sizes, trained, clients))
    if config.pool.kind == "ray":
        parts += _actors(config, proxy, sizes["sent"], trained, num_actors, clients)
        rows = 0 if config.task.data == "shared" else data.train.data.nbytes
        parts.append(_object_store(config, sizes, rows, clients))
        parts += _this_machine(config, parts, num_actors)
    misfits = [_misfit(part) for part in parts if part.fits is False]
    return parts, [*phases.notes, *client.notes, *_of_unknown_number(config.fm.device_map, parts), *misfits]


def server_device(config: Config) -> DeviceKind:
    """Return the kind of device that the server's work is planned for: a GPU that is described is one that is there."""
    server = config.server
    described = server.gpu_gigabytes is not None or server.gpu_claim > 0
    return _kind(server.accelerator, described)


def client_device(config: Config) -> DeviceKind:
    """Return the kind of device that clients are planned for."""
    pool = config.pool
    if pool.kind == "ray" and pool.accelerator == "auto":
        return "cuda" if pool.gpu_claim else "cpu"
    return _kind(pool.accelerator, pool.gpu_gigabytes is not None)


def _kind(setting: str, is_described: bool) -> DeviceKind:
    if setting == "auto" and is_described:
        return "cuda"
    return "cuda" if accelerator(setting) == "cuda" else "cpu"


def _driver(
    config: Config,
    phases: Mapping[str, int],
    sizes: Mapping[str, int],
    trained: int,
    server: DeviceKind,
    clients: DeviceKind,
) -> Holding:
    models = sizes["FM"] + (0 if sizes["proxy"] == sizes["FM"] else sizes["proxy"])
    if server == "cuda":  # the FM is loaded into RAM before it moves; later the proxy is packed
        by_phase = {"load FM": sizes["FM"], "send proxy": sizes["sent"] + 2 * sizes["FFNs"]}
    else:
        by_phase = {"load FM": sizes["FM"], **phases}
        by_phase["send proxy"] = models + sizes["sent"] + sizes["FFNs"]
        if "align neurons" in by_phase:  # its weights before and after
            by_phase["align neurons"] += 2 * sizes["FFNs"]
    if config.pool.kind == "sequential" and clients == "cpu":  # the packed proxy is what the client reads
        by_phase["train a client"] = (models if server == "cpu" else 0) + trained
    during, num_bytes = _most(by_phase)
    here = config.server.gpu_gigabytes is None
    room = psutil.virtual_memory().total if here else None
    base = process_memory().rss_bytes
    return Holding(holder="driver", kind="RAM", num_bytes=base + num_bytes, during=during, room_bytes=room)


def _server_gpu(
    config: Config, phases: Mapping[str, int], sizes: Mapping[str, int], trained: int, clients: DeviceKind
) -> Holding:
    by_phase = dict(phases)
    if config.pool.kind == "sequential" and clients == "cuda":
        by_phase["train a client"] = sizes["FM"] + sizes["proxy"] + trained
    during, num_bytes = _most(by_phase)
    if config.fm.device_map == "auto" and (num_gpus := _num_server_gpus(config.server)) != 1:
        return Holding(
            holder="server", kind=f"{num_gpus or 'several'} GPUs", during=during,
            num_bytes=num_bytes + num_gpus * CUDA_CONTEXT_BYTES,
            room_bytes=_gpu_room(config.server.gpu_gigabytes, num_gpus) if num_gpus else None,
        )  # fmt: skip
    share = config.server.gpu_claim if 0 < config.server.gpu_claim < 1 else 1.0
    return Holding(
        holder="server", kind="GPU", num_bytes=num_bytes + CUDA_CONTEXT_BYTES, during=during,
        room_bytes=_gpu_room(config.server.gpu_gigabytes), share=share,
    )  # fmt: skip


def _num_server_gpus(server: ServerConfig) -> int:
    """Return on how many GPUs the layers of an FM can lie; 0: nobody says how many the described machine has."""
    if server.gpu_claim:
        return int(server.gpu_claim)
    return torch.cuda.device_count() if server.gpu_gigabytes is None else 0


def _actors(
    config: Config, proxy: Proxy, sent: int, trained: int, num_actors: int, clients: DeviceKind
) -> list[Holding]:
    pool, during = config.pool, "train a client"
    libraries = round(1e9 * pool.memory_per_actor_gigabytes)
    if clients == "cpu":
        adapter = sum(parameter.nbytes for parameter in adapter_parameters(proxy.model).values())
        own = max(0, trained - (sent - adapter))  # frozen weights lie in the object store
        return [Holding(holder="each actor", kind="RAM", num_bytes=libraries + own, during=during)]
    share = float(pool.gpus_per_actor) if pool.gpus_per_actor != "auto" and pool.gpu_claim < 1 else 1.0
    on_gpu = Holding(
        holder="each actor", kind="GPU", num_bytes=trained + CUDA_CONTEXT_BYTES, during=during,
        room_bytes=_gpu_room(pool.gpu_gigabytes), share=share,
    )  # fmt: skip
    in_ram = libraries + sent  # on its way to the GPU
    return [Holding(holder="each actor", kind="RAM", num_bytes=in_ram, during="receive proxy"), on_gpu]


def _object_store(config: Config, sizes: Mapping[str, int], rows: int, clients: DeviceKind) -> Holding:
    changed, room = 0, None
    if config.align.neurons.kind != "none":
        # what differs and, where actors read it there, all of it anew while the old is read; or for who joins later
        changed = (3 if clients == "cpu" else 2) * sizes["sent FFNs"]
    if _on_this_machine(config.pool):
        room = min(int(OBJECT_STORE_SHARE * psutil.virtual_memory().available), _shared_memory())
    num_bytes = sizes["sent"] + rows + changed
    return Holding(
        holder="object store of each node",
        kind="shared memory",
        num_bytes=num_bytes,
        during="send proxy",
        room_bytes=room,
    )


def _of_unknown_number(device_map: str, parts: list[Holding]) -> list[str]:
    unknown = any(part.kind == "several GPUs" for part in parts)
    said = "server.num_gpus says how many GPUs share the FM; without it nobody knows here whether they hold it"
    return [f"fm.device_map = {device_map}: {said}"] if unknown else []


def _this_machine(config: Config, parts: list[Holding], num_actors: int) -> list[Holding]:
    """Return the sum of what lies in this machine's RAM, where all of the run does."""
    if not _on_this_machine(config.pool) or config.server.gpu_gigabytes is not None:
        return []
    times = {"driver": 1, "each actor": num_actors, "object store of each node": 1}
    total = sum(times[part.holder] * part.num_bytes for part in parts if part.kind in ("RAM", "shared memory"))
    memory = psutil.virtual_memory().total
    return [
        Holding(
            holder="this machine",
            kind="RAM",
            num_bytes=total,
            during=f"all, with {num_actors} actors",
            room_bytes=memory,
        )
    ]


def _misfit(part: Holding) -> str:
    assert part.room_bytes is not None
    room = part.share * part.room_bytes
    need = f"{part.num_bytes / 1e9:.1f} GB during {part.during!r}, and {100 * MARGIN:.0f} % for what is not counted"
    return f"memory of {part.holder} ({part.kind}) does not fit: {need}, of {room / 1e9:.1f} GB"


def _on_this_machine(pool: PoolConfig) -> bool:
    return pool.address is None and pool.gpu_gigabytes is None


def _gpu_room(gigabytes: float | None, num_gpus: int = 1) -> int | None:
    if gigabytes is not None:
        return round(1e9 * gigabytes) * num_gpus
    here = range(min(num_gpus, torch.cuda.device_count()))
    return sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in here) if len(here) == num_gpus else None


def _shared_memory() -> int:
    folder = "/dev/shm"
    return psutil.disk_usage(folder).free if os.path.isdir(folder) else psutil.virtual_memory().available


def _most(by_phase: Mapping[str, int]) -> tuple[str, int]:
    return max(by_phase.items(), key=lambda item: item[1])


def _changed_bytes(proxy: Proxy, model: nn.Module) -> int:
    """Return the size of the FFNs that an alignment may change, in the proxy or in what is sent of it."""
    ffns = find_ffns(model)
    return sum(parameter.nbytes for layer in proxy.watched_layers for parameter in ffns[layer].parameters())
