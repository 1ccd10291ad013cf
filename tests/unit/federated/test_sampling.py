import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpft.federated.sampling import choose_by_loss, draw_candidates, longest_first, round_lr, sample_cohort
from fedpft.seeding import numpy_rng
from tests.shared import GOLDEN

SIZES = np.arange(1, 21)


@pytest.fixture
def authors():
    path = GOLDEN / "fl_components.json"
    if not path.is_file():
        pytest.skip(f"the authors' numbers are not at {path}")
    return json.loads(path.read_text())


def mean_times_drawn(kind, num_rounds=4000):
    """Return how often a round of 4 of 20 clients draws each client on average."""
    total = Counter()
    for index in range(num_rounds):
        total.update(sample_cohort(kind, SIZES, 4, numpy_rng(0, "cohort", index)))
    return np.array([total[client] for client in range(20)]) / num_rounds


@settings(deadline=None)
@given(
    kind=st.sampled_from(["uniform", "md", "full", "poisson"]),
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    draws=st.integers(1, 30),
    seed=st.integers(0, 100),
)
def test_cohort_is_deterministic_in_client_order_and_complete(kind, sizes, draws, seed):
    draws = min(draws, len(sizes)) if kind in ("uniform", "poisson") else draws
    cohort = sample_cohort(kind, np.array(sizes), draws, np.random.default_rng(seed))
    assert list(cohort.items()) == list(
        sample_cohort(kind, np.array(sizes), draws, np.random.default_rng(seed)).items()
    )
    assert list(cohort) == sorted(cohort)
    assert set(cohort) <= set(range(len(sizes)))
    if kind != "poisson":
        assert sum(cohort.values()) == (len(sizes) if kind == "full" else draws)
    assert all(type(client) is int and type(times) is int for client, times in cohort.items())


@settings(deadline=None)
@given(st.integers(1, 50), st.data())
def test_uniform_draws_nobody_twice(num_clients, data):
    draws = data.draw(st.integers(1, num_clients))
    cohort = sample_cohort("uniform", np.ones(num_clients), draws, np.random.default_rng(0))
    assert set(cohort.values()) == {1}
    assert len(cohort) == draws


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any),
    draws=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
def test_md_never_draws_a_client_without_examples(sizes, draws, seed):
    cohort = sample_cohort("md", np.array(sizes), draws, np.random.default_rng(seed))
    assert sum(cohort.values()) == draws
    assert all(sizes[client] > 0 for client in cohort)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 10**4))
def test_uniform_draws_do_not_depend_on_data_volume(num_clients, draws, seed, scale):
    draws = min(draws, num_clients)
    sizes = np.arange(num_clients) * scale
    first, second = (
        sample_cohort("uniform", s, draws, np.random.default_rng(seed)) for s in (sizes, np.ones(num_clients))
    )
    assert first == second


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["constant", "exponential", "inverse", "linear"]),
    st.integers(1, 200),
    st.floats(0.1, 1.0),  # 0.1^200 still is a positive double
    st.floats(1e-6, 10.0),
)
def test_rates_start_at_lr_stay_above_0_and_never_rise(schedule, num_rounds, decay, lr):
    rates = [
        round_lr(schedule, lr, round_index=index, num_rounds=num_rounds, decay=decay)
        for index in range(1, num_rounds + 1)
    ]
    assert rates[0] == lr
    assert all(rate > 0 for rate in rates)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))


def test_uniform_ignores_data_volume(authors):
    times = mean_times_drawn("uniform")
    assert times == pytest.approx(np.full(20, 0.2), abs=0.03)
    assert times == pytest.approx(authors["sampling"]["uniform"]["mean_times_selected_per_round"], abs=0.05)


def test_md_draws_in_proportion_to_data_volume(authors):
    times = mean_times_drawn("md")
    assert times == pytest.approx(4 * SIZES / SIZES.sum(), abs=0.04)  # 4 standard errors of the most frequent client
    assert times == pytest.approx(authors["sampling"]["md"]["mean_times_selected_per_round"], abs=0.07)


def test_poisson_draws_each_client_by_itself_with_the_same_probability():
    rounds = [sample_cohort("poisson", SIZES, 4, numpy_rng(0, "cohort", index)) for index in range(4000)]
    drawn = np.array([[client in cohort for client in range(20)] for cohort in rounds], dtype=float)
    assert drawn.mean(axis=0) == pytest.approx(np.full(20, 0.2), abs=0.03)  # 4 standard errors
    assert drawn.sum(axis=1).var() == pytest.approx(20 * 0.2 * 0.8, rel=0.1), "binomial"
    together = np.corrcoef(drawn.T)[np.triu_indices(20, 1)]
    assert np.abs(together).max() < 0.08, "nobody comes because of another"
    assert any(not cohort for cohort in rounds)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.data(), st.integers(0, 10**6))
