"""The page of what leaves whom has every message that crosses the pool, and every field of it."""

import importlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np

from fedpft.federated.crossings import CROSSINGS, SIZES
from fedpft.federated.messages import ClientUpdate, Masking, MaskingStep, RoundPlan
from fedpft.federated.pool import SequentialPool
from fedpft.models.flat_adapter import FlatAdapter
from fedpft.models.weights import unpack_model
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.privacy.fixed_point import FixedPoint
from tests.tiny import tiny_package


def crossed(package, plan, monkeypatch):
    """Return all dataclass messages that go through a pool, those inside others, too, and one client's failure."""
    pool = SequentialPool(max_retries=0)
    pool.broadcast(package)
    outcomes = list(pool.run(plan, [0, 1]))
    step = MaskingStep(step="keys", round_index=1, threshold=2)
    answers = list(pool.ask(step, [0, 1]))
    keys = {answer.client_id: answer.sent[answer.client_id] for answer in answers}
    fixed = FixedPoint.of(bound=16.0, most_weight=16, num_parties=2)
    masking = Masking(keys=keys, fixed=fixed, is_weighted=True)
    outcomes += pool.run(replace(plan, masking=masking), [0])
    monkeypatch.setattr(pool._client, "fit", None)
    noise = ExampleNoise(clip=1.0, noise_multiplier=1.0, batch_size=4)
    return [package, package.settings, noise, plan, masking, step, *answers, *outcomes, *pool.run(plan, [2])]


def test_every_message_that_crosses_is_in_the_table_and_has_the_sizes_that_the_page_says(monkeypatch):
    package = tiny_package()
    adapter = FlatAdapter(unpack_model(package.proxy)).read(0)
    plan = RoundPlan(round_index=1, lr=1e-3, adapter=adapter, count_activations=True)
    messages = crossed(package, plan, monkeypatch)
    assert {type(message) for message in messages} == set(CROSSINGS)
    *updates, masked = [message for message in messages if isinstance(message, ClientUpdate)]
    neurons = sum(zeros.size for zeros in updates[0].counts.zeros)
    assert masked.num_bytes == 8 * (len(adapter) + neurons + len(package.watched_layers)) + 8
    for update in updates:
        assert update.num_bytes == 4 * len(adapter) + 8 * neurons + 8 * len(package.watched_layers)
    for message in messages:  # what is an array, or holds one, says its size
        heavy = {entry.name for entry in fields(message) if holds_arrays(getattr(message, entry.name))}
        assert heavy <= set(SIZES), type(message).__name__


def holds_arrays(value):
    if isinstance(value, np.ndarray):
        return True
    return is_dataclass(value) and any(holds_arrays(getattr(value, entry.name)) for entry in fields(value))


def test_marked_fields_exist():
    for kind, crossing in CROSSINGS.items():
        assert set(crossing.only_in_a_simulation) <= {entry.name for entry in fields(kind)}


def test_the_page_has_every_field_with_its_meaning(monkeypatch):
    root = Path(__file__).parents[3]
    monkeypatch.syspath_prepend(str(root / "docs/_ext"))
    page = importlib.import_module("generated").expand((root / "docs/reference/messages.md").read_text())
    for kind in CROSSINGS:
        assert f"\n## `{kind.__name__}`" in page
        assert not [entry.name for entry in fields(kind) if f"| `{entry.name}` |" not in page]
