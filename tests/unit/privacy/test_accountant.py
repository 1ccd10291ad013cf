"""The accountant against closed forms, Opacus' PRV accountant and published numbers."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedpft.config import ConfigError
from fedpft.privacy.accountant import Event, dearest, epsilon, most_releases, noise_for, spend

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/opacus_prv.json").read_text())["cases"]


def ledger(rate, noise_multiplier, count):
    return [asdict(Event(rate=rate, noise_multiplier=noise_multiplier, count=count))]


def exact(noise_multiplier, delta):
    """Epsilon of one Gaussian release (Balle and Wang 2018, theorem 8)."""

    def excess(e):
        return norm.cdf(0.5 / noise_multiplier - e * noise_multiplier) - delta - math.exp(e) * norm.cdf(
            -0.5 / noise_multiplier - e * noise_multiplier
        )  # fmt: skip

    return brentq(excess, 0, 200)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['rate']}-{case['noise_multiplier']}-{case['count']}")
def test_epsilon_is_that_of_opacus_prv(case):
    found = epsilon(ledger(case["rate"], case["noise_multiplier"], case["count"]), case["delta"])
    assert found == pytest.approx(case["epsilon"], abs=0.02)


@pytest.mark.parametrize(("noise_multiplier", "count"), [(1.0, 1), (5.0, 20), (40.0, 100)])
def test_without_sampling_epsilon_is_the_closed_form_of_one_gaussian(noise_multiplier, count):
    expected = exact(noise_multiplier / math.sqrt(count), 1e-5)
    found = epsilon(ledger(1.0, noise_multiplier, count), 1e-5)
    assert expected - 1e-6 <= found < expected + 0.003, "an upper bound, and a tight one"


@pytest.mark.parametrize(
    ("noise_multiplier", "epochs", "published"),
    [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)],
)
def test_bounds_that_tensorflow_privacy_published_for_mnist_hold_and_are_not_far(noise_multiplier, epochs, published):
    # batches of 256 of 60,000 examples, delta 1e-5, by the moments accountant of 2019, which was looser
    entries = ledger(256 / 60_000, noise_multiplier, round(epochs * 60_000 / 256))
    assert 0.7 * published < epsilon(entries, 1e-5) < epsilon(entries, 1e-5, "rdp") < published + 0.01


def test_amplification_by_sampling_is_what_makes_a_run_affordable():
    sampled, whole = (epsilon(ledger(rate, 1.0, 50), 1e-5) for rate in (50 / 1000, 1.0))
    assert sampled == pytest.approx(2.67, abs=0.01)
    assert whole == pytest.approx(exact(1 / math.sqrt(50), 1e-5), abs=0.01)
    assert whole > 20 * sampled > 50


@pytest.mark.parametrize("case", GOLDEN[:4], ids=str)
def test_rdp_is_an_upper_bound_on_the_pld(case):
    entries = ledger(case["rate"], case["noise_multiplier"], case["count"])
    assert epsilon(entries, case["delta"]) <= epsilon(entries, case["delta"], "rdp")


def test_a_ledger_of_single_events_is_replayed_to_the_epsilon_of_one_entry():
    entries = []
    for _ in range(5):
        entries = spend(entries, Event(rate=0.1, noise_multiplier=1.0))
    assert entries == ledger(0.1, 1.0, 5)
    assert epsilon(json.loads(json.dumps(entries)), 1e-5) == epsilon(ledger(0.1, 1.0, 5), 1e-5)


def test_other_events_have_entries_of_their_own_and_cost_what_they_cost_in_any_order():
    one, other = Event(rate=1.0, noise_multiplier=6.0, count=2), Event(rate=1.0, noise_multiplier=8.0)
    entries = spend(spend(spend([], one), other), one)
    assert [entry["noise_multiplier"] for entry in entries] == [6.0, 8.0, 6.0]
    together = math.sqrt(1 / (4 / 6**2 + 1 / 8**2))
    assert epsilon(entries, 1e-5) == pytest.approx(exact(together, 1e-5), abs=0.005)


def test_nothing_released_costs_nothing_and_more_rounds_cost_more():
    costs = [epsilon(ledger(0.05, 1.0, count), 1e-5) if count else epsilon([], 1e-5) for count in (0, 1, 10, 50, 51)]
    assert costs[0] == 0
    assert costs == sorted(set(costs))


@pytest.mark.parametrize(("target", "rate", "count"), [(2.0, 0.05, 50), (8.0, 1.0, 20), (0.5, 0.01, 1000)])
def test_the_noise_that_is_solved_for_is_just_enough(target, rate, count):
    noise = noise_for(target, 1e-5, [Event(rate=rate, noise_multiplier=1.0, count=count)])
    assert epsilon(ledger(rate, noise, count), 1e-5) <= target < epsilon(ledger(rate, 0.995 * noise, count), 1e-5)


def test_the_dearest_of_several_events_is_what_asking_each_would_give():
    laws = [(0.5, 2), (0.1, 40), (0.1, 39), (0.05, 200), (0.02, 200), (0.01, 600)]
    events = [Event(rate=rate, noise_multiplier=1.0, count=count) for rate, count in laws]
    costs = [epsilon([asdict(event)], 1e-5) for event in events]
    assert dearest(events, 1e-5) == events[costs.index(max(costs))]
    assert dearest(events[4:], 1e-5) == max(zip(costs[4:], events[4:], strict=True), key=lambda pair: pair[0])[1]


def test_noise_for_several_events_is_that_of_the_one_that_needs_most():
    events = [Event(rate=0.5, noise_multiplier=1.0, count=2), Event(rate=0.01, noise_multiplier=1.0, count=50)]
    assert noise_for(2.0, 1e-5, events) == max(noise_for(2.0, 1e-5, [event]) for event in events)


def test_a_budget_is_enough_for_so_many_releases_and_no_more():
    event = Event(rate=0.05, noise_multiplier=1.0)
    most = most_releases(2.0, 1e-5, event, 50)
    assert epsilon(ledger(0.05, 1.0, most), 1e-5) <= 2.0 < epsilon(ledger(0.05, 1.0, most + 1), 1e-5)
    assert most_releases(2.0, 1e-5, event, 5) == 5
    assert most_releases(0.1, 1e-5, event, 5) == 0


def test_hardly_any_noise_has_an_epsilon_from_rdp_and_takes_no_gigabytes():
    assert epsilon(ledger(1.0, 0.05, 50), 1e-5) > 10_000


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"privacy.kind: .* pip install 'fedpft\[privacy\]'"):
        epsilon(ledger(0.123, 1.0, 1), 1e-5)
