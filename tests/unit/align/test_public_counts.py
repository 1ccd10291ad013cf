import numpy as np
import pytest
import torch

from fedpft.align.public import PublicData
from fedpft.align.public_counts import count_on_public
from fedpft.config import LoraConfig, ServerConfig
from fedpft.models.activations import InactivityCounter
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import attach_lora
from tests.tiny import tiny_batch, tiny_fm

SERVER = ServerConfig(accelerator="cpu")


def stacked(examples):
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


@pytest.fixture(scope="module")
def public():
    batch = tiny_batch("bert", batch_size=30)
    rows = [{name: values[row] for name, values in batch.items()} for row in range(30)]
    return PublicData(dataset=rows, collate=stacked)


@pytest.mark.parametrize("model_type", ["bert", "opt"])
def test_every_real_token_of_the_public_examples_is_counted_and_the_model_stays_as_it_was(public, model_type):
    proxy = attach_lora(tiny_fm(model_type), LoraConfig(rank=2, lora_alpha=4, dropout=0.5), seed=0).train()
    before = {name: value.clone() for name, value in proxy.state_dict().items()}
    found = count_on_public(proxy, (0, 2), public, server=SERVER, seed=0)
    again = count_on_public(proxy, (0, 2), public, server=SERVER, seed=1)
    assert proxy.training
    assert all(torch.equal(value, before[name]) for name, value in proxy.state_dict().items())
    batch = stacked(public.dataset)
    assert found.positions.tolist() == [int(batch["attention_mask"].sum())] * 2
    ffns = find_ffns(proxy.eval())
    with torch.no_grad(), InactivityCounter([ffns[0], ffns[2]]) as counter:
        counter.set_mask(batch["attention_mask"])
        proxy(**batch)
    for mine, others, one in zip(found.zeros, again.zeros, counter.counts().zeros, strict=True):
        assert np.array_equal(mine, one), "in whatever batches, without dropout"
        assert np.array_equal(mine, others), "all examples, in any order"
