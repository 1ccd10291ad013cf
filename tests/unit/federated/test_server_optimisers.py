"""Server optimisers: Flower's numbers, Reddi et al.'s formulas where Flower's differ, rates of LoRA and head."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpft.config import ServerOptimiserConfig
from fedpft.config.algorithms import SERVER_OPTIMISERS
from fedpft.federated.server_rule import make_optimiser

CASE = json.loads((Path(__file__).parents[2] / "golden/server_rules.json").read_text())["optimisers"]
START, SENT = np.array(CASE["start"]), np.array(CASE["sent"])
NO_HEAD = np.zeros(len(START), bool)
LIKE_FLOWER = {
    "adam": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99},
    "yogi": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99},
    "adagrad": {"lr": 0.1, "beta1": 0.0},
    "momentum": {"lr": 0.5, "beta1": 0.9},
}


@pytest.mark.parametrize("kind", LIKE_FLOWER)
def test_steps_are_flowers(kind):
    """Flower begins with v = 0, the paper with tau ** 2; its Adam has a rate that grows, the paper's none."""
    made = make_optimiser(ServerOptimiserConfig(kind=kind, tau=1e-3, **LIKE_FLOWER[kind]), NO_HEAD)
    adapter = START
    state = {name: np.zeros_like(value) for name, value in made.init(adapter).items()}
    for number, (adapters, expected) in enumerate(zip(SENT, CASE["flower"][kind], strict=True), 1):
        optimiser = made
        if kind == "adam":
            factor = np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
            optimiser = replace(made, lr=made.lr * factor)
        mean = np.average(adapters, axis=0, weights=CASE["num_examples"])
        state, adapter = optimiser.step(state, adapter, mean - adapter)
        assert np.abs(adapter - expected).max() < 1e-12


@pytest.mark.parametrize("kind", [kind for kind in SERVER_OPTIMISERS if kind != "avg"])
def test_a_step_keeps_state_adapter_and_update_as_they_are(kind):
    made = make_optimiser(ServerOptimiserConfig(kind=kind), NO_HEAD)
    update, adapter = SENT[0][0].copy(), START.copy()
    state = made.init(adapter)
    kept = {name: value.copy() for name, value in state.items()}
    made.step(state, adapter, update)
    assert np.array_equal(update, SENT[0][0])
    assert np.array_equal(adapter, START)
    assert all(np.array_equal(state[name], kept[name]) for name in kept)


@pytest.mark.parametrize("kind", ["adam", "yogi", "adagrad"])
def test_squares_begin_at_tau_squared_so_that_no_number_of_a_first_update_is_blown_up(kind):
    made = make_optimiser(ServerOptimiserConfig(kind=kind, lr=1.0, beta1=0.0, tau=0.1), NO_HEAD)
    update = np.full(len(START), 1e-6)
    _, adapter = made.step(made.init(START), START, update)
    assert adapter - START == pytest.approx(update / 0.2, rel=1e-2)


@pytest.mark.parametrize(("settings", "lora", "head"), [({}, 1.0, 1.0), ({"kind": "adam"}, 0.01, 0.01),
    ({"lr": 0.5}, 0.5, 0.5), ({"kind": "yogi", "head_lr": 0.2}, 0.01, 0.2)])  # fmt: skip
def test_lora_and_head_have_the_rates_of_the_settings(settings, lora, head):
    assert ServerOptimiserConfig(**settings).rates == (lora, head)
    is_head = np.arange(len(START)) > 3
    made = make_optimiser(ServerOptimiserConfig(**settings), is_head)
    if settings:
        assert made.lr.tolist() == [lora] * 4 + [head] * (len(START) - 4)


def test_plain_averaging_is_no_step_at_all():
    assert make_optimiser(ServerOptimiserConfig(), NO_HEAD) is None
    assert make_optimiser(ServerOptimiserConfig(kind="momentum"), NO_HEAD) is not None


def test_averaging_with_a_rate_goes_that_part_of_the_way():
    made = make_optimiser(ServerOptimiserConfig(lr=0.25), NO_HEAD)
    state, adapter = made.step(made.init(START), START, SENT[0][0] - START)
    assert adapter == pytest.approx(0.75 * START + 0.25 * SENT[0][0])
    assert not state
