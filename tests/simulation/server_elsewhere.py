"""A head without a GPU, and a node that has one: `server_elsewhere.py FOLDER MOMENT [SETTING]...` runs on them.

The server's side notes in FOLDER where the FM was loaded and what the object stores held. At MOMENT (`end`, `round`,
`gone`) the run ends by itself, is interrupted after its second round, or loses its process; it waits for that within
the third. Prints as JSON what came.
"""

import json
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import ray
from ray.cluster_utils import Cluster

from fedpft.config import ConfigError, load_config
from fedpft.config.gpus import server_claim
from fedpft.federated.observer import SilentObserver
from fedpft.interrupt import Interrupted, RunStoppedError, interruptible
from fedpft.models.ffn import find_ffns
from fedpft.run import pipeline
from fedpft.run.inputs import load_fm
from fedpft.simulation.server import serve_elsewhere


class Observer(SilentObserver):
    """Notes what it hears, and what lies in the object stores after each round; may interrupt this process."""

    def __init__(self, folder, moment):
        self.interrupted = time.monotonic()
        self.folder, self.moment, self.notes, self.rounds, self.clients, self.stores = folder, moment, [], [], [], []

    def note(self, line):
        self.notes.append(line)

    def client_finished(self, update):
        self.clients.append([update.client_id, update.metrics["loss"], update.adapter.nbytes])

    def round_finished(self, record):
        self.rounds.append(record["round"])
        rows = [np.load(self.folder / f"{name}.npy").tobytes() for name in ("frozen", "dropped")]
        self.stores.append([any(row in store for store in object_stores()) for row in rows])
        if record["round"] == 2 and self.moment == "round":
            self.interrupted = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        if record["round"] == 2 and self.moment == "gone":
            os.kill(json.loads((self.folder / "fm.json").read_text())["pid"], signal.SIGKILL)


def object_stores():
    """Yield all bytes of each node's object store: the memory that its Ray shares with all processes."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # Ray's helpers come and go
            if process.name() == "raylet":
                for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                    with suppress(FileNotFoundError):  # closed meanwhile
                        if "plasma" in os.readlink(descriptor):
                            yield descriptor.read_bytes()


class Held:
    """The observer, which keeps the server's side within the third round: else it may be done before it is stopped."""

    def __init__(self, observer):
        self.observer, self.round_index = observer, 0

    def __getattr__(self, event):
        return getattr(self.observer, event)

    def round_started(self, round_index, *rest):
        self.round_index = round_index
        self.observer.round_started(round_index, *rest)

    def client_finished(self, update):
        self.observer.client_finished(update)
        while self.round_index == 3:
            time.sleep(0.1)  # in pieces: what Ray sends does not wake a sleeper


def serve_and_note(folder, moment, resume, config, observer):
    """Serve, and note where the FM was loaded, and two of its rows: one that clients get, one that only the FM has."""
    from fedpft.run.launch import serve

    def load_and_note(*arguments):
        fm = load_fm(*arguments)
        saliency = [ffn.up_weight.norm(dim=1) + ffn.down_weight.norm(dim=0) for ffn in find_ffns(fm)]
        dropped = find_ffns(fm)[1].up_weight[int(saliency[1].argmin())]
        np.save(folder / "dropped.npy", dropped.detach().numpy())
        np.save(folder / "frozen.npy", fm.get_input_embeddings().weight[5].detach().numpy())
        here = {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "gpus": ray.get_gpu_ids()}
        (folder / "fm.json").write_text(json.dumps(here))
        return fm

    pipeline.load_fm = load_and_note
    return serve(config, observer if moment == "end" else Held(observer), resume=resume)


def main() -> None:
    folder, moment, settings = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    store = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **store})
    node = cluster.add_node(num_cpus=2, num_gpus=1, **store)
    cluster.wait_for_nodes()
    config = load_config(None, [*settings, f"pool.address={cluster.address}"])
    observer = Observer(folder, moment)
    found = {"ended": "finished"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with interruptible():
                resume = (folder / "out/checkpoints").exists()
                claim = server_claim(config, 0)
                result = serve_elsewhere(partial(serve_and_note, folder, moment, resume), config, observer, claim)
            found["fm"] = result.result["fm"]
        except (ConfigError, Interrupted, RunStoppedError) as stop:
            found["ended"] = f"{type(stop).__name__}: {stop}"
            found["stopping_seconds"] = time.monotonic() - observer.interrupted
    loaded = folder / "fm.json"
    found |= {name: getattr(observer, name) for name in ("notes", "rounds", "clients", "stores")}
    found["loaded"] = json.loads(loaded.read_text()) if loaded.exists() else None
    found["gpu_node"], found["warnings"] = node.node_id, [str(warning.message) for warning in caught]
    servers = [psutil.Process(found["loaded"]["pid"])] if found["loaded"] and moment == "round" else []
    found["left"] = [process.pid for process in psutil.wait_procs(servers, timeout=30)[1]]
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
