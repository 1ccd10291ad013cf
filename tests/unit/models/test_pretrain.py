import datasets
import pytest
import torch

from fedpft.config import ConfigError, PretrainConfig, ServerConfig
from fedpft.data.collate import CausalCollator, TextCollator
from fedpft.data.tasks.instructions import without_prompts
from fedpft.models.pretrain import pretrain_backbone, pretrain_language_model
from tests.tiny import tiny_fm, tiny_lm, tiny_texts, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode")
TOKENIZER = tiny_tokenizer()
TEXTS, LABELS = tiny_texts(24)
PUBLIC = datasets.Dataset.from_dict({"input_ids": TOKENIZER(TEXTS)["input_ids"], "label": [5 * i for i in LABELS]})


def pretrain(model_type="bert", *, public=PUBLIC, seed=0, num_epochs=2, on_step=None):
    fm = tiny_fm(model_type)
    config = PretrainConfig(num_epochs=num_epochs, batch_size=8, lr=1e-2)
    pretrain_backbone(
        fm, public, TextCollator(TOKENIZER), config=config, server=ServerConfig(accelerator="cpu"), seed=seed,
        on_step=on_step,
    )  # fmt: skip
    return fm


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "llama"])
def test_the_backbone_learns_and_the_fms_own_head_stays_new(model_type):
    before, after = tiny_fm(model_type), pretrain(model_type)
    backbone = before.base_model_prefix
    changed = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed
    assert all(name.startswith(f"{backbone}.") for name in changed)
    assert sum("weight" in name for name in changed) > 10
    assert after.config.num_labels == 3
    assert not after.training
    assert all(parameter.grad is None for parameter in after.parameters()), "they are as large as the model"


def test_the_loss_goes_down_over_all_epochs():
    losses = []
    pretrain(num_epochs=8, on_step=lambda done, total, metrics: losses.append((done, total, metrics["loss"])))
    assert [(done, total) for done, total, _ in losses] == [(i, 24) for i in range(1, 25)]
    assert sum(loss for *_, loss in losses[-3:]) < sum(loss for *_, loss in losses[:3])


def test_the_result_follows_the_seed_alone():
    torch.manual_seed(1)
    first = pretrain()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, other = pretrain(), pretrain(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_public_data_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r"^fm.pretrain.num_epochs: found 2, but public data .* has no label"):
        pretrain(public=PUBLIC.remove_columns("label"))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_language_model_learns_whole_to_go_on_with_public_texts(model_type):
    fm, losses = tiny_lm(model_type), []
    before = {name: parameter.clone() for name, parameter in fm.named_parameters()}
    pretrain_language_model(
        fm, without_prompts(PUBLIC.select_columns(["input_ids"])), CausalCollator(0),
        config=PretrainConfig(num_epochs=6, batch_size=8, lr=1e-2), server=ServerConfig(accelerator="cpu"), seed=0,
        on_step=lambda done, total, metrics: losses.append(metrics["loss"]),
    )  # fmt: skip
    assert len(losses) == 18
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    same = {name for name, parameter in fm.named_parameters() if torch.equal(parameter, before[name])}
    assert not same, "embeddings, layers and head"
    assert not fm.training
