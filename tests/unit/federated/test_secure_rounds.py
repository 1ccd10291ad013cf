"""Rounds with secure aggregation: the server gets the exact sum, and nothing else of any client."""

from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import FederatedConfig, PrivacyConfig
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.exchange import make_exchange
from fedpft.federated.messages import ClientFailure, ClientUpdate, MaskingAnswer, RoundPlan
from fedpft.federated.pool import SequentialPool
from fedpft.federated.sampling import draw_attendance
from fedpft.federated.secure_aggregation import SecureAggregation, client_bytes
from fedpft.federated.server_rule import server_rule
from fedpft.interrupt import RunStoppedError
from fedpft.models.lora import adapter_layout, get_adapter, tuned_mask
from fedpft.models.weights import unpack_model
from fedpft.privacy.client_level import ClientLevel
from tests.tiny import tiny_package
from tests.unit.federated.test_driver import FakeMethod, FakeTracker, SilentObserver

PACKAGE = tiny_package()
PROXY = unpack_model(PACKAGE.proxy)
START, LAYOUT, SIZES = get_adapter(PROXY), adapter_layout(PROXY), PACKAGE.partition.sizes
SECURE = SecureAggregation(threshold_ratio=0.5, bound=16.0, most_weight=16)


class Watched(SequentialPool):
    """Keeps all that it hands over; some clients fail, some where they are asked for shares and the like."""

    def __init__(self, failing=(), silent=None):
        super().__init__(max_retries=0)
        self.failing, self.silent, self.crossed = failing, silent or {}, []

    def run(self, plan, client_ids):
        for outcome in super().run(plan, client_ids):
            self.crossed.append(outcome)
            yield outcome

    def _fit(self, plan, client_id):
        return super()._fit(plan, client_id) if client_id not in self.failing else 1 / 0

    def ask(self, step, client_ids):
        for outcome in super().ask(step, client_ids):
            if outcome.client_id in self.silent.get(step.step, ()):
                about = {"attempts": 1, "actor": "driver", "node": "here", "reason": "gone"}
                outcome = ClientFailure(round_index=step.round_index, client_id=outcome.client_id, **about)
            self.crossed.append(outcome)
            yield outcome


def driver(pool, secure=SECURE, privacy=None, method=None, **federated):
    pool.broadcast(PACKAGE)
    settings = {"num_clients": 4, "clients_per_round": 4, "sampling": "full", "rounds": 2, "lr": 1e-2} | federated
    config = FederatedConfig(**settings)
    secure = secure if secure is None or config.aggregation == "weighted" else replace(secure, most_weight=1)
    return Driver(
        config=config,
        seed=0,
        partition=PACKAGE.partition,
        guarantee=ClientLevel.of(PrivacyConfig(kind="client", **privacy), config) if privacy else None,
        num_neurons=(24, 24),
        method=method or FakeMethod(),
        pool=pool,
        exchange=make_exchange(config, SIZES, LAYOUT),
        rule=server_rule(config, LAYOUT),
        secure=secure,
        evaluate=lambda adapter: {"fm": 0.5},
        evaluation_interval=100,
        tracker=FakeTracker(),
        observer=SilentObserver(),
    )


def first(made):
    return ServerState(rounds_done=0, adapter=START, privacy=made.guarantee.start() if made.guarantee else {})


def in_the_clear(made, clients, round_index=1, adapter=START, *, count=False):
    """Return what clients train to, as they would send it without masks."""
    pool = SequentialPool()
    pool.broadcast(PACKAGE)
    plan = made._plan(ServerState(rounds_done=round_index - 1, adapter=adapter), round_index, count=count)
    return {update.client_id: update for update in pool.run(plan, list(clients))}


def fixed_point_mean(made, updates, begun, tuned=slice(None)):
    """Return the next adapter by fixed-point numbers alone."""
    fixed, weighted = made.secure.fixed_point(begun), made.config.aggregation == "weighted"
    weights = {client: update.num_examples if weighted else 1 for client, update in updates.items()}
    total = sum(
        np.trunc((update.adapter.astype(np.float64) - START[tuned]) * 2.0**fixed.fraction_bits).astype(int)
        * weights[client]
        for client, update in updates.items()
    )
    expected = START.copy()
    expected[tuned] += total * fixed.resolution / sum(weights.values())
    return expected


