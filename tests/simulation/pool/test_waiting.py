import numpy as np
import pytest

from fedpft.federated.messages import ClientUpdate
from fedpft.simulation.pool.waiting import BATCH_SECONDS, SHARES_PER_ACTOR, SHORTEST_SECONDS, Job, Pace, Waiting


def known_pace(examples, seconds):
    pace = Pace()
    metrics = {"seconds": seconds}
    pace.note([ClientUpdate(client_id=0, num_examples=examples, adapter=np.zeros(1), metrics=metrics)])
    return pace


def waiting(*sizes, pace=None):
    """Return a queue of clients; without a pace, at most 8 examples are a batch, and a single one is long enough."""
    jobs = [Job((client_id,), size) for client_id, size in enumerate(sizes)]
    return Waiting(jobs, pace or known_pace(examples=8, seconds=BATCH_SECONDS))


def take(queue, *, actor=0, newest=9, num_actors=1):
    return [job.client_ids[0] for job in queue.take(actor=actor, newest=newest, num_actors=num_actors)]


def test_clients_go_one_by_one_as_long_as_nobody_knows_how_long_they_take():
    queue = waiting(1, 1, 1, pace=Pace())
    assert [take(queue) for _ in range(4)] == [[0], [1], [2], []]


def test_a_batch_trains_for_a_bounded_time_and_a_long_client_alone():
    pace = known_pace(examples=10, seconds=BATCH_SECONDS)
    queue = waiting(50, 10, 6, 4, 4, *[3] * 100, pace=pace)
    assert [take(queue) for _ in range(4)] == [[0], [1], [2, 3], [4, 5, 6]]


@pytest.mark.parametrize("num_actors", [1, 2, 5])
def test_batches_get_smaller_as_the_work_ends_but_not_too_small_and_nobody_is_lost(num_actors):
    pace = known_pace(examples=600, seconds=BATCH_SECONDS)
    shortest = pace.examples_in(SHORTEST_SECONDS) // 4
    queue, batches = waiting(*[4] * 200, pace=pace), []
    while queue:
        share = len(queue) // (SHARES_PER_ACTOR * num_actors)
        expected = min(len(queue), max(shortest, share))
        batches.append(take(queue, num_actors=num_actors))
        assert len(batches[-1]) == expected
    assert [client_id for batch in batches for client_id in batch] == list(range(200))
    assert len(batches[-1]) <= shortest < len(batches[0])


def test_an_old_measurement_counts_half_with_every_round():
    pace = known_pace(examples=100, seconds=10.0)
    pace.forget()
    pace.note([ClientUpdate(client_id=0, num_examples=50, adapter=np.zeros(1), metrics={"seconds": 0.0})])
    assert pace.examples_in(1.0) == 20.0
    assert Pace().examples_in(1.0) == 0.0


def test_a_client_that_failed_waits_for_a_fresh_actor_or_the_newest_and_stops_nobody():
    queue = waiting(1, 1, 1, 1)
    for job in queue._jobs:
        job.first_actor = 3 if job.client_ids[0] == 0 else 0
    assert take(queue, actor=2) == [1, 2]
    assert take(queue, actor=3) == [0]
    queue.put_back([Job((7,), 1, first_actor=5)])
    assert take(queue, actor=4, newest=4) == [7]


def test_suspects_are_batches_of_their_own():
    queue = waiting(*[1] * 40)
    queue.put_back([Job((100,), 1, is_suspect=True), Job((101,), 1), Job((102,), 1), Job((103,), 1, is_suspect=True)])
    assert [take(queue) for _ in range(3)] == [[100], [101, 102], [103]]


def test_what_is_put_back_comes_first_in_its_order_and_counts_as_work():
    queue = waiting(*[1] * 16)
    first = queue.take(actor=0, newest=0, num_actors=1)
    assert [job.client_ids[0] for job in first] == list(range(8))
    queue.put_back(first)
    assert len(queue) == 16
    assert take(queue) == list(range(8))
