"""A client's training under DP of examples: DP-SGD on the proxy's adapter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpft.config import ClientConfig, LoraConfig
from fedpft.federated.client import LocalClient
from fedpft.federated.grouping import groups
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.models.lora import adapter_layout, adapter_parameters, attach_lora, rank_mask, set_adapter, tuned_mask
from fedpft.models.weights import pack_model, unpack_model
from fedpft.privacy.dp_sgd import ExampleNoise
from tests.tiny import FAMILIES, LanguageCollator, tiny_fm, tiny_lm, tiny_package
from tests.unit.federated.test_clients_together import LIKE_ANOTHER, package_of, plan_for

HUGE, NONE = 1e9, 1e-30
SGD = ClientConfig(kind="sgd")
LARGE = 200
"""A batch that has every example of a client, in every step."""


def private(package, *, clip=HUGE, noise=NONE, **settings):
    made = replace(package.settings, client=SGD, weight_decay=0.0, max_grad_norm=1e9, **settings)
    batch_size = made.batch_size * made.accumulate
    return replace(
        package,
        settings=replace(made, example_noise=ExampleNoise(clip=clip, noise_multiplier=noise, batch_size=batch_size)),
    )


def without_dropout(model_type):
    package = package_of(model_type)
    model = unpack_model(package.proxy)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "attn_dropout", "dropout_prob", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return package, model


def gradients_one_by_one(package, model, plan, client_id):
    """Return each example's gradient, (E, P), by autograd on a batch of that example alone."""
    model = model.train()
    set_adapter(model, plan.adapter)
    rows = package.train.select(package.partition.shard(client_id))
    found = []
    for row in rows:
        model.zero_grad()
        model(**package.collate([row])).loss.backward()
        parts = adapter_parameters(model)
        found.append(np.concatenate([parts[name].grad.flatten().numpy() for name, _ in adapter_layout(model)]))
    return np.array(found)


def clipped_sum(gradients, clip):
    norms = np.linalg.norm(gradients.astype(np.float64), axis=1)
    return (np.minimum(1, clip / norms)[:, None] * gradients).sum(axis=0), norms


def moved(package, plan, client_id):
    """Return minus the step over the rate, (P,): the gradient of a client's only step."""
    update = LocalClient(package).fit(plan, client_id)
    return (plan.adapter - update.adapter).astype(np.float64) / plan.lr, update


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in LIKE_ANOTHER])
def test_a_step_is_the_sum_of_clipped_gradients_that_autograd_gives_one_example_at_a_time(family):
    package, model = without_dropout(family)
    package = replace(package, proxy=pack_model(model))
    plan = replace(plan_for(package, count=False), lr=1.0)
    alone = gradients_one_by_one(package, model, plan, 0)
    clip = float(np.quantile(np.linalg.norm(alone, axis=1), 0.55))
    expected, norms = clipped_sum(alone, clip)
    found, update = moved(private(package, clip=clip, batch_size=LARGE), plan, 0)
    assert found == pytest.approx(expected / len(alone), abs=1e-6)
    assert update.metrics["clipped"] == pytest.approx(np.mean(norms > clip))


def test_of_a_language_model_a_rows_mean_over_its_tokens_is_what_is_clipped():
    lora = LoraConfig(rank=2, lora_alpha=4, dropout=0.0)
    package = tiny_package("llama", model=attach_lora(tiny_lm("llama"), lora, seed=0))
    package = replace(package, collate=LanguageCollator(package.collate))
    plan = replace(plan_for(package, count=False), lr=1.0)
    alone = gradients_one_by_one(package, unpack_model(package.proxy), plan, 0)
    clip = float(np.quantile(np.linalg.norm(alone, axis=1), 0.55))
    found, _ = moved(private(package, clip=clip, batch_size=LARGE), plan, 0)
    assert found == pytest.approx(clipped_sum(alone, clip)[0] / len(alone), abs=1e-6)


@pytest.fixture(scope="module")
def package():
    """Return clients whose texts have no dropout, so that steps can be compared."""
    return tiny_package(dropout=0.0, shard_sizes=(6, 9, 5, 12), model=plain_bert())


def plain_bert():
    fm = tiny_fm("bert", num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return attach_lora(fm, LoraConfig(rank=2, lora_alpha=4, dropout=0.0), seed=0)


def test_with_all_examples_no_noise_and_a_huge_clip_it_is_plain_sgd(package):
    plan = plan_for(package, count=False)
    settings = replace(
        package.settings, batch_size=LARGE, num_epochs=3, client=SGD, weight_decay=0.0, max_grad_norm=HUGE
    )
    expected = LocalClient(replace(package, settings=settings)).fit(plan, 1)
    found = LocalClient(private(package, batch_size=LARGE, num_epochs=3)).fit(plan, 1)
    assert found.adapter == pytest.approx(expected.adapter, abs=1e-6)
    assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)


