import numpy as np
import pytest
import torch

from fedpft.config import LoraConfig
from fedpft.models.flat_adapter import FlatAdapter
from fedpft.models.lora import (
    adapter_layout,
    adapter_parameters,
    attach_lora,
    get_adapter,
    set_adapter,
    split_adapter,
    tuned_mask,
)
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm, tiny_lm

LORA = LoraConfig(rank=2, lora_alpha=4, dropout=0.0)


def made(model_type="bert"):
    return attach_lora(tiny_fm(model_type), LORA, seed=0)


def some_adapter(model):
    return np.random.default_rng(0).normal(size=get_adapter(model).shape).astype(np.float32)


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_it_holds_the_adapter_in_the_order_of_its_layout(model_type):
    model, other = made(model_type), made(model_type)
    flat, adapter = FlatAdapter(model), some_adapter(other)
    assert flat.read().tobytes() == get_adapter(other).tobytes()
    flat.write(adapter)
    set_adapter(other, adapter)
    assert flat.read().tobytes() == get_adapter(model).tobytes() == adapter.tobytes()
    batch = tiny_batch(model_type)
    assert torch.equal(model(**batch).logits, model.eval()(**batch).logits)
    assert torch.equal(model(**batch).logits, other(**batch).logits)


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
@pytest.mark.parametrize("factors", ["all", "A", "B"])
def test_what_is_tuned_is_a_stretch_of_lora_and_one_of_the_head(model_type, factors):
    model = made(model_type)
    flat = FlatAdapter(model)
    flat.write(np.zeros_like(flat.read()))
    for columns in flat.columns(factors):
        flat.values[:, columns] += 1
    mask = tuned_mask(adapter_layout(model), factors)
    assert np.array_equal(flat.read(), mask)
    assert mask.all() == (factors == "all")
    assert sum(s.stop - s.start for s in flat.tuned_segments(factors)) == mask.sum()


def train(model, groups, zero_grad, parameters):
    """Train for three steps of AdamW with clipped gradients."""
    optimizer = torch.optim.AdamW([{"params": lora_or_head, "lr": lr} for lora_or_head, lr in groups], weight_decay=0.1)
    for seed in range(3):
        model(**tiny_batch("distilbert", seed=seed), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        zero_grad()


def test_training_it_as_a_whole_gives_the_bits_of_training_tensor_by_tensor():
    """DistilBERT's head lies on both sides of LoRA, and its biases are no multiples of 64 bytes."""
    model, other = made("distilbert"), made("distilbert")
    flat = FlatAdapter(model)
    train(model, [(flat.lora, 1e-2), (flat.head, 3e-2)], flat.zero_grad, flat.parameters)
    lora, head = split_adapter(adapter_parameters(other))
    train(other, [(lora, 1e-2), (head, 3e-2)], other.zero_grad, [*lora, *head])
    assert flat.read().tobytes() == get_adapter(other).tobytes() != get_adapter(made("distilbert")).tobytes()


def test_every_tensor_begins_where_it_would_if_it_lay_alone():
    flat = FlatAdapter(made())
    assert any(parameter.numel() % 16 for parameter in flat.parameters)
    for parameter in flat.parameters:
        assert parameter.data_ptr() % 64 == parameter.grad.data_ptr() % 64 == 0


def test_what_is_written_is_a_copy_and_forgets_the_gradients():
    model = made()
    flat, adapter = FlatAdapter(model), some_adapter(model)
    model(**tiny_batch("bert"), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert any(parameter.grad.any() for parameter in flat.parameters)
    flat.write(adapter)
    assert not any(parameter.grad.any() for parameter in flat.parameters)
    read = flat.read()
    adapter[:] = 0
    assert flat.read().tobytes() == read.tobytes() != adapter.tobytes()
    flat.write(adapter)
    assert read.any()


def test_a_language_model_has_no_head_in_it():
    flat = FlatAdapter(attach_lora(tiny_lm("gpt2"), LORA, seed=0))
    assert (len(flat.lora), flat.head) == (1, [])


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: np.append(a, a[:1]), lambda a: a[None]])
def test_a_vector_of_another_shape_is_refused(change):
    flat = FlatAdapter(made())
    before = flat.read()
    with pytest.raises(ValueError, match=r"^adapter: found shape .*, allowed: \(\d+,\) as laid out by the model$"):
        flat.write(change(before))
    assert flat.read().tobytes() == before.tobytes()
