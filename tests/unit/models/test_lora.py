import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model

from fedpft.config import ConfigError, LoraConfig
from fedpft.construct.compress import compress
from fedpft.models.checks import DECODERS
from fedpft.models.ffn import find_ffns
from fedpft.models.head import head_modules
from fedpft.models.lora import (
    adapter_layout,
    adapter_parameters,
    attach_lora,
    get_adapter,
    merge_adapter,
    num_base_parameters,
    save_adapter,
    set_adapter,
    split_adapter,
    without_adapter,
)
from fedpft.models.lora_targets import LORA_TARGETS
from tests.tiny import DEPTH_FIELD, FAMILIES, ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm, tiny_lm

RANK_2 = LoraConfig(rank=2)
HEADS = {
    **{family: ["classifier"] for family in ("bert", "camembert", "dinov2", "mpnet", "xlm-roberta")},
    "modernbert": ["classifier", "head"],
    "deberta-v2": ["classifier", "pooler"],
    "deit": ["classifier"],
    "distilbert": ["classifier", "pre_classifier"],
    "electra": ["classifier"],
    **{family: ["score"] for family in ("gemma", "gemma2", "gemma3_text", "gpt_neox", "olmo2", "phi3", "smollm3")},
    "gpt2": ["score"],
    "llama": ["score"],
    "mistral": ["score"],
    "opt": ["score"],
    "qwen2": ["score"],
    "qwen3": ["score"],
    "roberta": ["classifier"],
    "vit": ["classifier"],
}


def outputs(model, model_type):
    with torch.no_grad():
        return model(**tiny_batch(model_type)).logits


def tuned(model_type, model=None):
    """Return a model with an adapter that is not trivial."""
    wrapped = attach_lora(model or tiny_fm(model_type), RANK_2, seed=0).eval()
    vector = get_adapter(wrapped)
    set_adapter(wrapped, vector + np.linspace(-0.3, 0.3, len(vector), dtype=np.float32))
    return wrapped


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_fresh_adapter_does_not_change_the_outputs_and_warns_of_nothing(model_type):
    expected = outputs(tiny_fm(model_type), model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        wrapped = attach_lora(tiny_fm(model_type), RANK_2, seed=0).eval()
    assert torch.equal(outputs(wrapped, model_type), expected)


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_fm_and_sub_fm_have_the_same_layout(model_type):
    fm = tiny_fm(model_type)
    sub_fm, _ = compress(fm, retained_ratio=0.25, uncompressed_layers=(0,))
    layout = adapter_layout(attach_lora(fm, RANK_2, seed=0))
    assert layout == adapter_layout(attach_lora(sub_fm, RANK_2, seed=1))
    assert sum("lora_" in name for name, _ in layout) == 3 * len(LORA_TARGETS[model_type]) * 2


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_only_the_adapter_can_be_trained(model_type):
    wrapped = attach_lora(tiny_fm(model_type), RANK_2, seed=0)
    assert {name for name, p in wrapped.named_parameters() if p.requires_grad} == set(adapter_parameters(wrapped))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_whole_head_belongs_to_the_adapter(model_type):
    fm = tiny_fm(model_type)
    assert sorted(head_modules(fm)) == HEADS[model_type]
    in_head = sum(p.numel() for name in HEADS[model_type] for p in getattr(fm, name).parameters())
    parameters = adapter_parameters(attach_lora(fm, RANK_2, seed=0))
    assert sum(p.numel() for name, p in parameters.items() if "lora_" not in name) == in_head


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_base_parameters_are_those_of_the_plain_model(model_type):
    fm = tiny_fm(model_type)
    expected = fm.num_parameters()
    assert num_base_parameters(fm) == expected
    assert num_base_parameters(attach_lora(fm, RANK_2, seed=0)) == expected


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_an_adapter_carries_a_models_tuning_to_another_copy(model_type):
    first, second = tuned(model_type), attach_lora(tiny_fm(model_type), RANK_2, seed=9).eval()
    assert not torch.equal(outputs(first, model_type), outputs(second, model_type))
    vector = get_adapter(first)
    assert vector.dtype == np.float32
    set_adapter(second, vector)
    set_adapter(second, vector)  # sets, never adds
    assert np.array_equal(get_adapter(second), vector)
    assert torch.equal(outputs(first, model_type), outputs(second, model_type))


def test_an_adapter_vector_is_a_copy():
    wrapped = tuned("bert")
    vector = get_adapter(wrapped)
    expected = vector.copy()
    set_adapter(wrapped, np.zeros_like(vector))
    assert np.array_equal(vector, expected)
    set_adapter(wrapped, vector)
    vector[:] = 0
    assert np.array_equal(get_adapter(wrapped), expected)


def test_set_adapter_keeps_the_live_parameters():
    wrapped = tuned("bert")
    before = adapter_parameters(wrapped)
    set_adapter(wrapped, get_adapter(wrapped) + 1)
    assert all(before[name] is parameter for name, parameter in adapter_parameters(wrapped).items())
    assert all(parameter.requires_grad for parameter in before.values())


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: np.append(v, 0.0), lambda v: v[None]])
def test_an_adapter_of_the_wrong_length_is_refused(change):
    wrapped = tuned("bert")
    before = get_adapter(wrapped)
    with pytest.raises(ValueError, match=rf"adapter: found shape .*allowed: \({len(before)},\)"):
        set_adapter(wrapped, change(before.copy()))
    assert np.array_equal(get_adapter(wrapped), before)


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_a_target_that_matches_nothing_is_an_error(model_type):
    config = LoraConfig(target_modules=("attention.attention.query",))
    with pytest.raises(ConfigError, match=f"'attention.attention.query', which matches no module of .*'{model_type}'"):
        attach_lora(tiny_fm(model_type), config, seed=0)


