"""What somebody left in config.json, or beside it, changes no number without a word."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, RobertaModel

from fedpft.config import ConfigError, FMConfig, LoraConfig
from fedpft.models.digest import fm_digest
from fedpft.models.ffn import ffn_location
from fedpft.models.fields import NEUTRAL_FIELDS
from fedpft.models.limits import fit_inputs
from fedpft.models.loading import load_fm, load_fm_config
from fedpft.models.lora import attach_lora, save_adapter
from fedpft.models.origin import origin_of
from fedpft.models.processor import load_processor
from tests.tiny import (
    FAMILIES,
    ONE_FAMILY_PER_ROW,
    TINY_CONFIGS,
    auto_model,
    modality_of,
    tiny_batch,
    tiny_fm,
    tiny_lm,
    tiny_tokenizer,
)


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def opened(folder, model_type="bert", kind="classification", **settings):
    config = FMConfig(path=str(folder), **settings)
    return load_fm(config, modality=modality_of(model_type), kind=kind, num_labels=3, seed=0)


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_flags_that_change_no_number_are_not_followed_and_told(model_type, tmp_path):
    fm = tiny_fm(model_type)
    fm.save_pretrained(tmp_path)
    plain = fm_digest(opened(tmp_path, model_type))
    flags = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    edit(tmp_path, **flags, chunk_size_feed_forward=1)
    mine = opened(tmp_path, model_type)
    assert {name: getattr(mine.config, name) for name in NEUTRAL_FIELDS} == NEUTRAL_FIELDS
    told = {line.split(":")[0] for line in origin_of(mine).notes}
    assert told == {f"fm.config.{name}" for name in NEUTRAL_FIELDS}
    assert fm_digest(mine) == plain
    with torch.no_grad():
        assert torch.equal(mine(**tiny_batch(model_type)).logits, fm(**tiny_batch(model_type)).logits)
    mine.save_pretrained(tmp_path / "again")
    auto_model(model_type).from_pretrained(tmp_path / "again")


def test_weights_are_read_as_precisely_as_they_are_stored(tmp_path):
    fm = tiny_fm("bert")
    fm.save_pretrained(tmp_path)
    edit(tmp_path, dtype="bfloat16")
    mine = opened(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), fm.parameters(), strict=True))


@pytest.mark.parametrize("model_type", ["bert", "electra", "roberta"])
def test_an_encoder_that_reads_from_left_to_right_is_refused(model_type, tmp_path):
    tiny_fm(model_type).save_pretrained(tmp_path)
    edit(tmp_path, is_decoder=True)
    with pytest.raises(ConfigError, match=r"^fm\.config\.is_decoder: found True in .*, allowed: false$"):
        opened(tmp_path, model_type)
    opened(tmp_path, model_type, config={"is_decoder": False})


DEPTH = {"distilbert": "n_layers", "gpt2": "n_layer"}


@pytest.mark.parametrize(
    ("model_type", "bare"),
    [*((family, True) for family in FAMILIES), ("bert", False), ("llama", False)],
    ids=lambda value: {True: "backbone alone", False: "with a head"}.get(value, value),
)
def test_layers_that_the_config_leaves_no_place_for_are_an_error_unless_they_are_asked_away(model_type, bare, tmp_path):
    fm = tiny_fm(model_type, auto=AutoModel if bare else None)
    fm.save_pretrained(tmp_path)
    depth = DEPTH.get(model_type, "num_hidden_layers")
    asked = opened(tmp_path, model_type, config={depth: 2})
    asked.config.save_pretrained(tmp_path / "asked")
    edit(tmp_path, **json.loads((tmp_path / "asked" / "config.json").read_text()))
    layer = rf"{ffn_location(fm).layers.rpartition('.')[2]}.*\.2\." if model_type != "gpt2" else r"h\.2\."
    with pytest.raises(ConfigError, match=rf"^fm\.path: found .* with \S*{layer}\S+, for which its config leaves no p"):
        opened(tmp_path, model_type)
    with torch.no_grad():
        assert asked(**tiny_batch(model_type)).logits.isfinite().all()


@pytest.mark.parametrize("max_shard_size", ["50GB", "10KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    "name", ["bert.encoder.layer.0.attention.self.distance_embedding.weight", "bert.embeddings.other"]
)
def test_a_tensor_of_the_backbone_without_a_place_is_named(name, max_shard_size, tmp_path):
    fm = tiny_fm("bert")
    tensors = {**fm.state_dict(), name: torch.zeros(3)}
    fm.save_pretrained(tmp_path, state_dict=tensors, max_shard_size=max_shard_size)
    with pytest.raises(ConfigError, match=rf"with {name}, for which its config leaves no place \(1 tensors so\)"):
        opened(tmp_path)


def test_poolers_masks_buffers_and_heads_of_other_tasks_are_left_out_as_ever(tmp_path):
    RobertaModel(AutoConfig.for_model("roberta", **TINY_CONFIGS["roberta"])).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {"lm_head.bias": torch.zeros(3), "embeddings.position_ids": torch.zeros(3), "qa_outputs.bias": torch.zeros(2)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    opened(tmp_path, "roberta")


def test_a_language_models_head_has_no_weight_without_a_place(tmp_path):
    fm = tiny_lm("llama")
    fm.save_pretrained(tmp_path, state_dict={**fm.state_dict(), "lm_head.bias": torch.zeros(40)})
    with pytest.raises(ConfigError, match=r"with lm_head\.bias, for which its config leaves no place"):
        opened(tmp_path, "llama", "causal_lm")


def test_embeddings_that_are_stored_apart_stay_apart_although_the_config_ties_them(tmp_path):
    fm = tiny_lm("llama", tie_word_embeddings=False)
    fm.save_pretrained(tmp_path / "fm")
    edit(tmp_path / "fm", tie_word_embeddings=True)
    mine = opened(tmp_path / "fm", "llama", "causal_lm")
    assert torch.equal(mine.lm_head.weight, fm.lm_head.weight)
    assert origin_of(mine).notes == (
        "fm.config.tie_word_embeddings: true, but the stored embeddings differ: they stay apart",
    )
    assert mine.config.tie_word_embeddings is False


def test_an_adapter_beside_the_fm_is_refused_before_anything_is_read(tmp_path):
    fm = tiny_fm("bert")
    fm.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    save_adapter(attach_lora(fm, LoraConfig(), seed=0), tmp_path)
    for load in (lambda c: load_fm_config(c, 2), lambda c: load_processor(c, "text")):
        with pytest.raises(ConfigError, match=r"^fm\.path: found .* with adapter_config\.json: an adapter .*alone"):
            load(FMConfig(path=str(tmp_path)))


@pytest.mark.parametrize("path", ["scratch://bert", "package://x", "."])
def test_a_revision_is_the_hubs_alone(path):
    with pytest.raises(ConfigError, match=r"^fm\.revision: found 'main', allowed: null, because fm\.path = "):
        load_fm_config(FMConfig(path=path, revision="main"), 2)


def test_a_hub_id_has_a_revision_and_the_commit_is_remembered(tmp_path, monkeypatch):
    repository = tmp_path / "models--some--fm"
    commits = {"main": "a" * 40, "old": "b" * 40}
    models = {}
    for seed, (branch, commit) in enumerate(commits.items()):
        models[branch] = tiny_fm("bert", seed=seed)
        models[branch].save_pretrained(repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        Path(repository, "refs", branch).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision, branch in ((None, "main"), ("main", "main"), ("old", "old"), (commits["old"], "old")):
        fm = opened("some/fm", revision=revision)
        assert torch.equal(fm.classifier.weight, models[branch].classifier.weight)
        assert origin_of(fm).revision == commits[branch]


@pytest.mark.parametrize(
    ("model_type", "fields", "has_types"),
    [
        ("bert", {}, True),
        ("bert", {"type_vocab_size": 1}, False),
        ("roberta", {"type_vocab_size": 1}, False),
        ("deberta-v2", {}, False),
        ("gpt2", {}, False),
        ("distilbert", {}, False),
    ],
)
def test_types_of_tokens_go_to_models_that_embed_them_all_and_a_mask_to_every_model(
    model_type, fields, has_types, tmp_path
):
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    fit_inputs(AutoConfig.for_model(model_type, **(TINY_CONFIGS[model_type] | fields)), tokenizer)
    assert tokenizer.model_input_names == ["input_ids", *["token_type_ids"] * has_types, "attention_mask"]
    tokenizer.save_pretrained(tmp_path)
    given = AutoTokenizer.from_pretrained(tmp_path)("w1", "w2")
    assert ("token_type_ids" in given) == has_types


def test_a_tokenizer_that_can_neither_pad_nor_end_is_one_line(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    tiny_fm("gpt2").config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^fm\.path: found .* neither a padding nor an end-of-text token, allowed: "):
        load_processor(FMConfig(path=str(tmp_path)), "text")
