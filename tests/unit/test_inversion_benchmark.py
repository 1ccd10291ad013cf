"""The inversion benchmark on a tiny model: what comes back from an update, and what does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.benchmarks.privacy.inversion import Case, first_span, guessed, one_step, recovered, seen
from fedpft.config import LoraConfig
from fedpft.models.lora import adapter_parameters, attach_lora, get_adapter
from tests.tiny import tiny_fm

LENGTH = 5


@pytest.fixture(scope="module")
def model():
    """A tiny BERT with LoRA of rank 2, as if tuned: room for 6 tokens in the first layer's query, key and value."""
    model = attach_lora(tiny_fm("bert"), LoraConfig(rank=2, dropout=0.0), 0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapter_parameters(model).items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)  # more, and attention is all on one token
    return model


def text(seed):
    ids = torch.randint(5, 40, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([1])


def part_recovered(model, case, *texts):
    updates = [one_step(model, each, case.optimiser) for each in texts]
    span = first_span(model, seen(case, updates, np.random.default_rng(0)))
    embeddings = model.get_base_model().bert.embeddings
    (found,) = guessed(embeddings, [span], vocab_size=40, length=LENGTH)
    return recovered(texts[0][0]["input_ids"][0], found, special=[0])


CLEAR = Case(name="clear")


def test_all_tokens_come_back_from_one_step_clipped_or_not_and_the_model_stays_as_it_was(model):
    before = get_adapter(model)
    assert part_recovered(model, CLEAR, text(1)) == 1.0
    assert part_recovered(model, replace(CLEAR, clip=1e-3), text(1)) == 1.0, "a clip changes no direction"
    assert (get_adapter(model) == before).all()


def test_noise_and_others_updates_hide_them(model):
    noised = replace(CLEAR, clip=1e-3, noise=1.0)
    assert np.mean([part_recovered(model, noised, text(seed)) for seed in range(10)]) < 0.3
    summed = [part_recovered(model, CLEAR, *(text(10 * seed + each) for each in range(4))) for seed in range(10)]
    assert np.mean(summed) < 0.8, "20 tokens do not fit into 6 rows"


def test_in_round_1_there_is_nothing_to_see():
    untuned = attach_lora(tiny_fm("bert"), LoraConfig(rank=2, dropout=0.0), 0)
    assert part_recovered(untuned, CLEAR, text(1)) == 0


def test_special_tokens_do_not_count():
    ids, found = torch.tensor([1, 7, 8, 2]), torch.tensor([1, 7, 9, 2])
    assert recovered(ids, found, special=[1, 2]) == 0.5
