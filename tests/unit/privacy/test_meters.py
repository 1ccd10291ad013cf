"""What measures leaks: membership by scores, and canaries against a guarantee."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, norm

from fedpft.config import FederatedConfig, PrivacyConfig
from fedpft.privacy.accountant import epsilon, spend
from fedpft.privacy.canaries import canary_bound, chance, lower_bound, one_run_bound
from fedpft.privacy.client_level import ClientLevel, NoisySum
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.privacy.example_level import ExampleLevel
from fedpft.privacy.membership import attack

RNG = np.random.default_rng(0)


def test_scores_of_two_normal_laws_have_their_auc_and_tpr():
    members, others = RNG.normal(1, 1, 40_000), RNG.normal(0, 1, 40_000)
    found = attack(members, others)
    assert found.auc == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=4 * found.auc_error)
    assert found.tpr == pytest.approx(1 - norm.cdf(norm.ppf(0.99) - 1), abs=0.01)


def test_the_error_of_an_auc_is_how_it_spreads():
    found = [attack(RNG.normal(0.5, 1, 100), RNG.normal(0, 1, 150)) for _ in range(500)]
    assert np.std([one.auc for one in found]) == pytest.approx(np.mean([one.auc_error for one in found]), rel=0.1)


@pytest.mark.parametrize(("members", "others", "auc", "tpr"), [
    ([2, 3], [0, 1], 1.0, 1.0), ([0, 1], [2, 3], 0.0, 0.0), ([1, 1, 1], [1, 1], 0.5, 0.0),
])  # fmt: skip
def test_ends_and_ties(members, others, auc, tpr):
    found = attack(np.array(members), np.array(others))
    assert (found.auc, found.tpr, found.num_members, found.num_others) == (auc, tpr, len(members), len(others))


def guarantee(noise_multiplier=1.0, **federated):
    law = {"num_clients": 20, "clients_per_round": 20, "sampling": "full", "aggregation": "uniform"} | federated
    return ClientLevel.of(PrivacyConfig(kind="client", noise_multiplier=noise_multiplier), FederatedConfig(**law))


def spent(made, rounds):
    ledger = []
    for _ in range(rounds):
        ledger = spend(ledger, made.event)
    return epsilon(ledger, made.settings.delta)


@pytest.mark.parametrize(
    ("made", "rounds"),
    [(guarantee(0.5), 1), (guarantee(2.0), 8), (guarantee(0.7, clients_per_round=10, sampling="poisson"), 4)],
    ids=["one", "eight", "sampled"],
)
def test_canaries_bound_epsilon_from_below_and_find_a_good_part_of_it(made, rounds):
    found = canary_bound(made, replace(made.event, count=rounds), num_runs=3000, seed=1)
    assert 0.25 * spent(made, rounds) < found.epsilon < spent(made, rounds)


@pytest.mark.parametrize("fault", ["no clipping", "half the noise"])
def test_canaries_find_what_breaks_the_mechanism(monkeypatch, fault):
    made = guarantee(2.0)
    add, release = NoisySum.add, NoisySum.release
    if fault == "no clipping":

        def unclipped(self, vector):
            clip, self.clip = self.clip, np.inf
            result = add(self, vector)
            self.clip = clip
            return result

        monkeypatch.setattr(NoisySum, "add", unclipped)
    else:
        monkeypatch.setattr(NoisySum, "release", lambda self, z, *rest: release(self, z / 4, *rest))
    assert canary_bound(made, made.event, num_runs=3000, seed=1).epsilon > spent(made, 1)


def of_examples(noise_multiplier):
    federated = FederatedConfig(num_clients=2, clients_per_round=2, batch_size=5)
    return ExampleLevel.of(PrivacyConfig(kind="example", noise_multiplier=noise_multiplier), federated, np.array([10]))


def test_canary_examples_bound_the_epsilon_of_examples(monkeypatch):
    made = of_examples(0.7)
    (event,) = made.events
    accounted = epsilon([vars(replace(event, count=4))], 1e-5)
    assert 0.2 * accounted < canary_bound(made, replace(event, count=4), num_runs=2000, seed=1).epsilon < accounted
    made = of_examples(2.0)
    noise = ExampleNoise.noise
    monkeypatch.setattr(ExampleNoise, "noise", lambda *args: noise(*args) / 5)
    found = canary_bound(made, replace(made.events[0], count=1), num_runs=2000, seed=1)
    assert found.epsilon > epsilon([vars(replace(made.events[0], count=1))], 1e-5), "a fault is found"


def test_the_bound_holds_with_its_confidence_where_nothing_can_be_told():
    values = [lower_bound(RNG.normal(size=400), RNG.normal(size=400), 1e-5) for _ in range(100)]
    assert np.mean(np.array(values) > 0) <= 0.05


def by_the_papers_code(m, r, v, epsilon, delta):
    """Return the p-value of Steinke et al. 2023, appendix D."""
    q = 1 / (1 + np.exp(-epsilon))
    alpha = total = 0.0
    for i in range(1, v + 1):
        total += binom.pmf(v - i, r, q)
        alpha = max(alpha, total / i)
    return min(1.0, binom.sf(v - 1, r, q) + alpha * delta * 2 * m)


@pytest.mark.parametrize(("m", "r", "v"), [(1, 1, 1), (40, 20, 17), (1000, 100, 80), (20, 20, 0)])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_the_chance_of_guesses_is_that_of_the_papers_code(m, r, v, delta):
    for value in (0.0, 0.5, 3.0):
        assert chance(m, r, v, value, delta) == pytest.approx(by_the_papers_code(m, r, v, value, delta), rel=1e-9)


def test_one_run_with_all_coins_guessed_bounds_epsilon_as_far_as_so_many_coins_can():
    planted = np.arange(100) % 2 == 0
    found = one_run_bound(planted.astype(float), planted, 0.0)
    right = (0.05 / 3) ** (1 / 100)
    assert found.epsilon == pytest.approx(np.log(right / (1 - right)), abs=1e-4)
    assert (found.num_guesses, found.num_right, found.num_canaries, found.num_planted) == (100, 100, 100, 50)
    assert one_run_bound(planted.astype(float), planted, 1e-3).epsilon < found.epsilon
    assert one_run_bound(-planted.astype(float), planted, 0.0).epsilon == 0


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_the_bound_of_one_run_holds_with_its_confidence_for_randomised_response(epsilon):
    rng, above = np.random.default_rng(1), 0
    for _ in range(100):
        planted = rng.random(60) < 0.5
        tells = rng.random(60) < 1 / (1 + np.exp(-epsilon))
        scores = np.where(tells, planted, ~planted) + 0.01 * rng.random(60)
        above += one_run_bound(scores, planted, 0.0).epsilon > epsilon
    assert above <= 5
