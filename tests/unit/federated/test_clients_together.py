"""Clients that train together: each gets what it gets alone."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpft.config import ClientConfig, LoraConfig
from fedpft.config.client import CLIENT_STEPS
from fedpft.data.partition import Partition
from fedpft.federated import client as client_module
from fedpft.federated.client import LocalClient
from fedpft.federated.client_steps.base import PlainStep, clip_norms
from fedpft.federated.client_steps.corrected import VARIATE
from fedpft.federated.client_steps.optimisers import AdamW
from fedpft.federated.grouping import by_shape, even_parts, groups, most_together
from fedpft.federated.messages import RoundPlan
from fedpft.federated.step_costs import step_costs, typical_batch
from fedpft.federated.throughput import Throughput
from fedpft.metrics import tokens
from fedpft.models.lora import attach_lora, get_adapter
from fedpft.models.weights import pack_model, unpack_model
from tests.tiny import FAMILIES, IMAGE_FAMILIES, LanguageCollator, tiny_fm, tiny_lm, tiny_package

LIKE_ANOTHER = ("camembert", "deit", "electra", "gemma3_text", "mistral", "qwen2", "roberta", "smollm3", "xlm-roberta")
"""Families whose layers are computed as another's."""

SIZES = (7, 9, 5, 12, 3, 4, 1)
SETTINGS = tiny_package().settings


class PixelCollator:
    def __call__(self, rows):
        pixels = torch.tensor([row["pixels"] for row in rows], dtype=torch.float32).reshape(-1, 3, 8, 8)
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}


def package_of(model_type, **settings):
    """Return 7 clients of unequal sizes and, but for images, lengths; every dropout of the family is on."""
    package = tiny_package(model_type, shard_sizes=SIZES, batch_size=3, max_grad_norm=0.5, **settings)
    if model_type not in IMAGE_FAMILIES:
        return package
    fm = tiny_fm(model_type, num_labels=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    model = attach_lora(fm, LoraConfig(rank=2, lora_alpha=4, dropout=0.1), seed=0)
    rng = np.random.default_rng(0)
    pixels = list(rng.normal(size=(sum(SIZES), 192)).astype(np.float32))
    train = datasets.Dataset.from_dict({"pixels": pixels, "label": rng.integers(0, 2, sum(SIZES)).tolist()})
    return replace(package, proxy=pack_model(model), train=train, collate=PixelCollator())


def plan_for(package, count=True):
    """Return a plan whose adapter is as after some rounds: no B of LoRA is zero."""
    adapter = get_adapter(unpack_model(package.proxy))
    adapter += 0.05 * np.random.default_rng(1).normal(size=adapter.shape).astype(np.float32)
    return RoundPlan(round_index=1, lr=1e-2, adapter=adapter, count_activations=count)


SCHEDULE = {"schedule": "cosine", "warmup_steps": 1}


def stateful(plan):
    """Return the plan with what SCAFFOLD's clients are sent, the first of whom has no state yet, and FedNova's."""
    rng = np.random.default_rng(2)
    c, *own = (0.01 * rng.normal(size=(7, len(plan.adapter)))).astype(np.float32)
    states = {client_id: {VARIATE: array} for client_id, array in enumerate(own, start=1)}
    return replace(plan, shared={VARIATE: c}, states=states, tau=2.5)


def bits(update):
    counts = None if update.counts is None else [a.tolist() for a in (*update.counts.zeros, update.counts.positions)]
    state = {name: array.tobytes() for name, array in update.state.items()}
    return update.client_id, update.num_examples, update.adapter.tobytes(), update.metrics["loss"], counts, state


@pytest.mark.filterwarnings("error:clients train one by one")
@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - set(LIKE_ANOTHER)))
def test_each_client_gets_the_bits_that_it_gets_alone(model_type):
    package = package_of(model_type)
    place, plan = LocalClient(package), plan_for(package)
    expected = [bits(place.fit(plan, client_id)) for client_id in range(7)]
    together = LocalClient(package)
    assert [bits(update) for update in together.fit_together(plan, [4, 1])] == [expected[4], expected[1]]
    assert [bits(update) for update in together.fit_together(plan, range(7))] == expected
    assert bits(together.fit(plan, 2)) == expected[2]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "phi3"])
