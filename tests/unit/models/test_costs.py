import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from fedpft.config import LoraConfig
from fedpft.construct.layer_drop import choose_layers, drop_layers
from fedpft.models.costs import costs
from fedpft.models.ffn import num_transformer_parameters
from fedpft.models.loading import resize_ffns
from fedpft.models.lora import attach_lora
from tests.tiny import tiny_fm

MI = 2**20


@pytest.fixture
def bert_base():
    """Return BERT-base without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))


def test_bert_bases_layers_have_the_papers_81_mi_parameters(bert_base):
    a_layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    assert num_transformer_parameters(bert_base) == 12 * a_layer == 85_054_464
    assert round(num_transformer_parameters(bert_base) / MI) == 81


def test_the_papers_sub_fm_has_47_mi(bert_base):
    resize_ffns(bert_base, [3072, *[768] * 10, 3072])
    assert num_transformer_parameters(bert_base) == 85_054_464 - 10 * (3072 - 768) * (2 * 768 + 1)
    assert round(num_transformer_parameters(bert_base) / MI) == 47


def test_fedots_proxy_of_7_layers_has_47_mi_too(bert_base):
    proxy = drop_layers(bert_base, choose_layers(12, adapter_layers=2))
    assert num_transformer_parameters(proxy) == 85_054_464 * 7 // 12
    assert round(num_transformer_parameters(proxy) / MI) == 47


def test_costs_tell_the_layers_from_the_whole_model_and_do_not_count_the_adapter():
    fm = tiny_fm("bert", num_hidden_layers=4)
    proxy = drop_layers(fm, choose_layers(4, adapter_layers=1, kept_layers=3))
    a_layer = num_transformer_parameters(fm) // 4
    whole = sum(parameter.numel() for parameter in fm.parameters())
    adapted = [attach_lora(model, LoraConfig(rank=2), 0, layers) for model, layers in ((fm, [0, 3]), (proxy, [0, 2]))]
    found = costs(*adapted)
    assert (found["num_params_fm"], found["num_params_sub_fm"]) == (whole, whole - a_layer)
    assert (found["num_transformer_params_fm"], found["num_transformer_params_sub_fm"]) == (4 * a_layer, 3 * a_layer)
    assert found["compression_ratio"] == pytest.approx(4 / 3)
    lora = 2 * 4 * 2 * (16 + 16)  # 2 layers, 4 projections, rank 2
    assert found["num_params_adapter"] == lora + 16 * 3 + 3
