"""A stored head is made one for the task's labels, and what is drawn at random is told."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, BertForMaskedLM

from fedpft.config import FMConfig, LoraConfig
from fedpft.models.digest import fm_digest
from fedpft.models.head import head_modules, output_layer
from fedpft.models.loading import load_fm
from fedpft.models.lora import attach_lora, get_adapter, save_adapter, set_adapter
from fedpft.models.origin import origin_of
from tests.tiny import FAMILIES, ONE_FAMILY_PER_ROW, TINY_CONFIGS, modality_of, tiny_batch, tiny_fm


def stored(folder, model_type, *names):
    fm = tiny_fm(model_type, num_labels=len(names), id2label=dict(enumerate(names)))
    fm.save_pretrained(folder)
    return fm


def opened(folder, *names, model_type="bert", seed=0):
    config = FMConfig(path=str(folder))
    return load_fm(config, modality=modality_of(model_type), num_labels=len(names), seed=seed, label_names=names)


def logits(model, model_type="bert"):
    with torch.no_grad():
        return model(**tiny_batch(model_type)).logits


@pytest.mark.parametrize("model_type", FAMILIES)
def test_labels_of_the_same_names_are_put_into_the_tasks_order(model_type, tmp_path):
    fm = stored(tmp_path, model_type, "pos", "neg", "so so")
    mine = opened(tmp_path, "Neg", "POS", "so so", model_type=model_type)
    assert torch.equal(logits(mine, model_type), logits(fm, model_type)[:, [1, 0, 2]])
    assert origin_of(mine).random_weights == ()
    assert origin_of(mine).notes == (
        "fm.path: the stored head's labels (pos, neg, so so) are put into the task's order",
    )


@pytest.mark.parametrize("names", [("ham", "spam"), ("neg", "pos", "so so")], ids=["other names", "another number"])
@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_a_head_for_other_labels_is_drawn_anew_from_the_seed_and_told(model_type, names, tmp_path):
    fm = stored(tmp_path, model_type, "pos", "neg")
    first, again, other = (opened(tmp_path, *names, model_type=model_type, seed=seed) for seed in (0, 0, 1))
    name, layer = output_layer(first)
    assert name in ("classifier", "classifier.out_proj", "score")
    assert f"{name}.weight" in origin_of(first).random_weights
    told = f"fm.path: the stored head has other labels (pos, neg), {name} is drawn anew"
    assert [told, "drawn at random"] == [origin_of(first).notes[0], origin_of(first).notes[1].split(": ")[1]]
    assert torch.equal(logits(first, model_type), logits(again, model_type))
    assert not torch.equal(layer.weight, output_layer(other)[1].weight)
    assert not torch.equal(layer.weight[:2], output_layer(fm)[1].weight)
    assert 0 < layer.weight.std() < 1
    kept = {key: value for key, value in fm.state_dict().items() if not key.startswith(name)}
    assert all(torch.equal(first.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize(
    ("before", "names"), [(("LABEL_0", "LABEL_1"), ("neg", "pos")), (("pos", "neg"), ("0", "1"))], ids=["FM", "task"]
)
def test_where_one_side_has_no_names_a_stored_head_stays_and_says_what_it_takes_for_what(before, names, tmp_path):
    fm = stored(tmp_path, "bert", *before)
    mine = opened(tmp_path, *names)
    assert torch.equal(logits(mine), logits(fm))
    pairs = f"{names[0]} = {before[0]}, {names[1]} = {before[1]}"
    assert origin_of(mine).notes == (f"fm.path: the stored head is taken label by label, by number: {pairs}",)


def test_labels_that_differ_in_case_alone_are_told_apart(tmp_path):
    fm = stored(tmp_path, "bert", "us", "US")
    assert torch.equal(logits(opened(tmp_path, "US", "us")), logits(fm)[:, [1, 0]])


def without_pooler(folder):
    torch.manual_seed(0)
    BertForMaskedLM(AutoConfig.for_model("bert", **TINY_CONFIGS["bert"])).save_pretrained(folder)


def test_a_missing_pooler_belongs_to_the_head_and_is_told(tmp_path):
    without_pooler(tmp_path)
    fm = opened(tmp_path, "a", "b")
    drawn = ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight")
    assert origin_of(fm).random_weights == drawn
    assert origin_of(fm).notes == (f"fm.path: drawn at random: {', '.join(drawn)}",)
    assert head_modules(fm) == ["classifier", "bert.pooler"]


def test_an_adapter_carries_a_pooler_that_the_fm_lacks(tmp_path):
    without_pooler(tmp_path / "fm")
    first, second, plain = (opened(tmp_path / "fm", "a", "b", seed=seed) for seed in (0, 1, 2))
    tuned, other = (attach_lora(fm, LoraConfig(rank=2), seed=0) for fm in (first, second))
    vector = get_adapter(tuned) + np.linspace(-0.3, 0.3, len(get_adapter(tuned)), dtype=np.float32)
    for model in (tuned, other):
        set_adapter(model, vector)
    assert torch.equal(logits(tuned), logits(other))
    save_adapter(tuned, tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()), logits(tuned))


def test_what_is_drawn_is_no_part_of_the_fms_digest(tmp_path):
    without_pooler(tmp_path)
    assert fm_digest(opened(tmp_path, "a", "b", seed=0)) == fm_digest(opened(tmp_path, "a", "b", seed=1))
