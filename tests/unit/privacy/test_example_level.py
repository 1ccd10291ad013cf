"""DP of examples as a run has it: what it refuses, what it costs whom, what it says."""

import json
from dataclasses import replace
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from fedpft.config import ConfigError, FederatedConfig, PrivacyConfig, doubtful_settings, load_config
from fedpft.federated.local_schedule import num_steps
from fedpft.privacy.example_level import ExampleLevel
from fedpft.privacy.table import guarantee_of
from fedpft.report.privacy import privacy_rows

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/opacus_prv.json").read_text())["cases"]
SIZES = np.array([40, 400, 100, 3])
FEDERATED = FederatedConfig(num_clients=4, clients_per_round=2, rounds=10, batch_size=4)
ON = "privacy={kind: example, noise_multiplier: 1.0}"


def guarantee(sizes=SIZES, federated=FEDERATED, **privacy):
    privacy = {"kind": "example", "noise_multiplier": 1.0, "delta": 1e-5} | privacy
    return ExampleLevel.of(PrivacyConfig(**privacy), federated, np.asarray(sizes))


def after(made, *rounds):
    state = made.start()
    for clients in rounds:
        state = made.spent(state, clients)
    return state


@pytest.mark.parametrize(
    ("setting", "key", "why"),
    [
        ("federated.sampling=power_of_choice", "federated.sampling", "losses, which nobody adds noise to"),
        ("align.neurons.counts=clients", "align.neurons.counts", "without noise"),
        ("privacy.clipping=adaptive", "privacy.clipping", "count of updates"),
        ("privacy.noise_cohort_size=50", "privacy.noise_cohort_size", "its own noise"),
        ("privacy.noise_multiplier=null", "privacy.noise_multiplier", "privacy.target_epsilon"),
    ],
)
def test_what_would_let_more_out_is_refused_with_its_reason(setting, key, why):
    load_config(None, [ON])
    with pytest.raises(ConfigError) as error:
        load_config(None, [ON, setting])
    message = str(error.value)
    assert message.startswith(f"{key}: found ")
    assert why in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "setting",
    [
        "federated.sampling=md", "federated.aggregation=weighted", "federated.aggregator.kind=krum",
        "federated.client.kind=scaffold", "federated.client.kind=fednova", "federated.client={kind: prox, mu: 0.1}",
        "federated={over_selection: 1.5, deadline: 9}", "federated.adversary.kind=alie", "federated.accumulate=8",
        "federated.adversary.kind=label_flip", "federated.lora_aggregation=ffa", "federated.lora_aggregation=svd",
        "federated.client={schedule: linear, warmup_steps: 2}", "privacy.secure_aggregation=true",
        "federated.min_clients=2", "privacy.strict=true",
    ],
)  # fmt: skip
def test_whatever_works_on_noised_steps_alone_is_free(setting):
    assert load_config(None, [ON, setting]).counts_neurons_on == "public"


def test_settings_that_nothing_reads_are_told():
    lines = doubtful_settings(load_config(None, [ON, "federated.max_grad_norm=3", "pool.clients_per_batch=4"]))
    assert any("federated.max_grad_norm, pool.clients_per_batch" in line for line in lines)


@pytest.mark.parametrize(("case", "size"), [(GOLDEN[1], 400), (GOLDEN[3], 4000)])
def test_epsilon_is_that_of_opacus_prv_for_the_steps_of_a_client(case, size):
    rounds = case["count"] // (size // 4)
    made = guarantee([size], noise_multiplier=case["noise_multiplier"], delta=case["delta"])
    found = made.epsilon(after(made, *[{0}] * rounds))
    assert found == pytest.approx(case["epsilon"], abs=0.02)


def test_epsilon_is_dp_accountings_of_the_client_that_spent_most():
    made = guarantee()
    state = after(made, {0, 1}, {1, 2}, {1})

    def asked(rate, count):
        accountant = PLDAccountant()
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(1.0))
        return accountant.compose(event, count).get_epsilon(1e-5)

    expected = [asked(4 / 40, 10), asked(4 / 400, 300), asked(4 / 100, 25)]
    assert made.epsilon(state) == pytest.approx(max(expected), abs=0.003)
    assert made.dearest(state) == replace(made.events[0], count=10), "though client 1 made most steps"
    assert made.epsilon(made.start()) == 0


