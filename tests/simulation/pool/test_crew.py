"""How a crew shrinks, grows and gives up, on a Ray that is made up."""

import itertools
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from fedpft.config import ConfigError, PoolConfig
from tests.tiny import tiny_package

crew = pytest.importorskip("fedpft.simulation.pool.crew", reason="Ray is not installed", exc_type=ImportError)
Node = pytest.importorskip("fedpft.simulation.cluster").Node
PACKAGE = tiny_package()
NEW = {name: array + 1 for name, array in PACKAGE.proxy.weights.items() if "layer.1.output.dense" in name}
NEVER = object()


@dataclass(eq=False)
class Reference:
    outcome: Any


class FakeRay:
    """Tasks are their own references; `receive` of actor k (in order of starts) ends as `outcomes[k]` says."""

    def __init__(self, outcomes=()):
        self.outcomes, self.killed, self.room, self.patches = dict(enumerate(outcomes)), [], 100, []
        self.starts = itertools.count()

    def remote(self, **resources):
        return lambda actor_class: SimpleNamespace(remote=lambda *given: self.start(*given))

    def start(self, name, num_threads, deterministic, matmul_precision):
        assert matmul_precision == "highest"
        outcome = self.outcomes.get(next(self.starts), "here")
        receive = SimpleNamespace(remote=lambda package, weights: Reference(outcome))
        replace_weights = SimpleNamespace(remote=lambda weights: Reference(outcome))
        patched = SimpleNamespace(remote=lambda changes: self.patched(name, changes))
        return SimpleNamespace(name=name, receive=receive, replace_weights=replace_weights, patched=patched)

    def patched(self, name, changes):
        self.patches.append(name)
        return Reference(self.outcomes.get(name, True)), ("whole", f"whole of {name}")

    def put(self, value):
        return Reference(value)

    def wait(self, tasks, timeout):
        done = [task for task in tasks if task.outcome is not NEVER][:1]
        if not done:
            time.sleep(timeout)
        return done, []

    def get(self, reference, timeout=None):
        if isinstance(reference.outcome, Exception):
            raise reference.outcome
        return reference.outcome

    def kill(self, handle):
        self.killed.append(handle.name)


@pytest.fixture
def make(monkeypatch):
    """Return a function that makes a crew on a made-up Ray."""

    def make(*outcomes, size=2, **config):
        fake = FakeRay(outcomes)
        monkeypatch.setattr(crew, "ray", SimpleNamespace(**{n: getattr(fake, n) for n in dir(fake) if n[0] != "_"}))
        monkeypatch.setattr(crew, "cluster_nodes", lambda: [Node(cpus=fake.room, gpus=fake.room)])
        return crew.Crew(PoolConfig(**config), size), fake

    return make


def names(made):
    return [actor.name for actor in made.actors]


def test_actors_that_fail_to_start_are_replaced_by_others(make):
    made, fake = make(ValueError("no"), "here", ValueError("no"))
    made.equip(PACKAGE)
    assert names(made) == ["actor-1", "actor-3"]
    assert [actor.node for actor in made.actors] == ["here", "here"]
    assert fake.killed == ["actor-0", "actor-2"]


def test_when_no_actor_can_start_the_reason_is_given_after_a_bounded_number_of_starts(make):
    made, fake = make(*[ValueError("out of memory\nin many lines")] * 100, max_retries=2)
    with (
        pytest.warns(UserWarning, match=r"goes on with 1 actor"),
        pytest.raises(RuntimeError, match=r"^pool: no actor can be started: ValueError: out of memory$"),
    ):
        made.equip(PACKAGE)
    assert len(fake.killed) == next(fake.starts) <= 6


def test_a_node_with_other_files_ends_the_run_at_once_with_its_own_line(make):
    line = "task.data: found 'node b with another file than the driver: /x', allowed: storage that all nodes see"
    made, fake = make("a", crew.RayTaskError("receive", "traceback", ConfigError(line)))
    with pytest.raises(ConfigError, match=r"^task\.data: found 'node b with another file"):
        made.equip(PACKAGE)
    assert next(fake.starts) == 2, "nobody is started in its place"


def test_an_actor_that_does_not_start_in_time_is_given_up(make):
    made, fake = make(NEVER, start_timeout_seconds=0.05)
    with pytest.warns(UserWarning, match=r"^pool: goes on with 1 actor\(s\)$"):
        made.equip(PACKAGE)
    assert (names(made), fake.killed) == (["actor-1"], ["actor-0"])
    made.heal()
    assert names(made) == ["actor-1"], "another one would be waited for as long"


