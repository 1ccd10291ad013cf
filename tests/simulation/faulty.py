"""An actor class with faults on demand, a whole run to compare bits with, and objects that are lost."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import ray
from ray.exceptions import ObjectLostError

from fedpft.config import ClientConfig, FederatedConfig
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.exchange import make_exchange
from fedpft.federated.messages import RoundPlan
from fedpft.federated.observer import SilentObserver
from fedpft.methods.base import ProxyChange
from fedpft.models.lora import get_adapter
from fedpft.models.weights import unpack_model
from fedpft.simulation.pool.client_actor import ClientActor
from tests.fakes import FakeTracker
from tests.tiny import tiny_package

SCAFFOLD = ClientConfig(kind="scaffold")
PACKAGE = tiny_package(model_type="bert", client=SCAFFOLD)
"""Its clients find something again in each round that only they are sent."""
ADAPTER = get_adapter(unpack_model(PACKAGE.proxy))
PLAN = RoundPlan(round_index=1, lr=1e-2, adapter=ADAPTER, count_activations=False)
NUM_NEURONS = (24, 24)
ONE_CHANGE = {name: w * 1.5 for name, w in PACKAGE.proxy.weights.items() if "layer.1.intermediate" in name}
OTHER_CHANGE = {name: w * 0.5 for name, w in PACKAGE.proxy.weights.items() if "layer.2.intermediate" in name}


def faulty_actor(folder: Path) -> type:
    """Return an actor class that looks for faults in a folder; a local one, so that it travels by value."""

    class FaultyActor(ClientActor):
        def receive(self, package, weights):
            node = super().receive(package, weights)
            self._fit, self._client.fit = self._client.fit, self.fit_client
            return node

        def fit_client(self, plan, client_id):
            for file in sorted(folder.glob(f"{plan.round_index}-{client_id}.*"))[:1]:
                fault = file.read_text()
                file.unlink()
                getattr(self, fault)()
            return self._fit(plan, client_id)

        def replace_weights(self, weights):
            for file in sorted(folder.glob("weights.*"))[:1]:
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().replace_weights(weights)

        def kill(self):
            """Die in the second batch."""
            module, steps = self._client._module, iter([False, True])
            step = module.training_step

            def last_step(*args):
                if next(steps):
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(*args)

            module.training_step = last_step

        def fail(self):
            raise ValueError("broken\nin many lines")

        def starve(self):
            raise MemoryError("Unable to allocate 9 TB")

        def hang(self):
            time.sleep(1000)

        def bloat(self):
            self.ballast = np.ones(300 * 10**6, dtype=np.uint8)

        def pid(self):
            return os.getpid()

    return FaultyActor


class Changes:
    """A method that changes the proxy after each of the first two rounds, each time another part of it."""

    def wants_counts(self, round_index, num_rounds):
        return round_index < num_rounds

    def after_round(self, round_index, adapter, counts):
        return ProxyChange(weights=ONE_CHANGE if round_index == 1 else OTHER_CHANGE, metrics={})


class Failures(SilentObserver):
    def __init__(self):
        self.seen = []

    def client_failed(self, failure):
        self.seen.append(failure)


def run(pool, **federated):
    """Run three rounds of all clients; return adapter and variate, the records and the failures."""
    pool.broadcast(PACKAGE)
    config = {"num_clients": 4, "clients_per_round": 4, "rounds": 3, "lr": 1e-2} | federated
    settings = FederatedConfig(client=SCAFFOLD, **config)
    driver = Driver(
        config=settings,
        exchange=make_exchange(settings, PACKAGE.partition.sizes, ()),
        seed=0,
        partition=PACKAGE.partition,
        num_neurons=NUM_NEURONS,
        method=Changes(),
        pool=pool,
        evaluate=lambda adapter: {},
        evaluation_interval=100,
        tracker=FakeTracker(),
        observer=Failures(),
    )
    final = driver.run(ServerState(rounds_done=0, adapter=ADAPTER))
    return (
        final.adapter.tobytes() + final.arrays["clients/variate"].tobytes(),
        driver.tracker.records,
        driver.observer.seen,
    )


def lost_references(*values):
    """Return references whose objects are gone, because the process that owned them is."""

    @ray.remote(num_cpus=0)
    class Helper:
        def put(self, *values):
            return [ray.put(value) for value in values]

        def read(self, value):
            pass

    owner, reader = Helper.remote(), Helper.remote()
    references = ray.get(owner.put.remote(*values))
    ray.kill(owner)
    for reference in references:
        with suppress(ObjectLostError):
            while True:  # the store notices after a second or so
                ray.get(reader.read.remote(reference))
                time.sleep(0.1)
    ray.kill(reader)
    return references
