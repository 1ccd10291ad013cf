import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpft.config import ClientConfig, LoraConfig
from fedpft.data.collate import rows
from fedpft.data.partition import Partition
from fedpft.federated.client import LocalClient
from fedpft.federated.client_steps.base import PlainStep
from fedpft.federated.messages import RoundPlan
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import adapter_layout, attach_lora, get_adapter, set_adapter, tuned_mask
from fedpft.models.weights import unpack_model
from tests.tiny import LanguageCollator, tiny_fm, tiny_lm, tiny_package

NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {},
}


def first_adapter(package):
    return get_adapter(unpack_model(package.proxy))


def plan_for(package, *, round_index=1, lr=1e-2, count=False, adapter=None):
    adapter = first_adapter(package) if adapter is None else adapter
    return RoundPlan(round_index=round_index, lr=lr, adapter=adapter, count_activations=count)


def same_data_package(num_clients=2, **kwargs):
    """Return a package in which every client owns the same examples."""
    package = tiny_package(shard_sizes=(8,), **kwargs)
    order = np.tile(package.partition.order, num_clients)
    return replace(package, partition=Partition(order, 8 * np.arange(num_clients + 1)))


def without_dropout(model_type):
    fm = tiny_fm(model_type, num_labels=2, **NO_DROPOUT[model_type])
    return attach_lora(fm, LoraConfig(rank=2, dropout=0.0), seed=0)


class SpyingCollate:
    """Remembers which examples came in which order, and the number of torch threads."""

    def __init__(self, collate):
        self.collate, self.batches, self.threads = collate, [], set()

    def __call__(self, examples):
        self.batches.append([tuple(example["input_ids"]) for example in examples])
        self.threads.add(torch.get_num_threads())
        return self.collate(examples)


@pytest.mark.parametrize("model_type", sorted(NO_DROPOUT))
def test_only_the_adapter_changes(model_type):
    package = tiny_package(model_type)
    client, plan = LocalClient(package), plan_for(package)
    before = {name: array.copy() for name, array in package.proxy.weights.items()}
    frozen = {n: p for n, p in client._module.proxy.named_parameters() if not p.requires_grad}
    update = client.fit(plan, 0)
    assert frozen
    assert all(p.detach().numpy().tobytes() == before[name].tobytes() for name, p in frozen.items())
    assert all(array.tobytes() == before[name].tobytes() for name, array in package.proxy.weights.items())
    assert update.adapter.shape == plan.adapter.shape
    assert update.adapter.dtype == np.float32
    assert not np.array_equal(update.adapter, plan.adapter)


def test_the_plan_is_not_written_to():
    package = tiny_package()
    plan = plan_for(package)
    before = plan.adapter.tobytes()
    plan.adapter.setflags(write=False)
    LocalClient(package).fit(plan, 0)
    assert plan.adapter.tobytes() == before


def test_result_does_not_depend_on_who_trained_there_before():
    package = tiny_package()
    plan = plan_for(package, count=True)
    fresh = LocalClient(package).fit(plan, 1)
    used = LocalClient(package, "another place")
    torch.manual_seed(123)
    np.random.seed(123)
    used.fit(plan_for(package, round_index=7, lr=0.5), 3)
    used.fit(plan_for(package, round_index=1, count=True, adapter=plan.adapter + 1), 1)
    again = used.fit(plan, 1)
    assert again.adapter.tobytes() == fresh.adapter.tobytes()
    assert again.metrics["loss"] == fresh.metrics["loss"]
    assert [z.tolist() for z in again.counts.zeros] == [z.tolist() for z in fresh.counts.zeros]


def test_counting_does_not_change_the_training():
    package = tiny_package()
    client = LocalClient(package)
    counted, plain = (client.fit(plan_for(package, count=count), 0) for count in (True, False))
    assert counted.adapter.tobytes() == plain.adapter.tobytes()
    assert counted.metrics["loss"] == plain.metrics["loss"]