def test_a_batch_in_parts_makes_the_step_of_the_batch_in_one(package):
    plan = plan_for(package, count=False)
    whole, parts = (
        LocalClient(private(package, clip=0.1, batch_size=size, accumulate=12 // size)).fit(plan, 3) for size in (12, 4)
    )
    assert parts.adapter == pytest.approx(whole.adapter, abs=1e-6)


def test_a_step_for_which_nobody_was_drawn_is_noise_divided_by_the_expected_number(package, monkeypatch):
    monkeypatch.setattr(ExampleNoise, "draw", lambda self, num_examples, rng: np.zeros(0, dtype=np.int64))
    plan = replace(plan_for(package, count=False), lr=1.0)
    steps, update = moved(private(package, clip=0.5, noise=2.0, batch_size=3), plan, 0)
    assert update.metrics["loss"] == 0
    assert steps.std() == pytest.approx(np.sqrt(2) * 2.0 * 0.5 / 3, rel=0.15), "two steps"
    assert np.isfinite(update.adapter).all()


def test_noise_on_a_step_has_the_standard_deviation_that_is_accounted_for(package):
    plan = replace(plan_for(package, count=False), lr=1.0)
    exact, _ = moved(private(package, clip=0.5, batch_size=LARGE), plan, 0)
    noises = [
        moved(private(package, clip=0.5, noise=3.0, batch_size=LARGE, seed=seed), plan, 0)[0] - exact
        for seed in range(5)
    ]
    assert np.std(noises) == pytest.approx(3.0 * 0.5 / 6, rel=0.03)
    assert np.corrcoef(noises[0], noises[1])[0, 1] == pytest.approx(0, abs=0.15)


def test_each_client_round_and_step_has_noise_of_its_own(package):
    place = LocalClient(private(package, noise=1.0, batch_size=2))
    plan = plan_for(package, count=False)
    rows = [next(place._noise(replace(plan, round_index=r), c)).numpy() for r, c in ((1, 0), (1, 1), (2, 0))]
    ahead = place._noise(plan, 0)
    rows = [next(ahead).numpy(), next(ahead).numpy(), *rows[1:]]
    assert len({row.tobytes() for row in rows}) == 4


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_client_gets_the_same_bits_again_wherever_and_with_whomever_it_is_played(recomputes):
    made = private(tiny_package(), clip=0.1, noise=0.5, recomputes=recomputes, clients_per_batch=3)
    plan = plan_for(made, count=False)
    expected = [LocalClient(made).fit(plan, client_id).adapter.tobytes() for client_id in (0, 1)]
    place = LocalClient(made)
    assert [update.adapter.tobytes() for update in place.fit_together(plan, [1, 0])] == expected[::-1]
    assert groups([0, 1, 2], made.settings, num_places=1) == [(0,), (1,), (2,)]


def test_a_model_that_draws_numbers_of_its_own_has_its_examples_one_by_one(package, monkeypatch):
    made = private(package, clip=0.1, batch_size=LARGE)
    plan = plan_for(made, count=False)
    expected = LocalClient(made).fit(plan, 0)
    step = LocalTuningModule.training_step

    def drawing(self, *args):
        torch.rand(())
        return step(self, *args)

    monkeypatch.setattr(LocalTuningModule, "training_step", drawing)
    with pytest.warns(UserWarning, match="examples train one by one"):
        found = LocalClient(made).fit(plan, 0)
    assert found.adapter == pytest.approx(expected.adapter, abs=1e-6)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_what_is_not_tuned_gets_no_noise_and_counts_in_no_norm(package, factor):
    plan = replace(plan_for(package, count=False), lr=1.0, tuned=factor)
    mask = tuned_mask(adapter_layout(unpack_model(package.proxy)), factor)
    alone = gradients_one_by_one(package, unpack_model(package.proxy), plan, 0)[:, mask]
    clip = float(np.quantile(np.linalg.norm(alone, axis=1), 0.55))
    update = LocalClient(private(package, clip=clip, batch_size=LARGE)).fit(plan, 0)
    assert plan.adapter[mask] - update.adapter == pytest.approx(clipped_sum(alone, clip)[0] / 6, abs=1e-6)


def test_a_client_of_a_lower_rank_gets_no_noise_beyond_it(package):
    made = replace(private(package, noise=1.0, clip=1.0), ranks={0: 1})
    layout = adapter_layout(unpack_model(package.proxy))
    update = LocalClient(made).fit(plan_for(made, count=False), 0)
    beyond = rank_mask(layout, 1) == 0
    assert beyond.any()
    assert not update.adapter[beyond].any()


def test_what_server_rules_add_to_steps_is_not_clipped_with_the_noise(package):
    plan = plan_for(package, count=False)
    made = private(package, clip=0.1, noise=1.0)
    updates = [
        LocalClient(replace(made, settings=replace(made.settings, max_grad_norm=norm))).fit(plan, 0).adapter.tobytes()
        for norm in (1e-3, 1e3)
    ]
    assert updates[0] == updates[1]
