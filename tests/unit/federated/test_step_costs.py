from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from fedpft.config import LoraConfig
from fedpft.data.datamodule import FederatedData
from fedpft.data.partition import Partition
from fedpft.federated.client import LocalClient
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.federated.messages import RoundPlan
from fedpft.federated.step_costs import compare_steps, count_step, step_costs, typical_batch
from fedpft.metrics.tokens import IGNORED
from fedpft.models.lora import attach_lora, get_adapter, num_base_parameters
from fedpft.models.weights import unpack_model
from tests.tiny import DEPTH_FIELD, TEXT_ROWS, tiny_batch, tiny_fm, tiny_lm, tiny_package

H, N, R, C = 16, 24, 2, 3  # hidden size, FFN neurons, LoRA rank, classes of the tiny BERT


def adapted(model_type, **overrides):
    return attach_lora(tiny_fm(model_type, **overrides), LoraConfig(rank=R), seed=0)


def batch_of(model_type, batch_size, num_tokens):
    batch = tiny_batch(model_type, batch_size=batch_size, num_tokens=num_tokens)
    return batch | {"labels": torch.zeros(batch_size, dtype=torch.long)}


def eager(model):
    model.train().get_base_model().set_attn_implementation("eager")
    return model


def flops_by_hand(num_layers, T):
    """Return the FLOPs of a local step of the tiny BERT on one text: forward, then backward down to the first LoRA."""
    linear, lora, ffn = 2 * T * H * H, 2 * T * H * R, 2 * T * H * N
    attention = 2 * 2 * T * T * H  # scores and their product with the values
    forward = num_layers * (4 * (linear + 2 * lora) + attention + 2 * ffn) + 2 * H * H + 2 * H * C
    head = 2 * 2 * H * C + 2 * H * H  # weights and inputs of the head; inputs alone of the frozen pooler
    layer = 4 * (linear + 2 * 2 * lora) + 2 * attention + 2 * ffn
    below_the_first_layer = 3 * (linear + lora)  # nobody needs the gradient of the embeddings
    return forward + head + num_layers * layer - below_the_first_layer


@pytest.mark.parametrize(("num_layers", "num_tokens"), [(1, 3), (3, 31)])
def test_flops_of_a_tiny_bert_equal_those_computed_by_hand(num_layers, num_tokens):
    model = adapted("bert", num_hidden_layers=num_layers)
    costs = step_costs(model, batch_of("bert", 4, 9))
    batch = batch_of("bert", 1, num_tokens)
    assert costs.flops(batch) == flops_by_hand(num_layers, num_tokens)


