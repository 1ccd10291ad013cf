from dataclasses import replace

import numpy as np
import pytest

from fedpft.federated.check import check
from fedpft.federated.messages import ClientFailure, ClientUpdate, RoundPlan
from fedpft.models.activations import ActivationCounts

PLAN = RoundPlan(round_index=2, lr=0.1, adapter=np.zeros(4, np.float32), count_activations=True)
COUNTS = ActivationCounts(zeros=(np.array([0, 5, 2]), np.array([1, 1])), positions=np.array([5, 5]))
UPDATE = ClientUpdate(
    client_id=3,
    num_examples=7,
    adapter=np.ones(4, np.float32),
    metrics={"loss": 0.5, "seconds": 1.0},
    counts=COUNTS,
    actor="actor-1",
    node="there",
    attempts=2,
)


def reason(update, plan=PLAN):
    """Return why an update is refused, after checking that the failure names who sent it and is one line."""
    failure = check(update, plan, awaited={1, 3}, num_neurons=(3, 2))
    assert isinstance(failure, ClientFailure)
    assert str(failure) == f"round 2, client {update.client_id} (actor-1 on there, 2 attempts): {failure.reason}"
    assert "\n" not in str(failure)
    return failure.reason


def with_counts(zeros=COUNTS.zeros, positions=COUNTS.positions):
    return replace(UPDATE, counts=ActivationCounts(zeros=zeros, positions=positions))


def test_a_good_update_and_a_failure_pass_as_they_are():
    failure = ClientFailure(round_index=2, client_id=1, attempts=3, actor="a", node="n", reason="r")
    for outcome in (UPDATE, failure):
        assert check(outcome, PLAN, awaited={1, 3}, num_neurons=(3, 2)) is outcome
    uncounted = replace(UPDATE, counts=None)
    assert check(uncounted, replace(PLAN, count_activations=False), awaited={3}, num_neurons=(3, 2)) is uncounted


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused(value):
    adapter = np.array([0, 0, value, 0], np.float32)
    assert reason(replace(UPDATE, adapter=adapter)).startswith("the adapter has NaN or infinite values")
    assert reason(replace(UPDATE, metrics={"loss": value})).startswith(f"the loss is {value}")


@pytest.mark.parametrize("adapter", [np.ones(3, np.float32), np.ones((4, 1), np.float32), np.ones(4, np.float64)])
def test_another_layout_is_refused(adapter):
    assert "expected float32 (4,)" in reason(replace(UPDATE, adapter=adapter))


def test_a_client_that_was_not_asked_or_answers_twice_is_refused():
    assert reason(replace(UPDATE, client_id=2)) == ("an update of client 2, who was not asked or has answered before")


@pytest.mark.parametrize("num_examples", [0, -5])
def test_a_weight_that_is_not_positive_is_refused(num_examples):
    assert reason(replace(UPDATE, num_examples=num_examples)).startswith(f"trained on {num_examples} examples")


def test_counts_come_exactly_when_asked_for():
    assert reason(replace(UPDATE, counts=None)) == "activation counts are missing"
    unasked = replace(PLAN, count_activations=False)
    assert reason(UPDATE, unasked) == "activation counts that nobody asked for"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"zeros": COUNTS.zeros[:1]}, "expected [3, 2] neurons"),
        ({"zeros": COUNTS.zeros[::-1]}, "expected [3, 2] neurons"),
        ({"positions": np.array([5])}, "expected [3, 2] neurons"),
        ({"zeros": (np.array([0.0, 5.0, 2.0]), COUNTS.zeros[1])}, "expected integers"),
        ({"zeros": (np.array([0, 6, 2]), COUNTS.zeros[1])}, "watched FFN 0 from 0 to 6 of 5 tokens"),
        ({"zeros": (COUNTS.zeros[0], np.array([-1, 0]))}, "watched FFN 1 from -1 to 0 of 5 tokens"),
        ({"positions": np.array([5, 0])}, "of 0 tokens"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, expected):
    assert expected in reason(with_counts(**counts))
