import copy
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedpft.config import ServerConfig
from fedpft.evaluation.skill import explained, probed, shared_skill
from fedpft.metrics import tokens
from tests.tiny import tiny_batch, tiny_fm, tiny_lm

SERVER = ServerConfig(accelerator="cpu")


def skill(fm, sub_fm, model_type, *, causal=False, num_batches=6):
    batches = [tiny_batch(model_type, batch_size=16, seed=seed) for seed in range(num_batches)]
    return shared_skill(fm, sub_fm, batches, causal=causal, server=SERVER)


@pytest.mark.parametrize("model_type", ["bert", "vit"])
def test_a_copy_has_all_of_the_skill_and_another_model_hardly_any(model_type):
    fm = tiny_fm(model_type)
    same, other = skill(fm, copy.deepcopy(fm), model_type), skill(fm, tiny_fm(model_type, seed=9), model_type)
    assert (same.agreement, same.hidden, same.loss) == (1.0, 1.0, None)
    assert same.probe > 0.95
    assert other.hidden < 0.2
    assert other.probe < same.probe


def test_noise_in_the_sub_fm_lowers_every_number_and_a_language_model_has_its_loss():
    fm = tiny_lm("llama")
    # an FM that knows its tokens: trained on the batches for a moment
    batches = [tiny_batch("llama", batch_size=16, seed=seed) for seed in range(6)]
    optimiser = torch.optim.Adam(fm.parameters(), lr=1e-2)
    for _ in range(20):
        for batch in batches:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            fm(**batch, labels=labels).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    noisy = copy.deepcopy(fm)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    same, other = skill(fm, copy.deepcopy(fm), "llama", causal=True), skill(fm, noisy, "llama", causal=True)
    assert same.loss == pytest.approx(1.0)
    for name in ("agreement", "hidden", "probe", "loss"):
        assert getattr(other, name) < getattr(same, name)


def test_a_language_models_skill_is_the_same_with_few_logits_at_a_time(monkeypatch):
    fm, other = tiny_lm("llama"), tiny_lm("llama", seed=9)
    whole = skill(fm, other, "llama", causal=True, num_batches=2)
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 5 * 40)
    few = skill(fm, other, "llama", causal=True, num_batches=2)
    assert asdict(few) == pytest.approx(asdict(whole), rel=1e-5)


def test_a_language_models_skill_is_measured_at_every_real_token_and_its_next_one():
    fm, other = tiny_lm("gemma2"), tiny_lm("gemma2", seed=9)
    batches = [tiny_batch("gemma2", batch_size=16, seed=seed) for seed in range(2)]
    found = shared_skill(fm, other, batches, causal=True, server=SERVER, probes=False)
    same, losses = [], torch.zeros(2)
    for batch in batches:
        with torch.no_grad():
            both = [model(**batch).logits for model in (fm, other)]
        real = batch["attention_mask"].bool()
        same.append((both[0].argmax(-1) == both[1].argmax(-1))[real])
        after = real[:, 1:]
        losses += torch.stack(
            [cross_entropy(each[:, :-1][after], batch["input_ids"][:, 1:][after], reduction="sum") for each in both]
        )
    following = torch.cat([batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()] for batch in batches])
    share = following.bincount() / len(following)
    by_frequency = -float((share * share.clamp_min(1e-9).log()).sum())
    fm_loss, other_loss = (losses / len(following)).tolist()
    assert found.agreement == torch.cat(same).double().mean().item()
    assert found.loss == pytest.approx((by_frequency - other_loss) / (by_frequency - fm_loss), rel=1e-4)


def test_numbers_do_not_depend_on_whether_the_linear_map_is_asked_for():
    fm, other = tiny_fm("bert"), tiny_fm("bert", seed=9)
    batches = [tiny_batch("bert", batch_size=4, seed=seed) for seed in range(2)]
    asked, not_asked = (
        shared_skill(fm, other, batches, causal=False, server=SERVER, probes=probes) for probes in (True, False)
    )
    assert asked.probe is not None
    assert replace(asked, probe=None) == not_asked


def test_the_probe_finds_what_is_linear_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    inputs, others = (torch.randn(400, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    law = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    assert explained(others @ law + 2, probed(inputs, inputs @ law + 2, others)) > 0.99
    noise = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    assert explained(noise, probed(inputs, noise.flip(0), others)) < 0.05
    assert explained(noise, noise) == 1
    assert explained(noise, noise.mean(dim=0).expand_as(noise)) == pytest.approx(0)


@pytest.mark.parametrize("model_type", ["bert", "vit", "distilbert", "llama"])
def test_models_can_be_sent_to_another_process_afterwards(model_type):
    fm, sub_fm = tiny_fm(model_type), tiny_fm(model_type, seed=1)
    skill(fm, sub_fm, model_type, num_batches=2)
    for model in (fm, sub_fm):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        pickle.dumps(model)
