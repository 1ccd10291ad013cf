"""Simulated dropout, over-selection and deadlines."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpft.config import FederatedConfig
from fedpft.federated.sampling import attend, draw_attendance, finishing_time, sample_cohort
from fedpft.seeding import numpy_rng

SIZES = np.arange(1, 21)
CONFIG = FederatedConfig(num_clients=20, clients_per_round=6, local_epochs=3)
SEEDS = st.integers(0, 10**6)
ROUNDS = st.integers(1, 1000)
CONFIGS = st.builds(
    FederatedConfig,
    num_clients=st.just(20),
    clients_per_round=st.integers(1, 10),
    sampling=st.sampled_from(["uniform", "md", "full"]),
    dropout_ratio=st.floats(0, 0.99),
    over_selection=st.floats(1, 2),
    deadline=st.none() | st.floats(0.1, 100),
    speed_sigma=st.floats(0, 2),
)


def drawn(config, seed, round_index):
    """Return whom the round drew, before anybody was absent or late."""
    found = draw_attendance(config, SIZES, seed, round_index)
    return {*found.cohort, *found.unavailable, *found.stragglers}


@settings(deadline=None)
@given(CONFIGS, SEEDS, ROUNDS)
def test_everyone_drawn_is_accounted_for_once_and_always_in_the_same_way(config, seed, round_index):
    found = draw_attendance(config, SIZES, seed, round_index)
    assert found == draw_attendance(config, SIZES, seed, round_index)
    groups = [list(found.cohort), list(found.unavailable), list(found.stragglers)]
    assert all(group == sorted(group) for group in groups)
    together = [client for group in groups for client in group]
    assert len(together) == len(set(together))
    assert set(together) <= set(range(20))
    wanted = 20 if config.sampling == "full" else config.clients_per_round
    assert sum(found.cohort.values()) <= wanted
    if config.sampling == "uniform":
        assert len(together) == math.ceil(wanted * config.over_selection - 1e-9)


@settings(deadline=None)
@given(CONFIGS, SEEDS, ROUNDS)
def test_nobody_late_trains_while_someone_faster_stays_out(config, seed, round_index):
    found = draw_attendance(config, SIZES, seed, round_index)

    def time(client):
        return finishing_time(config, SIZES[client], seed, round_index, client)

    assert all(math.isinf(time(client)) for client in found.unavailable)
    slowest = max(map(time, found.cohort), default=0)
    assert slowest <= (config.deadline or math.inf)
    full = sum(found.cohort.values()) == (20 if config.sampling == "full" else config.clients_per_round)
    for client in found.stragglers:
        late = config.deadline is not None and time(client) > config.deadline
        assert late or (full and time(client) >= slowest)


@settings(deadline=None)
@given(st.sampled_from(["uniform", "md", "full", "poisson"]), SEEDS, ROUNDS, st.floats(0, 2))
def test_with_nothing_to_simulate_the_cohort_is_the_sample(sampling, seed, round_index, sigma):
    config = replace(CONFIG, sampling=sampling, speed_sigma=sigma)
    found = draw_attendance(config, SIZES, seed, round_index)
    assert dict(found.cohort) == dict(sample_cohort(sampling, SIZES, 6, numpy_rng(seed, "cohort", round_index)))
    assert found.unavailable == found.stragglers == ()


@settings(deadline=None)
@given(
    SEEDS, ROUNDS, st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), st.tuples(st.floats(1, 200), st.floats(1, 200))
)
def test_more_dropout_or_an_earlier_deadline_only_removes_clients(seed, round_index, ratios, deadlines):
    low, high = (
        draw_attendance(replace(CONFIG, dropout_ratio=ratio, speed_sigma=1), SIZES, seed, round_index)
        for ratio in sorted(ratios)
    )
    assert set(high.cohort) <= set(low.cohort)
    early, late = (
        draw_attendance(replace(CONFIG, deadline=deadline, speed_sigma=1), SIZES, seed, round_index)
        for deadline in sorted(deadlines)
    )
    assert set(early.cohort) <= set(late.cohort)


def test_a_clients_fate_does_not_depend_on_who_else_was_drawn():
    config = replace(CONFIG, dropout_ratio=0.5)
    few, everyone = drawn(config, 1, 1), draw_attendance(replace(config, sampling="full"), SIZES, 1, 1)
    found = draw_attendance(config, SIZES, 1, 1)
    assert set(found.unavailable) == few & set(everyone.unavailable)


def test_the_share_of_absent_clients_is_the_dropout_ratio():
    config = replace(CONFIG, dropout_ratio=0.3, sampling="full")
    absent = [len(draw_attendance(config, SIZES, 0, index).unavailable) / 20 for index in range(400)]
    assert np.mean(absent) == pytest.approx(0.3, abs=0.02)  # 4 standard errors


def test_durations_are_examples_times_epochs_with_a_log_normal_factor_of_median_one():
    assert finishing_time(CONFIG, 7, 0, 1, 2) == 21
    config = replace(CONFIG, speed_sigma=0.5)
    logs = np.log([finishing_time(config, 7, 0, index, 2) / 21 for index in range(4000)])
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert logs.std() == pytest.approx(0.5, abs=0.03)


def test_the_first_to_finish_train_and_ties_go_by_id():
    times = {0: 9.0, 1: 4.0, 2: math.inf, 3: 4.0, 4: 1.0, 5: 30.0}
    found = attend(dict.fromkeys(times, 1), times, num_wanted=2, deadline=None)
    assert (dict(found.cohort), found.unavailable, found.stragglers) == ({1: 1, 4: 1}, (2,), (0, 3, 5))
    found = attend(dict.fromkeys(times, 1), times, num_wanted=5, deadline=9.0)
    assert (dict(found.cohort), found.stragglers) == ({0: 1, 1: 1, 3: 1, 4: 1}, (5,))


def test_repeated_draws_fill_the_places_that_are_left():
    found = attend({0: 2, 1: 3, 2: 1}, {0: 1.0, 1: 2.0, 2: 3.0}, num_wanted=4, deadline=None)
    assert (dict(found.cohort), found.stragglers) == ({0: 2, 1: 2}, (2,))


def test_over_selection_draws_exactly_the_next_whole_number():
    assert len(drawn(replace(CONFIG, clients_per_round=10, over_selection=1.1), 0, 1)) == 11
    assert len(drawn(replace(CONFIG, clients_per_round=10, over_selection=1.11), 0, 1)) == 12


def test_when_nobody_comes_the_cohort_is_empty():
    found = attend({0: 1, 1: 2}, {0: math.inf, 1: math.inf}, num_wanted=3, deadline=None)
    assert (dict(found.cohort), found.unavailable, found.stragglers) == ({}, (0, 1), ())
