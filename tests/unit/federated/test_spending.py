from dataclasses import replace

import numpy as np
import pytest

from fedpft.federated.messages import ClientUpdate
from fedpft.federated.spending import actor_utilisation, add_round, clients_spent, run_spent


def update(client_id, **metrics):
    adapter = np.zeros(2, np.float32)
    return ClientUpdate(client_id=client_id, num_examples=1, adapter=adapter, metrics={"loss": 1.0, **metrics})


def test_a_round_has_the_sum_mean_and_largest_of_its_clients():
    updates = [update(0, flops=10, memory_bytes=7), update(1, flops=21, memory_bytes=5)]
    assert clients_spent(updates) == {
        "clients/flops": 31,
        "clients/flops_mean": 15.5,
        "clients/flops_max": 21,
        "clients/memory_bytes_max": 7,
    }


def test_a_round_says_with_how_many_clients_one_was_on_average():
    assert clients_spent([update(0, together=1.5), update(1, together=4)]) == {"clients/together_mean": 2.75}


@pytest.mark.parametrize("updates", [[], [update(0), update(1)]])
def test_what_nobody_measured_is_not_in_the_record(updates):
    assert clients_spent(updates) == {}


def test_a_run_adds_up_its_rounds():
    first = {"comm/bytes_up": 8, "comm/bytes_down": 9, "clients/flops": 31, "clients/memory_bytes_max": 7}
    last = {"comm/bytes_up": 4, "comm/bytes_down": 5, "clients/flops": 10, "clients/memory_bytes_max": 6}
    records = [
        {"clients": [0, 3], **first},
        {"clients": [], "comm/bytes_up": 0, "comm/bytes_down": 9},
        {"clients": [2], **last, "time/align_seconds": 1.5},
    ]
    spent = {}
    for record in records:
        spent = add_round(spent, record)
    assert run_spent(spent) == {
        "client_fits": 3,
        "client_flops_total": 41,
        "client_flops_per_round": 14,
        "client_memory_bytes": 7,
        "bytes_up_total": 12,
        "bytes_down_total": 23,
        "align_seconds": 1.5,
    }


def test_a_run_without_counts_still_knows_its_bytes():
    spent = add_round({}, {"clients": [1], "comm/bytes_up": 8, "comm/bytes_down": 9})
    assert run_spent(spent) == {"client_fits": 1, "bytes_up_total": 8, "bytes_down_total": 9}
    assert run_spent({}) == {}


@pytest.mark.parametrize(("num_actors", "mean", "least"), [(2, 0.75, 0.6), (3, 0.5, 0.0)])
def test_utilisation_is_the_part_of_the_time_in_which_actors_train_and_idle_ones_count(num_actors, mean, least):
    updates = [replace(update(i, seconds=s), actor=a) for i, (s, a) in enumerate([(2, "a"), (6, "b"), (7, "a")])]
    found = actor_utilisation(updates, num_actors, 10.0)
    assert found.pop("time/actor_utilisation") == pytest.approx({"a": 0.9, "b": 0.6})
    assert found == pytest.approx({"time/actor_utilisation_mean": mean, "time/actor_utilisation_min": least})


def test_a_round_without_good_updates_is_not_utilised():
    found = actor_utilisation([], 2, 10.0)
    assert found.pop("time/actor_utilisation") == {}
    assert set(found.values()) == {0.0}