@pytest.mark.parametrize("aggregation", ["weighted", "uniform"])
@pytest.mark.parametrize("failing", [(), (2,)], ids=["all come", "one drops out"])
def test_the_adapter_is_the_mean_of_fixed_point_numbers_to_the_last_bit_and_the_plain_mean_within_a_step(
    aggregation, failing
):
    made = driver(Watched(failing), aggregation=aggregation)
    final = made.run_round(first(made))
    updates = in_the_clear(made, [client for client in range(4) if client not in failing])
    assert final.adapter.tobytes() == fixed_point_mean(made, updates, begun=4).tobytes()
    plain = driver(Watched(failing), secure=None, aggregation=aggregation)
    mean = plain.run_round(first(plain)).adapter
    step = made.secure.fixed_point(4).resolution
    assert np.abs(final.adapter.astype(np.float64) - mean).max() <= step + 2 * np.spacing(np.abs(mean)).max()
    (record,) = made.tracker.records
    assert record.get("dropped", []) == list(failing)
    assert (final.adapter != START).mean() > 0.9


@pytest.mark.parametrize("kind", ["alternate", "ffa"])
def test_a_round_that_tunes_one_factor_leaves_the_others_bits(kind):
    made = driver(Watched(), lora_aggregation=kind)
    final = made.run_round(first(made))
    tuned = tuned_mask(LAYOUT, made.rule.tuned(1))
    updates = in_the_clear(made, range(4))
    assert final.adapter.tobytes() == fixed_point_mean(made, updates, 4, tuned).tobytes()
    assert len(made.pool.crossed[-5].masked) == tuned.sum() + 1


def test_late_clients_agree_on_masks_and_are_taken_off_the_sum():
    late = {"sampling": "uniform", "clients_per_round": 3, "over_selection": 4 / 3, "rounds": 4}
    made = driver(Watched(), **late)
    final = made.run_round(first(made))
    attendance = draw_attendance(made.config, SIZES, 0, 1)
    assert len(attendance.stragglers) == 1
    assert final.adapter.tobytes() == fixed_point_mean(made, in_the_clear(made, attendance.cohort), 4).tobytes()


@pytest.mark.parametrize("step", ["keys", "shares", "unmask"])
def test_a_client_that_is_silent_in_any_step_costs_nobody_else(step):
    made = driver(Watched(silent={step: (1,)}))
    final = made.run_round(first(made))
    came = range(4) if step == "unmask" else (0, 2, 3)  # its vector has arrived; others' shares are enough
    assert final.adapter.tobytes() == fixed_point_mean(made, in_the_clear(made, came), begun=4).tobytes()
    assert made.tracker.records[0].get("dropped", []) == ([] if step == "unmask" else [1])
    (failure,) = made.tracker.records[0]["failures"]
    assert failure == "round 1, client 1 (driver on here, 1 attempt): gone"


@pytest.mark.parametrize(
    ("pool", "line"),
    [
        (Watched(failing=(0, 2)), "2 clients sent masked updates"),
        (Watched(silent={"keys": (0, 1)}), "2 clients sent their keys"),
        (Watched(silent={"shares": (0, 1, 2)}), "1 clients sent shares"),
        (Watched(silent={"unmask": (0, 3)}), "2 clients gave shares"),
    ],
    ids=["vectors", "keys", "shares", "unmask"],
)
def test_with_too_few_clients_a_round_does_not_count_and_nothing_of_it_stays(pool, line):
    made, said = driver(pool), []
    made.observer.note = said.append
    state = made.run_round(first(made))
    assert state.adapter.tobytes() == START.tobytes()
    assert state.uncounted_rounds == 1
    (record,) = made.tracker.records
    assert record["counted"] is False
    assert record["not_opened"] == f"secure aggregation: {line}, allowed: 3 or more (privacy.secure_threshold)"
    assert said == [f"round 1: {record['not_opened']}"]
    with pytest.raises(RunStoppedError, match=f"2 rounds in a row did not count.*{line}"):
        made.run_round(state)


def test_an_update_that_could_overflow_is_a_failure_of_its_client_in_one_line():
    largest = {
        client: np.abs(u.adapter - START).max() for client, u in in_the_clear(driver(Watched()), range(4)).items()
    }
    second, most = sorted(largest.values())[-2:]
    made = driver(Watched(), secure=replace(SECURE, bound=float(second + most) / 2))
    made.run_round(first(made))
    (record,) = made.tracker.records
    assert record["dropped"] == [max(largest, key=largest.get)]
    (failure,) = record["failures"]
    assert "the update has a number of size" in failure
    assert "allowed: at most privacy.secure_bound" in failure