def test_clients_with_lora_on_ffns_do_too(model_type):
    lora = LoraConfig(rank=2, lora_alpha=4, dropout=0.1, target_modules=("all-linear",))
    package = package_of(model_type, model=attach_lora(tiny_fm(model_type, num_labels=2), lora, seed=0))
    place, plan = LocalClient(package), plan_for(package)
    expected = [bits(place.fit(plan, client_id)) for client_id in range(7)]
    assert [bits(update) for update in place.fit_together(plan, range(7))] == expected


@pytest.mark.parametrize("kind", CLIENT_STEPS)
def test_every_rule_of_steps_does_too(kind):
    """With rates that fall for each over its own number of steps, and steps of two batches."""
    package = package_of("bert", client=ClientConfig(kind=kind, **SCHEDULE), accumulate=2, num_epochs=2)
    plan = stateful(plan_for(package, count=False))
    place = LocalClient(package)
    expected = [bits(place.fit(plan, client_id)) for client_id in range(7)]
    assert [bits(update) for update in place.fit_together(plan, range(7))] == expected
    assert len({bits[2] for bits in expected}) == 7


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_language_models_clients_do_too(model_type, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 5 * 40)
    model = attach_lora(tiny_lm(model_type), LoraConfig(rank=2, dropout=0.1), seed=0)
    package = tiny_package(model_type, model=model, shard_sizes=SIZES)
    package = replace(package, collate=LanguageCollator(package.collate))
    place, plan = LocalClient(package), plan_for(package)
    expected = [bits(place.fit(plan, client_id)) for client_id in range(7)]
    assert [bits(update) for update in place.fit_together(plan, range(7))] == expected


def test_rounding_is_all_that_differs_in_bf16():
    package = package_of("bert", precision="bf16-mixed")
    place, plan = LocalClient(package), plan_for(package, count=False)
    alone = [place.fit(plan, client_id) for client_id in range(7)]
    for one, other in zip(alone, place.fit_together(plan, range(7)), strict=True):
        moved = np.abs(one.adapter - plan.adapter).max()
        assert np.abs(one.adapter - other.adapter).mean() < 0.05 * moved
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=0.05)


