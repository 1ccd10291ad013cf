import json

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from fedpft.config import ConfigError, FMConfig, LoraConfig
from fedpft.construct.compress import compress
from fedpft.construct.saliency import weight_norm
from fedpft.data.collate import CausalCollator
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.models.checks import DECODERS
from fedpft.models.families import FFN_LOCATIONS
from fedpft.models.loading import load_fm, load_fm_config, load_sub_fm
from fedpft.models.lora import (
    adapter_layout,
    adapter_parameters,
    attach_lora,
    get_adapter,
    save_adapter,
    set_adapter,
    without_adapter,
)
from fedpft.models.weights import pack_model, unpack_model
from tests.tiny import TINY_CONFIGS, tiny_batch, tiny_fm, tiny_lm

TINY_DECODERS = sorted(set(DECODERS) & set(TINY_CONFIGS))
LORA = LoraConfig(rank=2, lora_alpha=4, dropout=0.0)
ROWS = [{"input_ids": [1, 5, 6, 7, 2], "prompt_length": 3}, {"input_ids": [1, 9, 2], "prompt_length": 1}]


def load(path, **fields):
    settings = FMConfig(path=str(path), config=fields)
    return load_fm(settings, modality="text", num_labels=0, seed=0, kind="causal_lm")


def logits(model, model_type):
    with torch.no_grad():
        return model(**tiny_batch(model_type)).logits


def test_encoders_are_no_decoders_whatever_transformers_can_open():
    assert (
        {"gpt2", "llama", "qwen2"} <= set(DECODERS) <= FFN_LOCATIONS.keys() - {"bert", "roberta", "distilbert", "vit"}
    )


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "vit"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "scratch"])
def test_an_encoder_is_refused_by_its_config_alone_and_decoders_are_named(model_type, stored, tmp_path):
    tiny_fm(model_type).config.save_pretrained(tmp_path)
    path = str(tmp_path) if stored else f"scratch://{model_type}"
    expected = rf"fm\.path: found '{path}' of model type '{model_type}', allowed for .* causal_lm: .*gpt2, .*llama"
    with pytest.raises(ConfigError, match=expected) as error:
        load_fm_config(FMConfig(path=path), 0, "causal_lm")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [*((family, True) for family in TINY_DECODERS), *((family, False) for family in ("gpt2", "llama", "opt"))],
)
class TestEveryDecoder:
    def test_a_saved_language_model_opens_with_its_own_head(self, model_type, tied, tmp_path):
        fm = tiny_lm(model_type, tie_word_embeddings=tied)
        fm.save_pretrained(tmp_path)
        opened = load(tmp_path)
        assert type(opened) is type(fm)
        assert torch.equal(logits(opened, model_type), logits(fm, model_type))

    def test_the_adapter_is_lora_alone_and_the_head_is_frozen(self, model_type, tied):
        model = attach_lora(tiny_lm(model_type, tie_word_embeddings=tied), LORA, seed=0)
        assert all("lora_" in name for name, _ in adapter_layout(model))
        assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())

    def test_the_sub_fm_has_the_fms_head_and_adapter_layout(self, model_type, tied):
        fm = tiny_lm(model_type, tie_word_embeddings=tied)
        sub_fm, _ = compress(fm, retained_ratio=0.5, uncompressed_layers=(), scorer=weight_norm)
        assert torch.equal(sub_fm.get_output_embeddings().weight, fm.get_output_embeddings().weight)
        assert adapter_layout(attach_lora(sub_fm, LORA, seed=0)) == adapter_layout(attach_lora(fm, LORA, seed=0))

    def test_sub_fm_and_adapter_open_from_their_folders(self, model_type, tied, tmp_path):
        uncompressed_layers = (0,) if tied else ()
        fm = tiny_lm(model_type, tie_word_embeddings=tied)
        sub_fm, _ = compress(fm, retained_ratio=0.5, uncompressed_layers=uncompressed_layers, scorer=weight_norm)
        model = attach_lora(sub_fm, LORA, seed=0)
        set_adapter(model, get_adapter(model) + 0.1)
        expected = logits(model, model_type)
        save_adapter(model, tmp_path / "adapter")
        assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
        without_adapter(model).save_pretrained(tmp_path / "sub_fm")
        opened = load_sub_fm(tmp_path / "sub_fm", modality="text", kind="causal_lm")
        if not uncompressed_layers:
            opened = AutoModelForCausalLM.from_pretrained(tmp_path / "sub_fm").eval()
        adapted = PeftModel.from_pretrained(opened, str(tmp_path / "adapter")).eval()
        assert torch.equal(logits(adapted, model_type), expected)

    def test_it_travels_whole(self, model_type, tied):
        model = attach_lora(tiny_lm(model_type, tie_word_embeddings=tied), LORA, seed=0)
        assert torch.equal(logits(unpack_model(pack_model(model)), model_type), logits(model, model_type))

    def test_clients_learn_the_mean_over_the_batchs_response_tokens(self, model_type, tied):
        model = attach_lora(tiny_lm(model_type, tie_word_embeddings=tied), LORA, seed=0)
        module = LocalTuningModule(model)
        loss = module.training_step(CausalCollator(2)(ROWS), 0)
        terms = []
        for row in ROWS:  # one by one, without padding; a position's logits tell of the token after it
            start = row["prompt_length"]
            with torch.no_grad():
                told = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, start - 1 : -1]
            terms.append(cross_entropy(told, torch.tensor(row["input_ids"][start:]), reduction="none"))
        assert [len(term) for term in terms] == [2, 2]
        assert float(loss.detach()) == pytest.approx(float(torch.cat(terms).mean()), rel=1e-5)
        loss.backward()
        assert any(parameter.grad.any() for parameter in adapter_parameters(model).values())


def test_a_language_model_without_its_head_is_refused(tmp_path):
    tiny_fm("llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"without lm_head\.weight .*allowed: weights for the whole language model"):
        load(tmp_path)


def test_a_classifier_opens_from_a_language_models_folder(tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path)
    opened = load_fm(FMConfig(path=str(tmp_path)), modality="text", num_labels=3, seed=0)
    assert opened.config.num_labels == 3