def test_poisson_with_a_higher_rate_draws_all_that_a_lower_one_does(num_clients, data, seed):
    few, many = sorted(data.draw(st.lists(st.integers(1, num_clients), min_size=2, max_size=2)))
    small, large = (
        sample_cohort("poisson", np.ones(num_clients), draws, np.random.default_rng(seed)) for draws in (few, many)
    )
    assert set(small) <= set(large)
    assert len(sample_cohort("poisson", np.ones(num_clients), num_clients, np.random.default_rng(seed))) == num_clients


def test_candidates_differ_and_come_in_proportion_to_data_volume():
    first = Counter()
    for index in range(4000):
        drawn = draw_candidates(SIZES, 6, numpy_rng(0, "cohort", index))
        assert len(set(drawn)) == 6
        first[drawn[0]] += 1
    assert [first[client] / 4000 for client in range(20)] == pytest.approx(SIZES / SIZES.sum(), abs=0.02)
    assert sorted(draw_candidates(SIZES, 20, np.random.default_rng(0))) == list(range(20))


@settings(deadline=None, max_examples=60)
@given(st.permutations(range(8)), st.dictionaries(st.integers(0, 7), st.floats(0, 9)), st.integers(1, 8))
def test_the_highest_losses_are_chosen_after_those_who_never_trained(candidates, losses, num_chosen):
    chosen = choose_by_loss(candidates, losses, num_chosen)
    assert chosen == sorted(chosen)
    assert len(chosen) == num_chosen
    left = set(candidates) - set(chosen)
    for one, other in itertools.product(chosen, left):
        ranks = [(losses.get(client, np.inf), -candidates.index(client)) for client in (one, other)]
        assert ranks[0] > ranks[1]


def test_md_keeps_multiplicities():
    assert sample_cohort("md", np.array([7]), 5, np.random.default_rng(0)) == {0: 5}


def test_md_ends_when_one_client_owns_nearly_everything():
    cohort = sample_cohort("md", np.array([10**12, 1, 1]), 50, np.random.default_rng(0))
    assert cohort == {0: 50}


def test_full_takes_everyone_once_whatever_the_number_of_draws():
    assert sample_cohort("full", SIZES, 3, np.random.default_rng(0)) == dict.fromkeys(range(20), 1)


def test_rounds_and_seeds_draw_different_cohorts():
    cohorts = [
        sample_cohort("uniform", np.ones(50), 10, numpy_rng(*at)) for at in ((0, "c", 1), (0, "c", 2), (1, "c", 1))
    ]
    assert len({tuple(cohort) for cohort in cohorts}) == 3


def ratios(schedule, num_rounds=10):
    return [
        round_lr(schedule, 0.0008, round_index=i, num_rounds=num_rounds, decay=0.95) / 0.0008
        for i in range(1, num_rounds + 1)
    ]


@pytest.mark.parametrize(("schedule", "theirs"), [("constant", "-1"), ("exponential", "0")])
def test_constant_and_exponential_rates_are_the_authors(authors, schedule, theirs):
    assert ratios(schedule) == pytest.approx(authors["lr_schedules"]["types"][theirs]["ratio_to_lr0"], rel=1e-12)


def test_inverse_rate_is_lr_over_rounds_done_plus_one(authors):
    assert ratios("inverse") == pytest.approx([1 / (done + 1) for done in range(10)])
    theirs = authors["lr_schedules"]["types"]["1"]["ratio_to_lr0"]  # lr / (r + 1) from round 2 on: skips 1/2
    assert ratios("inverse", num_rounds=11)[2:] == pytest.approx(theirs[1:])


def test_linear_rate_falls_in_equal_steps_where_the_authors_skip_one_and_repeat_one(authors):
    ours = ratios("linear")
    assert ours == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    theirs = authors["lr_schedules"]["types"]["2"]["ratio_to_lr0"]
    assert theirs == pytest.approx([ours[0], *ours[2:], ours[-1]])


@pytest.mark.parametrize("schedule", ["constant", "exponential", "inverse", "linear"])
def test_a_single_round_runs_at_the_full_rate(schedule):
    assert ratios(schedule, num_rounds=1) == [1.0]


def test_clients_with_the_most_examples_start_first_and_equal_ones_by_id():
    assert longest_first({1: 2, 3: 1, 4: 1, 7: 1}, np.array([9, 5, 9, 6, 5, 9, 9, 6])) == [3, 7, 1, 4]