def test_clients_rounds_epochs_and_seeds_have_batch_orders_of_their_own():
    package = same_data_package(num_epochs=2)
    orders = []
    for seed, round_index, client_id in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)):
        spy = SpyingCollate(package.collate)
        settings = replace(package.settings, seed=seed)
        client = LocalClient(replace(package, collate=spy, settings=settings))
        client.fit(plan_for(package, round_index=round_index), client_id)
        epochs = [(*spy.batches[start], *spy.batches[start + 1]) for start in (0, 2)]
        assert [len(batch) for batch in spy.batches] == [4, 4, 4, 4]
        assert sorted(epochs[0]) == sorted(epochs[1])
        orders += epochs
    assert len(set(orders)) == len(orders) == 8


def test_clients_and_rounds_have_dropout_of_their_own():
    def losses(**kwargs):
        package = tiny_package(**kwargs)
        eight_times_the_same = Partition(np.zeros(16, dtype=np.int64), np.array([0, 8, 16]))  # no order to differ in
        client = LocalClient(replace(package, partition=eight_times_the_same))
        adapter = first_adapter(package) + 0.3
        plans = [(plan_for(package, round_index=r, adapter=adapter), c) for r, c in ((1, 0), (1, 1), (2, 0))]
        return [client.fit(plan, client_id).metrics["loss"] for plan, client_id in plans]

    assert len(set(losses(model=without_dropout("bert")))) == 1
    assert len(set(losses(dropout=0.5))) == 3