@pytest.mark.parametrize("model_type", TEXT_ROWS)
def test_three_lengths_give_the_count_of_every_shape(model_type):
    num_layers = 2 if model_type in ("gemma2", "modernbert") else 1  # attention to all and to neighbours, in turns
    model = adapted(model_type, **{DEPTH_FIELD.get(model_type, "num_hidden_layers"): num_layers})
    costs = step_costs(model, batch_of(model_type, 4, 12))
    num_rows = 4 if model_type == "deberta-v2" else 3  # its table of relative positions has no B: full batches alone
    for shape in ((num_rows, 40), *[(1, 5)] * (model_type == "bert")):
        ids = torch.ones(shape, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": ids, "labels": ids[:, 0]}
        exact = step_costs(model, batch, any_length=False)
        assert costs.flops(batch) == exact.flops(batch)
        assert exact.flops(batch) == exact.counts[0].flops
        assert costs.memory_bytes(batch) == pytest.approx(
            exact.memory_bytes(batch), rel=0.05
        )  # rotary tables have no B


def test_of_a_language_model_each_target_costs_what_the_head_does_forward_and_back():
    V, (rows, length) = 40, (4, 12)
    model = attach_lora(tiny_lm("llama", vocab_size=V), LoraConfig(rank=R), seed=0)
    ids = torch.ones(rows, length, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": ids}
    costs = step_costs(model, batch)
    assert costs.flops(batch) - costs.flops(batch, 5) == (rows * (length - 1) - 5) * 2 * 2 * H * V
    for shape, num_ignored in (((3, 20), 7), ((4, 12), 0)):
        labels = torch.ones(shape, dtype=torch.long)
        labels[0, :num_ignored] = IGNORED
        other = {"input_ids": torch.ones_like(labels), "labels": labels}
        real = count_step(LocalTuningModule(eager(model)), other)
        assert costs.flops(other) == real.flops
        assert costs.memory_bytes(other) - costs.fixed_bytes == pytest.approx(real.activation_bytes, rel=0.06)
    few = replace(costs, targets_at_once=5)
    assert few.memory_bytes(batch) == costs.memory_bytes(batch, 5), "of more there are never logits at a time"


def test_images_need_one_count():
    costs = step_costs(adapted("vit"), batch_of("vit", 4, 0))
    assert len(costs.counts) == 1
    assert costs.flops(batch_of("vit", 3, 0)) == costs.counts[0].flops * 3 // 4


@pytest.mark.parametrize(("trained", "factor"), [("adapter", 4), ("everything", 6)])
def test_flops_follow_the_rule_of_thumb_per_parameter_and_token(trained, factor):
    """4 for frozen weights (forward, gradient of the input), 6 with that of the weights; for 4 layers of MiniLM."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1536}
    with torch.device("meta"):
        fm = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", num_labels=12, **sizes))
        model = attach_lora(fm, LoraConfig(), seed=0)
    if trained == "everything":
        model.requires_grad_(True)
    batch = batch_of("bert", 4, 32)
    embeddings = sum(table.weight.numel() for table in fm.modules() if isinstance(table, nn.Embedding))
    rule = factor * (num_base_parameters(model) - embeddings) * 4 * 32
    assert step_costs(model, batch).flops(batch) == pytest.approx(rule, rel=0.06)


@pytest.mark.parametrize("model_type", ["bert", "dinov2"])
def test_counting_changes_neither_model_nor_random_state(model_type):
    model, batch = adapted(model_type), batch_of(model_type, 4, 9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    implementation = model.get_base_model().config._attn_implementation
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert step_costs(model, batch).flops(batch) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert model.get_base_model().config._attn_implementation == implementation


def test_memory_is_weights_gradients_moments_and_what_autograd_keeps():
    class TwoLayers(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(6, 5).requires_grad_(False)
            self.lora_head = nn.Linear(5, 3)

        def forward(self, pixel_values, labels):
            hidden = self.frozen(pixel_values).relu()  # kept: once, for relu and for the head
            loss = nn.functional.cross_entropy(self.lora_head(hidden.view(-1, 5)), labels)
            return type("Output", (), {"loss": loss})

    batch = {"pixel_values": torch.ones(7, 6), "labels": torch.zeros(7, dtype=torch.long)}
    costs = step_costs(TwoLayers(), batch)
    kept_by_cross_entropy = 4 * 7 * 3 + 8 * 7 + 4  # log-probabilities, labels, their number
    assert costs.fixed_bytes == 4 * (35 + 18) + 3 * 4 * 18
    assert costs.counts[0].activation_bytes == 4 * 7 * 5 + kept_by_cross_entropy


def test_an_easier_step_costs_less():
    batch = batch_of("bert", 4, 9)
    small, large = (adapted("bert", intermediate_size=size) for size in (8, 24))
    compared = compare_steps(batch, large, step_costs(small, batch))["local_step"]
    assert compared["examples"] == 4
    assert compared["tokens"] == 9
    saved_per_token = 2 * 3 * 2 * 2 * H * (24 - 8)  # forward and backward, 3 layers, up and down
    assert compared["flops_fm"] - compared["flops_sub_fm"] == saved_per_token * 4 * 9
    assert compared["memory_bytes_fm"] > compared["memory_bytes_sub_fm"]


def test_a_model_that_reads_values_is_not_counted_and_says_so():
    class ReadsValues(nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_a = nn.Linear(4, 2)

        def forward(self, pixel_values, labels):
            scale = 2 if pixel_values.sum() > 0 else 1
            loss = scale * nn.functional.cross_entropy(self.lora_a(pixel_values), labels)
            return type("Output", (), {"loss": loss})

    batch = {"pixel_values": torch.ones(3, 4), "labels": torch.zeros(3, dtype=torch.long)}
    with pytest.warns(UserWarning, match="cannot be counted for this model: .*meta"):
        costs = step_costs(ReadsValues(), batch)
    assert costs is None
    assert compare_steps(batch, ReadsValues(), costs) == {}


def test_a_client_adds_up_its_batches_and_trains_the_same():
    package = tiny_package(shard_sizes=(6, 9), num_epochs=2)
    model = unpack_model(package.proxy)
    metered = replace(package, step_costs=step_costs(model, batch_of("bert", 4, 9)))
    plan = RoundPlan(round_index=1, lr=1e-2, adapter=get_adapter(model), count_activations=False)
    plain, update = (LocalClient(p).fit(plan, 1) for p in (package, metered))
    assert update.adapter.tobytes() == plain.adapter.tobytes()
    assert not {"flops", "memory_bytes", "gpu_bytes"} & plain.metrics.keys()
    batches = [batch.tensors for batch in LocalClient(package)._batches_of(1, 1)]
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 1] * 2
    assert len({batch["input_ids"].shape for batch in batches}) > 2
    exact = [step_costs(model, batch, any_length=False) for batch in batches]
    assert update.metrics["flops"] == sum(costs.counts[0].flops for costs in exact)
    largest = max(costs.fixed_bytes + costs.counts[0].activation_bytes for costs in exact)
    assert update.metrics["memory_bytes"] == pytest.approx(largest, abs=4)


def test_the_step_that_is_counted_is_the_real_one():
    model, batch = eager(adapted("gpt2")), batch_of("gpt2", 4, 9)
    real, counted = count_step(LocalTuningModule(model), batch), step_costs(model, batch, any_length=False).counts[0]
    assert real.flops == counted.flops
    assert real.activation_bytes == pytest.approx(counted.activation_bytes, rel=0.02)


@pytest.mark.parametrize(("num_texts", "batch_size", "expected"), [(8, 2, 5), (7, 2, 5), (3, 4, 3)])
def test_the_typical_batch_has_the_median_padded_length(num_texts, batch_size, expected):
    lengths = [3, 3, 2, 9, 5, 4, 3, 4][:num_texts]  # batches of two are padded to 3, 9, 5, 4
    train = datasets.Dataset.from_dict({"input_ids": [[5] * n for n in lengths], "label": [0] * num_texts})
    package = tiny_package()
    partition = Partition(np.arange(num_texts), np.array([0, num_texts]))
    data = FederatedData(train, train, train, partition, package.collate, ("a", "b"), "text")
    batch = typical_batch(data, batch_size)
    assert batch["input_ids"].shape == (min(batch_size, num_texts), expected)