def test_one_missing_target_among_good_ones_is_an_error():
    with pytest.raises(ConfigError, match=r"lora\.target_modules: found 'uery'"):
        attach_lora(tiny_fm("bert"), LoraConfig(target_modules=("query", "uery")), seed=0)


def test_the_start_depends_on_the_seed_alone():
    vectors = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        vectors.append(get_adapter(attach_lora(tiny_fm("bert"), RANK_2, seed=seed)))
    assert np.array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_a_saved_adapter_opens_with_peft_on_the_fm(model_type, tmp_path):
    sub_fm, _ = compress(tiny_fm(model_type), retained_ratio=0.5)
    of_sub_fm = tuned(model_type, sub_fm)
    save_adapter(of_sub_fm, tmp_path)
    opened = PeftModel.from_pretrained(tiny_fm(model_type), tmp_path).eval()
    expected = tuned(model_type)
    assert np.array_equal(get_adapter(expected), get_adapter(of_sub_fm))
    assert torch.equal(outputs(opened, model_type), outputs(expected, model_type))


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_without_its_adapter_a_model_is_the_plain_one_again(model_type):
    plain = tiny_fm(model_type)
    back = without_adapter(tuned(model_type))
    assert type(back) is type(plain)
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert torch.equal(outputs(back, model_type), outputs(plain, model_type))


@pytest.mark.parametrize("training", [True, False])
def test_the_adapter_takes_over_the_models_mode(training):
    model = attach_lora(tiny_fm("bert").train(training), LoraConfig(rank=2, dropout=0.5), seed=0)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_lora_on_some_layers_is_there_and_only_there(model_type):
    fm = tiny_fm(model_type, **{DEPTH_FIELD.get(model_type, "num_hidden_layers"): 12})
    wrapped = attach_lora(fm, RANK_2, seed=0, layers=(1, 10))
    tensors = [len(split_adapter(adapter_parameters(ffn.layer))[0]) for ffn in find_ffns(wrapped)]
    assert tensors == [2 * len(LORA_TARGETS[model_type]) if layer in (1, 10) else 0 for layer in range(12)]
    assert sum(tensors) == len(split_adapter(adapter_parameters(wrapped))[0])


def test_a_target_that_is_in_none_of_the_layers_is_an_error():
    config = LoraConfig(target_modules=("query", "pooler.dense"))
    attach_lora(tiny_fm("bert"), config, seed=0)
    with pytest.raises(ConfigError, match=r"^lora\.target_modules: found 'pooler.dense', which matches no module in a"):
        attach_lora(tiny_fm("bert"), config, seed=0, layers=(0, 2))


REFUSED = {
    "LayerNorm": "a LayerNorm",
    "dropout": "a Dropout",
    "attention.self": "a BertSelfAttention",
    "embeddings": "a BertEmbeddings",
    "word_embeddings": "a Embedding",
    "bert": "a BertModel",
    "": "a BertForSequenceClassification",
    "classifier": "a part of the head",
}


@pytest.mark.parametrize(("target", "kind"), REFUSED.items())
def test_only_linear_layers_outside_the_head_have_lora(target, kind):
    with pytest.raises(ConfigError) as error:
        attach_lora(tiny_fm("bert"), LoraConfig(target_modules=("query", target)), seed=0)
    names = "query, key, value, attention.output.dense, intermediate.dense, output.dense"
    allowed = f"all-linear, or linear layers outside the head, as {names}"
    assert str(error.value) == f"lora.target_modules: found {target!r}, which matches {kind}, allowed: {allowed}"


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_all_linear_is_every_linear_layer_of_the_layers_as_peft_says_it(model_type):
    fm = attach_lora(tiny_fm(model_type), LoraConfig(target_modules=("all-linear",)), seed=0)
    peft_config = PeftLoraConfig(target_modules="all-linear", modules_to_save=head_modules(tiny_fm(model_type)))
    with warnings.catch_warnings(action="ignore"):
        expected = get_peft_model(tiny_fm(model_type), peft_config)
    wanted = [set(adapter_parameters(ffn.layer)) for ffn in find_ffns(expected)]
    assert [set(adapter_parameters(ffn.layer)) for ffn in find_ffns(fm)] == wanted
    assert all(len(names) >= 8 for names in wanted), "A and B of four modules at least"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_heads_and_embeddings_have_no_lora(model_type):
    fm = tiny_fm(model_type)
    names = {id(module): name for name, module in fm.named_modules()}
    for target in (*HEADS[model_type], names[id(fm.get_input_embeddings())]):
        with pytest.raises(ConfigError, match=r"^lora\.target_modules: found .*, which matches a "):
            attach_lora(fm, LoraConfig(target_modules=(target,)), seed=0)


@pytest.mark.parametrize("model_type", sorted(set(DECODERS) & set(FAMILIES)))
def test_weights_that_two_modules_share_have_no_lora(model_type):
    for module in ("get_input_embeddings", "get_output_embeddings"):
        fm = tiny_lm(model_type, tie_word_embeddings=True)
        (target,) = (name for name, other in fm.named_modules() if other is getattr(fm, module)())
        with pytest.raises(ConfigError, match="which matches weights that another module shares, allowed: all-"):
            attach_lora(fm, LoraConfig(target_modules=(target,)), seed=0)
    head = next(name for name, other in fm.named_modules() if other is fm.get_output_embeddings())
    apart = attach_lora(
        tiny_lm(model_type, tie_word_embeddings=False), LoraConfig(rank=2, target_modules=(head,)), seed=0
    ).eval()
    set_adapter(apart, get_adapter(apart) + 0.1)
    expected = outputs(apart, model_type)
    assert torch.allclose(outputs(merge_adapter(apart), model_type), expected, atol=1e-4)