def test_loss_goes_down_on_a_learnable_task():
    package = tiny_package(shard_sizes=(32,), num_epochs=4)
    client, adapter, losses = LocalClient(package), None, []
    for round_index in range(1, 7):
        update = client.fit(plan_for(package, round_index=round_index, lr=5e-3, adapter=adapter), 0)
        adapter = update.adapter
        losses.append(update.metrics["loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_rate_zero_changes_nothing():
    package = tiny_package()
    plan = plan_for(package, lr=0.0)
    assert LocalClient(package).fit(plan, 0).adapter.tobytes() == plan.adapter.tobytes()


def test_counts_come_only_when_asked_for():
    package = tiny_package()
    client = LocalClient(package)
    assert client.fit(plan_for(package), 0).counts is None
    counts = client.fit(plan_for(package, count=True), 0).counts
    assert [len(zeros) for zeros in counts.zeros] == [24, 24]
    assert all(array.dtype == np.int64 for array in [*counts.zeros, counts.positions])
    assert client.fit(plan_for(package), 0).counts is None
    assert not any(ffn.down._forward_pre_hooks for ffn in find_ffns(client._module.proxy))


@pytest.mark.parametrize("model_type", sorted(NO_DROPOUT))
def test_counts_of_real_tokens_equal_brute_force_without_padding(model_type):
    model = without_dropout(model_type)
    package = tiny_package(model_type, model=model, num_epochs=2)
    adapter = first_adapter(package) + 0.01
    counts = LocalClient(package).fit(plan_for(package, lr=0.0, count=True, adapter=adapter), 3).counts
    set_adapter(model, adapter)
    model.eval()
    inside = [[], []]
    for position, ffn in enumerate(find_ffns(model)[1:]):
        ffn.down.register_forward_pre_hook(lambda _, args, p=position: inside[p].append(args[0].reshape(-1, 24)))
    examples = rows(package.train, package.partition.shard(3))
    with torch.no_grad():
        for example in examples:
            model(input_ids=torch.tensor([example["input_ids"]]))
    num_tokens = sum(len(example["input_ids"]) for example in examples)
    assert len({len(example["input_ids"]) for example in examples}) > 1
    assert counts.positions.tolist() == [2 * num_tokens] * 2
    for zeros, activations in zip(counts.zeros, map(torch.cat, inside), strict=True):
        inactive = activations.abs() <= 1e-3 if model_type == "llama" else activations <= 0
        assert zeros.tolist() == (2 * inactive.sum(dim=0)).tolist()
        assert 0 < zeros.sum() < 2 * inactive.numel()


def test_update_says_whose_and_how_many_examples_it_is():
    package = tiny_package(shard_sizes=(6, 9, 5))
    client = LocalClient(package, "actor-3")
    updates = [client.fit(plan_for(package), client_id) for client_id in range(3)]
    assert [(u.client_id, u.num_examples, u.actor) for u in updates] == [
        (0, 6, "actor-3"),
        (1, 9, "actor-3"),
        (2, 5, "actor-3"),
    ]
    assert all(u.metrics["seconds"] > 0 for u in updates)


def test_loss_is_the_mean_over_examples_not_over_batches():
    package = tiny_package(model=without_dropout("bert"), shard_sizes=(5,), batch_size=4)
    whole = tiny_package(model=without_dropout("bert"), shard_sizes=(5,), batch_size=5)
    cut, one = (LocalClient(p).fit(plan_for(p, lr=0.0), 0).metrics["loss"] for p in (package, whole))
    assert cut == pytest.approx(one, rel=1e-5)


def test_global_random_state_and_threads_are_untouched():
    package = tiny_package(shard_sizes=(2,), num_threads=2)
    spy = SpyingCollate(package.collate)
    client = LocalClient(replace(package, collate=spy))
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    client.fit(plan_for(package), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert torch.get_num_threads() == 1
    assert spy.threads == {2}


def test_replaced_weights_change_the_next_fit_of_this_place_only():
    package = tiny_package()
    plan = plan_for(package)
    name = next(name for name in package.proxy.weights if name.endswith("1.intermediate.dense.weight"))
    changed, other = LocalClient(package), LocalClient(package)
    before = changed.fit(plan, 0).metrics["loss"]
    changed.replace_weights({name: package.proxy.weights[name] * 3})
    assert changed.fit(plan, 0).metrics["loss"] != before
    assert other.fit(plan, 0).metrics["loss"] == before


def test_an_adapter_of_another_length_is_refused():
    package = tiny_package()
    plan = plan_for(package, adapter=first_adapter(package)[:-1])
    with pytest.raises(ValueError, match="adapter: found shape"):
        LocalClient(package).fit(plan, 0)


@pytest.mark.parametrize("model_type", sorted(NO_DROPOUT))
def test_a_factor_of_lora_that_is_not_tuned_keeps_its_bits_and_the_head_never_does(model_type):
    package = tiny_package(model_type, weight_decay=0.1)
    adapter = first_adapter(package) + 0.01  # no B is zero
    layout, place = adapter_layout(unpack_model(package.proxy)), LocalClient(package)
    is_head = np.concatenate([np.full(math.prod(shape), "lora_" not in name) for name, shape in layout])
    both = place.fit(plan_for(package, adapter=adapter), 0).adapter
    for factors in ("A", "B"):
        tuned, plan = tuned_mask(layout, factors), replace(plan_for(package, adapter=adapter), tuned=factors)
        update, whole = place.fit(plan, 0), place._adapter.read()
        assert 0 < (tuned & ~is_head).sum() < (~is_head).sum()
        assert whole[~tuned].tobytes() == adapter[~tuned].tobytes() != both[~tuned].tobytes()
        assert (whole != adapter)[tuned & ~is_head].mean() > 0.9
        assert (whole != adapter)[is_head].any()
        assert update.adapter.tobytes() == whole[tuned].tobytes(), "only what is tuned is sent"
        assert place.fit_together(plan, [1, 0])[1].adapter.tobytes() == update.adapter.tobytes()


def test_what_is_left_out_of_the_adapter_is_the_proxys_own():
    package = tiny_package()
    own, place = first_adapter(package), LocalClient(package)
    tuned = tuned_mask(adapter_layout(unpack_model(package.proxy)), "B")
    whole = replace(plan_for(package, adapter=np.where(tuned, own + np.float32(0.01), own)), tuned="B")
    place.fit(plan_for(package, lr=0.5), 1)  # which moved the proxy's own
    part = replace(whole, adapter=whole.adapter[tuned], is_whole=False)
    expected = place.fit(whole, 0).adapter.tobytes()
    assert place.fit(part, 0).adapter.tobytes() == expected
    assert place.fit_together(part, [1, 0])[1].adapter.tobytes() == expected


def test_the_gradient_of_a_factor_that_is_not_tuned_has_no_part_in_the_clipped_norm():
    package = tiny_package(shard_sizes=(4,), max_grad_norm=1e-3)
    place, norms = LocalClient(package), []

    class Spy(PlainStep):
        def begin(self, start):
            return []

        def __call__(self, values, gradients, memory, steps_done, factor):
            lora, head = place._adapter.columns("B")
            norms.append(torch.cat([gradients[:, lora], gradients[:, head]], dim=1).norm().item())

    place._rule = lambda plan: Spy()
    place.fit(replace(plan_for(package, adapter=first_adapter(package) + 0.01), tuned="B"), 0)
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_accumulated_batches_are_one_large_batch(kind):
    """Nine examples in steps of 4, 4 and 1, whatever the batches of which a step is made."""
    common = {"shard_sizes": (9,), "num_epochs": 2, "client": ClientConfig(kind=kind, schedule="linear")}
    whole = tiny_package(model=without_dropout("bert"), batch_size=4, **common)
    cut = tiny_package(model=without_dropout("bert"), batch_size=2, accumulate=2, **common)
    one, other = (LocalClient(p).fit(plan_for(p), 0) for p in (whole, cut))
    moved = np.abs(one.adapter - first_adapter(whole)).max()
    assert np.abs(one.adapter - other.adapter).max() < 1e-4 * moved
    assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-5)
    separate = replace(cut, settings=replace(cut.settings, accumulate=1))
    assert np.abs(one.adapter - LocalClient(separate).fit(plan_for(cut), 0).adapter).max() > 0.01 * moved


def test_a_language_models_accumulated_batches_are_one_large_batch():
    """Its loss is a mean over tokens, of which batches have different numbers."""
    model = attach_lora(tiny_lm("llama"), LoraConfig(rank=2, dropout=0.0), seed=0)
    updates = []
    for batch_size, accumulate in ((4, 1), (1, 4)):
        package = tiny_package("llama", model=model, shard_sizes=(6,), batch_size=batch_size, accumulate=accumulate)
        package = replace(package, collate=LanguageCollator(package.collate))
        settings = replace(package.settings, client=ClientConfig(kind="sgd"))
        package = replace(package, settings=settings)
        updates.append(LocalClient(package).fit(plan_for(package, lr=0.1), 0).adapter)
    moved = np.abs(updates[0] - first_adapter(package)).max()
    assert np.abs(updates[0] - updates[1]).max() < 1e-4 * moved


def test_what_a_proximal_client_is_pulled_by_is_clipped_with_the_losss_gradient():
    """A step of SGD moves no further than the rate times the largest norm, however strong the pull is."""
    package = tiny_package(shard_sizes=(9,), max_grad_norm=1e-2, weight_decay=0.0)
    strong = ClientConfig(kind="prox", optimiser="sgd", mu=1e9)
    package = replace(package, settings=replace(package.settings, client=strong))
    moved = LocalClient(package).fit(plan_for(package, lr=1.0), 0).adapter - first_adapter(package)
    assert 0 < np.linalg.norm(moved) <= 3 * 1e-2 * (1 + 1e-3)


def test_the_head_learns_at_its_own_rate():
    package = tiny_package(shard_sizes=(4,), head_lr_ratio=10.0, weight_decay=0.0)
    plan = plan_for(package, lr=1e-3)
    change = np.abs(LocalClient(package).fit(plan, 0).adapter - plan.adapter)  # one AdamW step moves by the rate
    is_head = np.concatenate(
        [np.full(math.prod(shape), "lora_" not in name) for name, shape in adapter_layout(unpack_model(package.proxy))]
    )
    assert change[is_head].max() == pytest.approx(1e-2, rel=1e-3)
    assert change[~is_head].max() == pytest.approx(1e-3, rel=1e-3)