def test_neuron_counts_are_part_of_the_sum():
    method = FakeMethod(rounds_with_counts=(1,))
    made = driver(Watched(), method=method)
    made.pool.replace_weights = lambda weights: 0
    made.run_round(first(made))
    ((_, _, counts),) = method.after
    single = [update.counts for update in in_the_clear(made, range(4), count=True).values()]
    assert counts.positions.tolist() == sum(c.positions for c in single).tolist()
    assert [z.tolist() for z in counts.zeros] == [sum(c.zeros[layer] for c in single).tolist() for layer in (0, 1)]


@pytest.mark.parametrize(("clipping", "lora"), [("fixed", "separate"), ("adaptive", "separate"), ("fixed", "ffa")])
def test_with_privacy_clients_clip_and_the_same_noise_is_added_to_the_same_sum(clipping, lora):
    privacy = {"noise_multiplier": 1.0, "clip": 0.05, "clipping": clipping, "clip_count_noise": 2.0}
    ends = []
    for secure in (None, replace(SECURE, bound=0.05)):
        settings = {"aggregation": "uniform", "lora_aggregation": lora}
        made = driver(Watched(failing=(1,)), secure=secure, privacy=privacy, **settings)
        ends.append((made.run(first(made)), made.tracker.records))
    (plain, records), (masked, masked_records) = ends
    assert masked.adapter == pytest.approx(plain.adapter, abs=1e-6)
    assert masked.privacy == plain.privacy
    for key in ("privacy/epsilon", "privacy/num_clipped", "privacy/clip"):
        assert [record[key] for record in masked_records] == pytest.approx([record[key] for record in records])
    assert masked_records[0]["privacy/num_clipped"] == 3


def test_with_privacy_a_round_that_cannot_be_opened_ends_the_run_and_releases_nothing():
    made = driver(Watched(failing=(0, 1)), privacy={"noise_multiplier": 1.0}, aggregation="uniform")
    with pytest.raises(RunStoppedError, match=r"^round 1: secure aggregation: 2 clients sent .*; under privacy.kind"):
        made.run_round(first(made))
    assert made.tracker.records == []


def test_the_record_has_what_secure_aggregation_costs():
    made = driver(Watched(failing=(3,)))
    made.run_round(first(made))
    (record,) = made.tracker.records
    crossed = made.pool.crossed
    vectors = [message.masked for message in crossed if isinstance(message, ClientUpdate)]
    assert record["comm/bytes_masked"] == sum(vector.nbytes for vector in vectors) == 3 * 8 * (len(START) + 1)
    answers = [sum(map(len, message.sent.values())) for message in crossed if isinstance(message, MaskingAnswer)]
    assert record["comm/bytes_up"] == record["comm/bytes_masked"] + sum(answers)
    for key in ("time/keys_seconds", "time/shares_seconds", "time/unmask_seconds", "clients/mask_seconds"):
        assert record[key] > 0
    up, down = (sum(part[way] for part in client_bytes(4, len(START) + 1).values()) for way in (0, 1))
    plain = {"bytes_up_per_client_round": START.nbytes, "bytes_down_per_client_round": START.nbytes}
    told = made.secure.traffic(plain, 4)
    assert told == {"bytes_up_per_client_round": up, "bytes_down_per_client_round": START.nbytes + down}


def test_a_run_that_goes_on_ends_with_the_same_bits():
    made, states = driver(Watched()), []
    straight = replace(made, checkpoint=states.append).run(first(made))
    assert driver(Watched()).run(states[0]).adapter.tobytes() == straight.adapter.tobytes()


def test_what_is_not_masked_is_refused():
    class Bare(Watched):
        def run(self, plan, client_ids):
            return super().run(replace(plan, masking=None), client_ids)

    made = driver(Bare())
    made.run_round(first(made))
    (record,) = made.tracker.records
    assert "an update in the clear, expected a masked one" in record["failures"][0]
    assert record["clients"] == []


def test_a_plan_without_masks_gets_updates_without():
    pool = SequentialPool()
    pool.broadcast(PACKAGE)
    (update,) = pool.run(RoundPlan(round_index=1, lr=1e-2, adapter=START, count_activations=False), [0])
    assert update.masked is None
