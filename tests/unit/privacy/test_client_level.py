"""The guarantee of a run: what it refuses, what it costs, what a round lets out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import Config, ConfigError, FederatedConfig, PrivacyConfig, doubtful_settings, load_config
from fedpft.models.activations import ActivationCounts
from fedpft.privacy.accountant import epsilon
from fedpft.privacy.client_level import ClientLevel, RoundRelease
from fedpft.privacy.table import guarantee_of

FEDERATED = FederatedConfig(
    num_clients=1000, clients_per_round=50, rounds=50, sampling="poisson", aggregation="uniform"
)


def guarantee(federated=FEDERATED, **privacy):
    privacy = {"kind": "client", "noise_multiplier": 1.0} | privacy
    return ClientLevel.of(PrivacyConfig(**privacy), federated)


def release(made, updates, *, seed=0, clip=1.0, size=4, counts=None, neurons=None):
    start = np.zeros(size, dtype=np.float32)
    taken = RoundRelease(made, clip, start, neurons)
    for update in updates:
        taken.add(np.asarray(update, dtype=np.float32), counts)
    return taken.finish(np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("setting", "key", "why"),
    [
        ("federated.sampling=uniform", "federated.sampling", "independently"),
        ("federated.sampling=md", "federated.sampling", "independently"),
        ("federated.aggregation=weighted", "federated.aggregation", "examples"),
        ("federated={sampling: full, over_selection: 1.5}", "federated.over_selection", "how fast"),
        ("federated.sampling=power_of_choice", "federated.sampling", "independently"),
        ("federated.aggregator.kind=median", "federated.aggregator.kind", "not bounded"),
        ("federated.lora_aggregation=svd", "federated.lora_aggregation", "mean of products is not bounded"),
        ("federated.client={kind: scaffold}", "federated.client.kind", "more of a client"),
        ("federated.client={kind: fednova}", "federated.client.kind", "more of a client"),
        ("federated.adversary.kind=alie", "federated.adversary.kind", "made of others"),
        ("federated.deadline=10", "federated.deadline", "size"),
        ("federated.min_clients=2", "federated.min_clients", "private"),
        ("privacy.noise_multiplier=null", "privacy.noise_multiplier", "privacy.target_epsilon"),
        ("privacy.noise_multiplier=0", "privacy.noise_multiplier", "> 0"),
        ("privacy.clip=0", "privacy.clip", "> 0"),
        ("privacy.delta=0.01", "privacy.delta", "1 / 100 clients"),
        ("privacy={noise_cohort_size: 5}", "privacy.noise_cohort_size", "at least the 10"),
        ("privacy={noise_cohort_size: 10000, delta: 1e-5}", "privacy.delta", "1 / 100000 clients"),
    ],
)
def test_what_would_break_the_guarantee_is_refused_with_its_reason(setting, key, why):
    base = ["privacy={kind: client, noise_multiplier: 1.0}", "federated={sampling: poisson, aggregation: uniform}"]
    load_config(None, base)
    with pytest.raises(ConfigError) as error:
        load_config(None, [*base, setting])
    message = str(error.value)
    assert message.startswith(f"{key}: found ")
    assert why in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("setting", "found"), [("sampling=power_of_choice", "'power_of_choice'"), ("client.kind=scaffold", "'scaffold'")]
)
def test_a_strict_run_keeps_nothing_of_single_clients_in_its_checkpoints(setting, found):
    with pytest.raises(ConfigError, match=rf"federated.{setting.split('=')[0]}: found {found}, .* a checkpoint would"):
        load_config(None, ["privacy.strict=true", f"federated.{setting}"])


def test_privacy_settings_that_nothing_reads_are_told():
    def lines(*overrides):
        return [line for line in doubtful_settings(load_config(None, overrides)) if "privacy" in line]

    on = ("privacy={kind: client, noise_multiplier: 1.0}", "federated={sampling: poisson, aggregation: uniform}")
    assert lines("privacy.clip=2", "privacy.strict=true") == ["no effect with privacy.kind = none: privacy.clip"]
    assert lines(*on) == []
    assert lines(*on, "privacy.clip_lr=0.3") == ["no effect with privacy.clipping = fixed: privacy.clip_lr"]
    assert lines(*on, "privacy.counts_share=0.3", "align.neurons.counts=clients") == []


@pytest.mark.parametrize(("kind", "counts", "expected"), [
    ("none", "auto", "clients"), ("client", "auto", "public"),
    ("none", "public", "public"), ("client", "clients", "clients"),
])  # fmt: skip
def test_neurons_are_counted_on_public_data_in_a_private_run_unless_asked_for(kind, counts, expected):
    config = load_config(None, [
        f"privacy={{kind: {kind}, noise_multiplier: 1.0}}", f"align.neurons.counts={counts}",
        "federated={sampling: poisson, aggregation: uniform}",
    ])  # fmt: skip
    assert config.counts_neurons_on == expected


def test_the_noise_that_a_budget_asks_for_spends_it_in_all_rounds():
    made = guarantee(replace(FEDERATED, rounds=10), noise_multiplier=None, target_epsilon=2.0)
    state = made.start()
    for _ in range(10):
        assert made.affords(state)
        state = made.spent(state)
    assert not made.affords(state)
    assert 1.98 < made.summary(state)["epsilon"] <= 2.0


def test_a_state_that_went_through_json_goes_on_to_the_same_epsilon_and_noise():
    few = replace(FEDERATED, rounds=10)
    made = guarantee(few, noise_multiplier=None, target_epsilon=2.0, clipping="adaptive")
    state = made.spent(made.start())
    saved = json.loads(json.dumps(state))
    again = ClientLevel.of(made.settings, few, saved["noise_multiplier"])
    assert (again, saved) == (made, state)
    assert again.epsilon(again.spent(saved)) == made.epsilon(made.spent(state))


def test_a_budget_that_not_one_round_keeps_to_is_refused():
    with pytest.raises(ConfigError, match=r"privacy.target_epsilon: found 0.1, allowed: null or at least 1.03"):
        guarantee(target_epsilon=0.1)


def test_updates_are_clipped_and_divided_by_the_expected_number_of_clients():
    made = guarantee(noise_multiplier=1e-9)
    found = release(made, [[3, 0, 0, 4], [0.5, 0, 0, 0]])
    assert found.adapter == pytest.approx(np.array([1.1, 0, 0, 0.8]) / 50, abs=1e-8)
    assert found.num_clipped == 1
    assert release(made, []).adapter == pytest.approx(np.zeros(4), abs=1e-8)


def test_an_empty_round_releases_noise():
    draws = release(guarantee(), [], size=5000).adapter
    assert draws.std() == pytest.approx(1 / 50, rel=0.05)


def test_noise_of_a_larger_cohort_is_smaller_by_its_proportion_and_called_a_simulation():
    real, simulated = guarantee(), guarantee(noise_cohort_size=500)
    noises = [release(made, [], size=5000).adapter.std() for made in (real, simulated)]
    assert noises[0] == pytest.approx(10 * noises[1])
    assert simulated.summary(simulated.start())["simulated_population"] == 10_000
    assert any("is a simulation" in line for line in simulated.warnings(1000))


def test_the_noise_of_all_parts_of_a_release_is_paid_for_by_its_event():
    made = guarantee(clipping="adaptive", clip_count_noise=2.5)
    plain, shared = release(guarantee(), [], size=5000), release(made, [], size=5000)
    assert shared.adapter.std() == pytest.approx(plain.adapter.std() / np.sqrt(1 - 1 / 25), rel=1e-4)


def test_an_adaptive_clip_follows_noised_counts_of_short_updates():
    made = guarantee(clipping="adaptive", clip_count_noise=1.0, clip_quantile=0.5, clip_lr=0.2)
    shorts, longs = ([np.full(4, size)] * 50 for size in (0.01, 10.0))
    parts = {
        name: release(made, updates).record["privacy/part_short"] for name, updates in (("s", shorts), ("l", longs))
    }
    assert parts == pytest.approx({"s": 1.0, "l": 0.0}, abs=0.1)
    assert release(made, shorts).next_clip < 1.0 < release(made, longs).next_clip
    noise = [release(made, [], seed=seed).record["privacy/part_short"] for seed in range(2000)]
    assert np.std(noise) == pytest.approx(1.0 / 50, rel=0.1)
    assert np.mean(noise) == pytest.approx(0.5, abs=0.002)


def test_neuron_counts_are_a_noised_mean_of_rates_whose_noise_is_what_the_event_pays_for():
    neurons, share = (300, 200), 0.2
    made = guarantee(counts_share=share)
    zeros = tuple(np.full(number, 30) for number in neurons)
    counts = ActivationCounts(zeros=zeros, positions=np.array([40, 40]))
    whole = replace(FEDERATED, num_clients=50, sampling="full")
    exact = ClientLevel.of(replace(made.settings, noise_multiplier=1e-6), whole)
    found = release(exact, [np.zeros(4)] * 50, counts=counts, neurons=neurons).counts
    assert [rates.shape for rates in found.zeros] == [(300,), (200,)]
    assert found.zeros[0] / found.positions[0] == pytest.approx(np.full(300, 0.75), abs=1e-5)
    wide = ClientLevel.of(replace(made.settings, noise_cohort_size=5000), FEDERATED)
    noised = release(wide, [], neurons=neurons, counts=counts).counts
    rates = np.concatenate(noised.zeros) / 10**6
    sigma = (1 / np.sqrt(share)) * (np.sqrt(500) / 2) / 5000
    assert (rates - 0.5).std() == pytest.approx(sigma, rel=0.1)


def test_a_forecast_says_what_is_spent_when_and_warns_of_noise_that_drowns_all():
    made = guarantee()
    forecast = made.forecast(151_000)
    assert forecast["epsilon_by_round"][50] == pytest.approx(epsilon([vars(replace(made.event, count=50))], 1e-5))
    assert list(forecast["epsilon_by_round"]) == [1, 7, 13, 19, 25, 32, 38, 44, 50]
    assert forecast["noise_ratio"] == pytest.approx(np.sqrt(151_000) / 50)
    assert made.warnings(151_000) == []
    silos = FederatedConfig(num_clients=20, clients_per_round=20, rounds=20, sampling="full", aggregation="uniform")
    few = guarantee(silos, noise_multiplier=None, target_epsilon=8.0)
    assert any("hardly anything is learned" in line for line in few.warnings(151_000))


def test_a_forecast_ends_with_the_budget():
    assert guarantee(target_epsilon=2.0).forecast(10)["rounds"] == 20


def test_a_run_without_privacy_has_no_guarantee():
    assert guarantee_of(Config(), np.array([3])) is None