def test_a_single_actor_that_does_not_start_in_time_ends_the_run(make):
    made, _ = make(NEVER, size=1, start_timeout_seconds=0.05)
    with pytest.raises(RuntimeError, match=r"no actor can be started: TimeoutError: no answer within 0.05 s"):
        made.equip(PACKAGE)


def test_a_replacement_that_waits_for_a_place_on_a_lost_node_is_given_up_and_started_when_there_is_one_again(
    make, monkeypatch
):
    monkeypatch.setattr(crew, "ROOM_CHECK_SECONDS", 0.01)
    made, fake = make("here", "here", NEVER)
    made.equip(PACKAGE)
    made.discard(made.actors[0])
    made.heal()
    assert names(made) == ["actor-1", "actor-2"]
    fake.room = 1
    with pytest.warns(UserWarning, match=r"goes on with 1 actor"):
        assert made.wait() is None
    made.heal()
    assert names(made) == ["actor-1"]
    fake.room = 2
    with pytest.warns(UserWarning, match=r"goes on with 2 actor"):
        made.heal()
    assert names(made) == ["actor-1", "actor-3"], "numbers are never used twice"


def test_an_actor_that_gets_changed_weights_while_it_starts_is_known_to_have_started(make):
    made, _ = make()
    made.equip(PACKAGE)
    made.discard(made.actors[0])
    made.heal()
    assert [actor.node for actor in made.actors] == ["here", None]
    made.replace_weights({})
    assert [actor.node for actor in made.actors] == ["here", "here"]


def given_weights(made, fake):
    """Replace weights; return what each actor then got."""
    given = {}
    for actor in made.actors:
        replace = actor.handle.replace_weights.remote
        actor.handle.replace_weights.remote = lambda held, name=actor.name, replace=replace: (
            given.update({name: held}) or replace(held)
        )
    num_bytes = made.replace_weights(NEW)
    assert num_bytes == sum(array.nbytes for array in NEW.values()), "every number differs"
    return given


def test_one_actor_of_a_node_makes_whole_weights_for_all_of_it(make):
    made, fake = make("here", "there", "here", size=3)
    made.equip(PACKAGE)
    given = given_weights(made, fake)
    assert sorted(fake.patches) == ["actor-0", "actor-1"]
    assert {name: held[1] for name, held in given.items()} == {
        "actor-0": "whole of actor-0", "actor-1": "whole of actor-1", "actor-2": "whole of actor-0",
    }  # fmt: skip


def test_where_that_fails_each_gets_what_changed(make):
    made, fake = make("here", "there", "here", size=3)
    made.equip(PACKAGE)
    fake.outcomes["actor-0"] = ValueError("lost")
    given = given_weights(made, fake)
    assert {name: held.outcome.keys() for name, held in given.items() if name != "actor-1"} == {
        "actor-0": NEW.keys(), "actor-2": NEW.keys(),
    }  # fmt: skip


def test_actors_on_gpus_get_what_changed_for_memory_of_their_own(make):
    made, fake = make(size=2, gpus_per_actor=0.5)
    made.equip(PACKAGE)
    assert [held.outcome.keys() for held in given_weights(made, fake).values()] == [NEW.keys()] * 2
    assert fake.patches == []


def test_the_last_actor_is_replaced_even_without_room(make):
    made, fake = make(size=1)
    made.equip(PACKAGE)
    fake.room = 0
    made.discard(made.actors[0])
    made.heal()
    assert names(made) == ["actor-1"]


def test_actors_that_move_are_others_and_hold_what_the_first_ones_held(make):
    made, fake = make(size=2)
    made.equip(PACKAGE)
    made.replace_weights(NEW)
    given, start = [], fake.start

    def noted(*arguments):
        handle = start(*arguments)
        receive = handle.receive.remote
        handle.receive.remote = lambda *held: given.append([one.outcome for one in held]) or receive(*held)
        return handle

    fake.start = noted
    made.move(PoolConfig(cpus_per_actor=2), 3, "elsewhere")
    assert sorted(fake.killed) == ["actor-0", "actor-1"]
    assert names(made) == ["actor-2", "actor-3", "actor-4"], "numbers are never used twice"
    assert given == [[PACKAGE, NEW]] * 3
    assert [actor.node for actor in made.actors] == ["here"] * 3
