import warnings

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from fedpft.config import LoraConfig
from fedpft.models.lora import adapter_parameters, attach_lora, get_adapter, set_adapter
from fedpft.models.weights import pack_model, replace_weights, unpack_model
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm


def adapted(model_type):
    model = attach_lora(tiny_fm(model_type), LoraConfig(rank=2), seed=0).eval()
    set_adapter(model, get_adapter(model) + 0.1)
    return model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids):
        return self.output(self.embedding(ids))


@torch.no_grad()
def logits(model, model_type):
    return model(**tiny_batch(model_type)).logits


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_round_trip_gives_identical_outputs_and_the_same_adapter(model_type):
    model = adapted(model_type)
    rebuilt = unpack_model(cloudpickle.loads(cloudpickle.dumps(pack_model(model))))
    assert torch.equal(logits(rebuilt, model_type), logits(model, model_type))
    assert get_adapter(rebuilt).tobytes() == get_adapter(model).tobytes()
    assert {n: p.requires_grad for n, p in rebuilt.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_frozen_parameters_share_the_packed_memory_and_trainable_ones_do_not(model_type):
    packed = pack_model(adapted(model_type))
    rebuilt = unpack_model(packed)
    trainable = set(adapter_parameters(rebuilt))
    assert trainable
    for name, parameter in rebuilt.named_parameters():
        shares = np.shares_memory(parameter.detach().numpy(), packed.weights[name])
        assert shares == (name not in trainable), name


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_packing_does_not_change_the_model_and_copies_its_weights(model_type):
    model = adapted(model_type)
    before, state = logits(model, model_type), {n: t.clone() for n, t in model.state_dict().items()}
    packed = pack_model(model)
    assert torch.equal(logits(model, model_type), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(unpack_model(packed), model_type), before)


def test_skeleton_carries_no_weights():
    packed = pack_model(adapted("bert"))
    assert all(parameter.is_meta for parameter in packed.skeleton.parameters())
    assert packed.num_bytes == 4 * sum(parameter.numel() for parameter in packed.skeleton.parameters())


def test_two_places_do_not_share_their_adapter():
    packed = pack_model(adapted("bert"))
    first, second = unpack_model(packed), unpack_model(packed)
    before = get_adapter(second)
    set_adapter(first, before * 0)
    assert get_adapter(second).tobytes() == before.tobytes()


def test_read_only_memory_serves_without_a_warning():
    packed = pack_model(adapted("bert"))
    for array in packed.weights.values():
        array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = unpack_model(packed)
    loss = model(**tiny_batch("bert"), labels=torch.zeros(4, dtype=torch.long)).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_tied_parameters_stay_tied_and_travel_once():
    model = Tied()
    packed = pack_model(model)
    rebuilt = unpack_model(packed)
    assert list(packed.weights) == ["embedding.weight"]
    assert rebuilt.output.weight is rebuilt.embedding.weight
    assert rebuilt.output.weight is not model.output.weight
    assert torch.equal(rebuilt(torch.arange(5)), model(torch.arange(5)))


def test_replaced_weights_are_set_bit_for_bit_and_frozen_ones_read_the_message_in_place():
    packed = pack_model(adapted("bert"))
    model = unpack_model(packed)
    name = next(name for name in packed.weights if name.endswith("intermediate.dense.weight"))
    original = packed.weights[name].copy()
    value = original + 1
    replace_weights(model, {name: value})
    replaced = dict(model.named_parameters())[name].detach().numpy()
    assert replaced.tobytes() == (original + 1).tobytes()
    assert np.shares_memory(replaced, value), "one copy for all actors of a node"
    assert packed.weights[name].tobytes() == original.tobytes(), "memory that other places read must not change"


def test_replacing_a_tied_parameter_replaces_it_everywhere():
    model = unpack_model(pack_model(Tied()))
    replace_weights(model, {"embedding.weight": np.ones((5, 4), np.float32)})
    assert torch.equal(model.output.weight, torch.ones(5, 4))


@pytest.mark.parametrize(
    ("name", "shape", "found"), [("nowhere.weight", (5, 4), "no such"), ("embedding.weight", (4, 5), r"\(5, 4\)")]
)
def test_unknown_names_and_wrong_shapes_are_refused(name, shape, found):
    with pytest.raises(ValueError, match=f"{name}.*{found}"):
        replace_weights(Tied(), {name: np.zeros(shape, np.float32)})
