"""The driver with differential privacy of whole clients."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import PrivacyConfig, StopConfig
from fedpft.federated.driver import ServerState
from fedpft.federated.early_stop import EarlyStop
from fedpft.federated.exchange import make_exchange
from fedpft.federated.messages import ClientFailure
from fedpft.federated.server_optimisers import Momentum
from fedpft.federated.server_rule import ServerRule, server_rule
from fedpft.interrupt import RunStoppedError
from fedpft.models.activations import ActivationCounts
from fedpft.models.lora import tuned_mask
from fedpft.privacy.client_level import ClientLevel
from fedpft.privacy.example_level import ExampleLevel
from fedpft.report.scores import why_stopped
from tests.unit.federated.test_driver import NUM_PARAMETERS, SIZES, START, FakeMethod, FakePool, driver

LAW = {"sampling": "poisson", "aggregation": "uniform", "rounds": 6}


def private(*, privacy=None, **settings):
    made, evaluated = driver(**{**LAW, **settings})
    privacy = PrivacyConfig(kind="client", **{"noise_multiplier": 1.0, "clip": 0.01} | (privacy or {}))
    made = replace(made, guarantee=ClientLevel.of(privacy, made.config))
    return made, evaluated


def start(made):
    return ServerState(rounds_done=0, adapter=START, privacy=made.guarantee.start())


def failing(update):
    return ClientFailure(
        round_index=1, client_id=update.client_id, attempts=1, actor="fake", node="here", reason="no", traceback=""
    )


def test_every_round_is_accounted_for_and_says_so():
    made, _ = private()
    final = made.run(start(made))
    assert sum(entry["count"] for entry in final.privacy["ledger"]) == 6
    spent = [record["privacy/epsilon"] for record in made.tracker.records]
    assert spent == sorted(set(spent))
    assert spent[-1] == made.guarantee.summary(final.privacy)["epsilon"]


@pytest.mark.parametrize("spoil", [failing, None], ids=["all fail", "nobody drawn"])
def test_a_round_without_updates_releases_noise_counts_and_costs(spoil):
    pool = FakePool(spoil=spoil) if spoil else FakePool()
    few = {} if spoil else {"clients_per_round": 1, "seed": 0, "rounds": 12}
    made, _ = private(pool=pool, **few)
    state, adapters = start(made), [START]
    for _ in range(2 if spoil else 12):
        state = made.run_round(state)
        adapters.append(state.adapter)
    empty = [record["round"] for record in made.tracker.records if not record["clients"]]
    assert len(empty) >= 2
    assert not any("counted" in record for record in made.tracker.records)
    assert all((adapters[index] != adapters[index - 1]).all() for index in empty)
    assert sum(entry["count"] for entry in state.privacy["ledger"]) == state.rounds_done


def test_absent_canaries_never_train_and_a_round_of_them_alone_counts_as_if_nobody_were_drawn():
    made, _ = private(sampling="full")
    everybody = frozenset(range(made.partition.num_clients))
    few = replace(made, absent=everybody - {1, 2})
    few.run(start(few))
    assert all(sorted(cohort) == [1, 2] for cohort in few.pool.cohorts)
    nobody, _ = private(sampling="full")
    nobody = replace(nobody, absent=everybody)
    final = nobody.run(start(nobody))
    assert (final.rounds_done, final.uncounted_rounds) == (6, 0)
    assert sum(entry["count"] for entry in final.privacy["ledger"]) == 6


def test_a_run_in_which_every_client_fails_still_stops():
    made, _ = private(pool=FakePool(spoil=failing))
    with pytest.raises(RunStoppedError, match="3 rounds in a row"):
        made.run(start(made))


def test_one_client_more_changes_the_next_adapter_by_at_most_the_clip_over_the_expected_number():
    ends = []
    for absent in (None, 4):
        made, _ = private(pool=FakePool(spoil=lambda u, absent=absent: failing(u) if u.client_id == absent else u),
                          sampling="full")  # fmt: skip
        ends.append(made.run_round(start(made)).adapter.astype(np.float64))
    assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(0.01 / 5, rel=1e-4), "the update is longer than the clip"


def test_the_run_ends_with_its_result_before_a_round_that_would_pass_the_budget():
    made, evaluated = private(privacy={"target_epsilon": 8.0})
    final = made.run(start(made))
    assert 0 < final.rounds_done < 6
    assert final.last_evaluation == {"fm": 0.75, "sub_fm": 0.5}
    assert [adapter.tobytes() for adapter in evaluated] == [final.adapter.tobytes()]
    assert made.guarantee.summary(final.privacy)["epsilon"] <= 8.0
    assert made.tracker.records[-1]["stopped"] == "privacy"
    stopped = EarlyStop(config=StopConfig(), metric="accuracy").record(final.stop, 6)
    assert why_stopped(stopped).startswith("the next would raise epsilon to 8.")
    assert why_stopped(stopped).endswith(", above privacy.target_epsilon = 8")
    again, _ = private(privacy={"target_epsilon": 8.0})
    assert again.run(final) is final, "nor after a resume"


def test_any_state_goes_on_through_json_to_the_same_noise_clip_and_epsilon():
    privacy = {"clipping": "adaptive", "clip_count_noise": 2.0}
    states = []
    made, _ = private(privacy=privacy)
    straight = replace(made, checkpoint=states.append).run(start(made))
    resumed, _ = private(privacy=privacy)
    saved = json.loads(json.dumps(states[2].privacy))
    final = resumed.run(replace(states[2], privacy=saved))
    assert final.adapter.tobytes() == straight.adapter.tobytes()
    assert final.privacy == straight.privacy
    assert len({record["privacy/clip"] for record in made.tracker.records}) == 6


def test_bits_do_not_depend_on_the_order_of_arrival():
    class Sorted(FakePool):
        def run(self, plan, client_ids):
            return iter(sorted(super().run(plan, client_ids), key=lambda update: update.client_id))

    ends = []
    for pool in (FakePool(), Sorted()):
        made, _ = private(pool=pool, sampling="full", privacy={"clip": 1e3})
        ends.append(made.run(start(made)).adapter.tobytes())
    assert len(set(ends)) == 1


def test_with_public_counts_no_client_counts_and_the_method_gets_them():
    counts = ActivationCounts(zeros=(np.array([5, 6]),), positions=np.array([9]))
    seen, method = [], FakeMethod(rounds_with_counts=(2,))
    made, _ = private(method=method, sampling="full")
    made = replace(made, public_counts=lambda adapter: seen.append(adapter.tobytes()) or counts)
    made.run(start(made))
    assert not any(plan.count_activations for plan in made.pool.plans)
    ((index, adapter, given),) = method.after
    assert (index, given) == (2, counts)
    assert seen == [adapter.tobytes()]


def test_with_the_clients_own_counts_the_method_gets_noised_ones():
    method = FakeMethod(rounds_with_counts=(2,))
    made, _ = private(method=method, sampling="full")
    made.run(start(made))
    ((_, _, given),) = method.after
    assert given.positions.tolist() == [10**6]
    assert given.zeros[0].shape == (2,)
    exact = [0.25 * 10**6, 0.5 * 10**6]
    assert all(abs(found - true) > 1 for found, true in zip(given.zeros[0], exact, strict=True))


@pytest.mark.parametrize(("kind", "second"), [("ffa", "B"), ("fedsvd", "B"), ("alternate", "A")])
def test_noise_goes_to_what_a_round_tunes_and_to_nothing_else(kind, second):
    layout = (("q.lora_A.weight", (1, 2)), ("q.lora_B.weight", (2, 1)), ("classifier.weight", (1, 2)))
    made, _ = private(sampling="full", lora_aggregation=kind)
    rule = replace(server_rule(made.config, layout), rewrite=np.asarray)  # fedsvd's own change of factors aside
    made = replace(made, rule=rule, exchange=make_exchange(made.config, SIZES, layout))
    states = [start(made)]
    for _ in (1, 2):
        states.append(made.run_round(states[-1]))
    for before, after, factor in zip(states, states[1:], ("B", second), strict=False):
        assert (after.adapter != before.adapter).tolist() == tuned_mask(layout, factor).tolist()


def test_without_a_guarantee_nothing_of_it_is_in_state_or_record():
    made, _ = driver()
    final = made.run(ServerState(rounds_done=0, adapter=np.zeros(NUM_PARAMETERS, dtype=np.float32)))
    assert final.privacy == {}
    assert not any(key.startswith("privacy/") for record in made.tracker.records for key in record)


def test_the_servers_optimiser_works_on_what_was_released_and_remembers_it():
    rule = ServerRule(optimiser=Momentum(lr=0.5, beta1=0.9))
    made, _ = private(sampling="full")
    plain = made.run_round(start(made))
    moved = replace(made, rule=rule).run_round(start(made))
    assert moved.adapter == pytest.approx(0.5 * plain.adapter, rel=1e-5)
    assert moved.arrays


def of_examples(*, privacy=None, **settings):
    made, evaluated = driver(**{"rounds": 6, "sampling": "full", **settings})
    privacy = PrivacyConfig(kind="example", **{"noise_multiplier": 2.0} | (privacy or {}))
    return replace(made, guarantee=ExampleLevel.of(privacy, made.config, made.partition.sizes)), evaluated


def test_with_noise_from_clients_the_aggregate_is_that_of_a_run_without_a_guarantee():
    made, _ = of_examples()
    plain, _ = driver(rounds=6, sampling="full")
    final = made.run(start(made))
    assert final.adapter.tobytes() == plain.run(ServerState(rounds_done=0, adapter=START)).adapter.tobytes()
    spent = [record["privacy/epsilon"] for record in made.tracker.records]
    assert spent == sorted(set(spent))
    assert spent[-1] == made.guarantee.epsilon(final.privacy) == made.guarantee.forecast(3)["epsilon_by_round"][6]


def test_clients_that_fail_have_paid_and_their_round_does_not_count():
    made, _ = of_examples(pool=FakePool(spoil=failing))
    state = made.run_round(start(made))
    assert state.adapter.tobytes() == START.tobytes()
    assert made.tracker.records[-1]["counted"] is False
    assert set(state.privacy["rounds"].values()) == {1}


def test_the_run_ends_before_a_round_in_which_a_drawn_client_would_pass_the_budget():
    budget = of_examples()[0].guarantee.forecast(3)["epsilon_by_round"][3]
    made, evaluated = of_examples(privacy={"target_epsilon": budget})
    final = made.run(start(made))
    assert final.rounds_done == 3
    assert len(evaluated) == 1
    assert final.stop["reason"] == "privacy"
    few, _ = of_examples(privacy={"target_epsilon": budget}, sampling="uniform", clients_per_round=1)
    assert few.run(start(few)).rounds_done > 3, "each is drawn less often"


def test_a_ledger_that_went_through_json_goes_on_to_the_same_end():
    states = []
    made, _ = of_examples(sampling="uniform")
    straight = replace(made, checkpoint=states.append).run(start(made))
    again = replace(states[2], privacy=json.loads(json.dumps(states[2].privacy)))
    assert of_examples(sampling="uniform")[0].run(again).privacy == straight.privacy