def test_a_client_tells_with_how_many_it_was_in_a_forward_pass():
    """Images have one shape: those meet who have batches of one number at a time."""
    package = package_of("vit", clients_per_batch=7)
    place, plan = LocalClient(package), plan_for(package, count=False)
    batches = [[3] * (size // 3) + [size % 3] * (size % 3 > 0) for size in SIZES]
    expected = [
        np.mean([sum(other[step : step + 1] == [own[step]] for other in batches) for step in range(len(own))])
        for own in batches
    ]
    assert max(expected) > 2
    assert [update.metrics["together"] for update in place.fit_together(plan, range(7))] == pytest.approx(expected)
    assert place.fit(plan, 0).metrics["together"] == 1
    assert "together" not in LocalClient(package_of("vit")).fit(plan, 0).metrics, "it never is"


def test_what_clients_spend_is_told_of_each_and_their_seconds_add_up(monkeypatch):
    package = package_of("bert")
    costs = step_costs(unpack_model(package.proxy), typical_batch(package, 3))
    package = replace(package, step_costs=costs)
    place, plan = LocalClient(package), plan_for(package)
    alone = [place.fit(plan, client_id) for client_id in range(7)]
    clock = iter(range(10_000))
    monkeypatch.setattr(client_module.time, "perf_counter", lambda: float(next(clock)))
    together = place.fit_together(plan, range(7))
    last = next(clock)
    for name in ("flops", "memory_bytes"):
        assert [update.metrics[name] for update in together] == [update.metrics[name] for update in alone]
    assert sum(update.metrics["seconds"] for update in together) == pytest.approx(last - 1)


def test_a_client_without_further_batches_is_left_as_it_is():
    """Client 6 has one batch: after it neither decay nor moments move its adapter."""
    package = package_of("bert")
    plan = plan_for(package)
    place = LocalClient(package)
    seen = []
    rule = AdamW.__call__

    def spy(self, *args):
        rule(self, *args)
        seen.append(place._adapter.values[6].clone())

    place._rule = lambda plan, made=place._rule: SpyingRule(made(plan), spy)
    place.fit_together(plan, range(7))
    last_of_its_step = 7 if len(seen) < 7 else next(i for i, row in enumerate(seen) if torch.equal(row, seen[-1]))
    assert all(torch.equal(row, seen[-1]) for row in seen[last_of_its_step:])
    assert last_of_its_step < len(seen) - 1


class SpyingRule(PlainStep):
    def __init__(self, rule, call):
        self._rule, self._call = rule, call
        self.begin = rule.begin

    def __call__(self, *args):
        self._call(self._rule, *args)


class DrawsNoise(nn.Module):
    def forward(self, hidden):
        return hidden + 0.01 * torch.randn_like(hidden)


def test_a_model_that_draws_in_an_unknown_way_trains_its_clients_one_by_one_and_says_so():
    package = package_of("bert")
    place, plan = LocalClient(package), plan_for(package)
    for layer in place._module.proxy.get_base_model().bert.encoder.layer:
        layer.output.dropout = DrawsNoise()
    expected = [bits(place.fit(plan, client_id)) for client_id in range(3)]
    with pytest.warns(UserWarning, match="clients train one by one: the model draws random numbers"):
        assert [bits(update) for update in place.fit_together(plan, range(3))] == expected


def test_out_of_memory_halves_how_many_meet_and_changes_no_bit(monkeypatch):
    package = package_of("vit")
    place, plan = LocalClient(package), plan_for(package)
    expected = [bits(place.fit(plan, client_id)) for client_id in range(7)]
    step, sizes = place._module.training_step, []

    def short_of_memory(batch, *others):
        sizes.append(len(batch["labels"]))
        if len(batch["labels"]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(batch, *others)

    monkeypatch.setattr(place._module, "training_step", short_of_memory)
    assert [bits(update) for update in place.fit_together(plan, range(7))] == expected
    refused = [size for size in sizes if size > 6]
    place.fit_together(plan, range(7))
    assert [size for size in sizes if size > 6] == refused, "it is not tried again"


def test_another_fault_is_the_pools_business(monkeypatch):
    package = package_of("bert")
    place = LocalClient(package)
    monkeypatch.setattr(place._module, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.fit_together(plan_for(package), range(3))


def test_groups_are_even_and_a_function_of_the_order_and_their_size():
    settings = tiny_package(clients_per_batch=4).settings
    assert groups(range(10), settings, 1) == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert groups(range(10), replace(settings, precision="bf16-mixed"), 7) == groups(range(10), settings, 1)
    assert [len(group) for group in groups(range(10), settings, 2)] == [3, 3, 2, 2], "shared out among places"
    many = replace(settings, clients_per_batch=16)
    assert [len(group) for group in groups(range(100), many, 2)] == [13] * 4 + [12] * 4, "each place has as many groups"
    assert [len(group) for group in groups(range(100), replace(settings, clients_per_batch="auto"), 2)] == [25] * 4
    assert groups([5, 3, 4], settings, 4) == [(5,), (3,), (4,)]
    assert groups([5, 3], replace(settings, clients_per_batch=1), 1) == [(5,), (3,)]
    assert groups([], settings, 1) == even_parts([], 4) == []


@given(
    work=st.lists(st.integers(1, 48), max_size=60),
    most=st.one_of(st.just("auto"), st.integers(1, 9)),
    places=st.integers(2, 4),
)
def test_of_several_places_each_client_is_in_one_group_and_no_group_is_late_by_more_than_a_client(work, most, places):
    settings = replace(SETTINGS, clients_per_batch=most)
    together = groups(range(len(work)), settings, places, work.__getitem__)
    assert sorted(client for group in together for client in group) == list(range(len(work)))
    assert all(0 < len(group) <= most_together(settings) for group in together)
    assert together == sorted(map(tuple, map(sorted, together))), "in the order in which they start"
    loads = [sum(map(work.__getitem__, group)) for group in together]
    roomy = [load for load, group in zip(loads, together, strict=True) if len(group) < most_together(settings)]
    assert all(load - min(roomy) <= max(work) for load in roomy)


def test_groups_of_unequal_clients_have_equal_work():
    settings = tiny_package(clients_per_batch="auto").settings
    sizes = [48, 46, 44, 43, 40, 33, 30, 26, 21, 17, 12, 8, 7, 5, 4, 2]
    loads = [sum(map(sizes.__getitem__, group)) for group in groups(range(16), settings, 2, sizes.__getitem__)]
    assert loads == [97, 97, 96, 96]


def test_only_batches_of_one_shape_meet_and_of_those_none_with_padding_and_one_without():
    def batch(B, T, padding=1):
        mask = torch.ones(B, T, dtype=torch.long)
        mask[0, T - padding :] = 0
        return {"input_ids": torch.zeros(B, T), "attention_mask": mask, "labels": torch.zeros(B)}

    batches = {
        0: batch(4, 7),
        1: batch(4, 6),
        2: batch(4, 7),
        3: batch(3, 7),
        5: batch(4, 7, padding=0),
        8: batch(4, 7),
    }
    assert sorted(by_shape(batches)) == [[0, 2, 8], [1], [3], [5]]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda k: 1 + 0.1 * k, 8),
        (lambda k: k, 1),
        (lambda k: max(4, k), 4),
        (lambda k: k if k == 1 else 3 + 0.1 * k, 8),  # 2 take longer than 1, and 4 no longer than 2
    ],
)
def test_auto_finds_with_how_many_a_client_takes_the_least_time(seconds, expected):
    throughput, batch = Throughput(is_to_learn=True), {"input_ids": torch.zeros(4, 10), "labels": torch.zeros(4)}
    for _ in range(8):
        parts = throughput.cut(range(8), batch)
        assert [client for part in parts for client in part] == list(range(8))
        for part in parts:
            throughput.note(batch, len(part), seconds(len(part)))
    assert max(len(part) for part in throughput.cut(range(8), batch)) == expected
    assert [len(part) for part in throughput.cut(range(8), batch, most=2)] == [min(expected, 2)] * (
        8 // min(expected, 2)
    )
    other = [len(part) for part in throughput.cut(range(8), {"input_ids": torch.zeros(400, 10)})]
    assert other == [1, 1, 2, 2, 1, 1], "of other sizes nothing is known"


@pytest.mark.parametrize(("seconds", "tried"), [(lambda k: 1 + 0.1 * k, True), (lambda k: max(4, k), False)])
def test_auto_tries_all_at_once_only_where_the_largest_power_of_two_is_the_fastest(seconds, tried):
    throughput, batch, seen = Throughput(is_to_learn=True), {"input_ids": torch.zeros(4, 10)}, []
    for _ in range(9):
        seen.append([len(part) for part in throughput.cut(range(13), batch)])
        for number in seen[-1]:
            throughput.note(batch, number, seconds(number))
    assert any(13 in parts for parts in seen) == tried
    assert seen[-1] == ([13] if tried else [5, 4, 4])


def test_clipping_is_each_clients_own_and_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(4, 40, generator=generator) * torch.tensor([[0.01], [1.0], [30.0], [torch.inf]])
    segments = [slice(0, 7), slice(16, 40)]
    gradients[:, 7:16] = 0
    expected = []
    for row in gradients:
        parameters = [nn.Parameter(torch.zeros(s.stop - s.start)) for s in segments]
        for parameter, segment in zip(parameters, segments, strict=True):
            parameter.grad = row[segment].clone()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        expected.append(torch.cat([parameter.grad for parameter in parameters]))
    clip_norms(gradients, segments, 1.0)
    found = torch.cat([gradients[:, segment] for segment in segments], dim=1)
    assert torch.equal(found.nan_to_num(7.0), torch.stack(expected).nan_to_num(7.0))


def test_a_partition_of_one_client_each_is_grouped_by_the_pool_alone():
    package = replace(package_of("bert"), partition=Partition(np.arange(6), np.arange(7)))
    place, plan = LocalClient(package), plan_for(package)
    expected = [bits(place.fit(plan, client_id)) for client_id in range(6)]
    assert [bits(update) for update in place.fit_together(plan, range(6))] == expected