def test_only_clients_that_begin_a_round_pay_for_it():
    made = guarantee()
    assert made.epsilon(after(made, {0, 1}, {1})) == made.epsilon(after(made, {0, 1}))
    assert made.epsilon(after(made, {0, 1}, {0})) > made.epsilon(after(made, {0, 1}))


def test_a_clients_steps_are_those_that_it_makes():
    federated = replace(FEDERATED, accumulate=3, local_epochs=2)
    found = [event.count for event in guarantee(federated=federated).events]
    assert found == [num_steps(size, batch_size=4, accumulate=3, num_epochs=2) for size in SIZES.tolist()]
    assert [event.rate for event in guarantee(federated=federated).events] == [12 / 40, 12 / 400, 12 / 100, 1.0]


def test_a_state_that_went_through_json_goes_on_to_the_same_epsilon():
    made = guarantee(noise_multiplier=None, target_epsilon=5.0)
    state = after(made, {0, 1}, {3, 1})
    saved = json.loads(json.dumps(state))
    again = ExampleLevel.of(made.settings, FEDERATED, SIZES, saved["noise_multiplier"])
    assert (again, saved) == (made, state)
    assert again.epsilon(again.spent(saved, {1})) == made.epsilon(made.spent(state, {1}))


def test_the_noise_that_a_budget_asks_for_is_enough_for_a_client_that_is_always_drawn():
    sizes = SIZES[:3]
    made = guarantee(sizes, noise_multiplier=None, target_epsilon=2.0)
    state = after(made, *[range(3)] * 10)
    assert 1.98 < made.epsilon(state) <= 2.0
    assert made.affords(after(made, *[range(3)] * 9), range(3))
    assert not made.affords(state, {0})
    assert made.affords(state, {1}), "who has more examples has spent less"
    assert made.affords(state, ())
    assert made.why_over(state, {0, 1}).endswith("above privacy.target_epsilon = 2")


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"target_epsilon": 0.1}, r"privacy.target_epsilon: found 0.1, allowed: null or at least .*, what one round"),
        ({"delta": 0.01}, r"privacy.delta: found 0.01, allowed: a number below 1 / 400, the examples of the largest"),
    ],
)
def test_a_budget_that_cannot_be_kept_and_a_delta_that_protects_nobody_are_refused(privacy, message):
    with pytest.raises(ConfigError, match=message):
        guarantee(**privacy)


def test_a_summary_says_for_whom_epsilon_holds():
    made = guarantee()
    state = after(made, {0, 1})
    told = made.summary(state)
    assert (
        told.items() >= {"unit": "example", "delta": 1e-5, "noise_multiplier": 1.0, "clip": 1.0, "releases": 10}.items()
    )
    assert told["epsilon"] == made.epsilon(state) < told["epsilon_rdp"]
    assert "one example of one client" in told["neighbours"]
    assert told["sampling"] == "poisson within a client, rate B/n = 4/n, at most 1"
    assert ("delta", "1e-05", f"unit: example; {told['neighbours']}") in list(privacy_rows({"privacy": told}))


def test_a_strict_summary_tells_no_clients_size():
    told = guarantee(strict=True).summary(after(guarantee(), {0, 1}))
    assert told["sampling"] == "poisson within a client, rate B/n"
    assert "releases" not in told
    assert any(title == "epsilon" and "by PLD" in note for title, _, note in privacy_rows({"privacy": told}))


def test_a_forecast_is_of_the_client_that_spends_most_and_ends_with_its_budget():
    made = guarantee(SIZES[:3])
    forecast = made.forecast(151_000)
    assert forecast["epsilon_by_round"][10] == made.epsilon(after(made, *[range(3)] * 10))
    assert forecast["noise_ratio"] == pytest.approx(np.sqrt(151_000) / 4)
    assert any("longest mean gradient of a step" in note for *_, note in privacy_rows({"privacy": forecast}))
    assert any("federated.batch_size" in line for line in made.warnings(151_000))
    assert made.warnings(100) == []
    budget = forecast["epsilon_by_round"][5]
    assert guarantee(SIZES[:3], target_epsilon=budget).forecast(100)["rounds"] == 5


def test_a_run_has_the_guarantee_that_its_config_names():
    made = guarantee_of(load_config(None, [ON]), np.array([50, 60]))
    assert isinstance(made, ExampleLevel)
    assert made.local.batch_size == 4
