import pytest
import torch

from fedpft.align.losses import hidden_state_loss, weight_product, weight_product_loss
from fedpft.align.module import AlignmentModule
from fedpft.construct.compress import compress
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_ffns
from tests.tiny import EVERY_ROW, FAMILIES, POST_NORM_FAMILIES, TEXT_ROWS, tiny_batch, tiny_fm

DROPOUT = {
    **dict.fromkeys(sorted(set(POST_NORM_FAMILIES) - {"distilbert"}), "hidden_dropout_prob"),
    "distilbert": "dropout", "gpt2": "resid_pdrop", "gpt_neox": "hidden_dropout", "phi3": "resid_pdrop",
}  # fmt: skip
"""The setting of the dropout at an FFN's output, in the families that have one."""


def alignment(model_type, *, dropout=0.0, layers=(1, 2), **kwargs):
    fm = tiny_fm(model_type, **({DROPOUT[model_type]: dropout} if model_type in DROPOUT else {}))
    sub_fm, _ = compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
    module = AlignmentModule(fm, sub_fm, layers=layers, **({"lr": 1e-3, "num_steps": 2} | kwargs))
    module.setup("fit")
    return module


def hidden_states(model, batch):
    with torch.no_grad(), layer_outputs([ffn.layer for ffn in find_ffns(model)]) as outputs:
        model(**batch)
    return outputs


@pytest.mark.parametrize("model_type", FAMILIES)
def test_loss_is_the_mean_over_layers_of_both_terms(model_type):
    module, batch = alignment(model_type, product_weight=0.5), tiny_batch(model_type)
    loss = module.loss(batch)
    teacher, student = hidden_states(module.teacher, batch), hidden_states(module.student, batch)
    terms = []
    for layer in (1, 2):
        t, s = find_ffns(module.teacher)[layer], find_ffns(module.student)[layer]
        hidden = hidden_state_loss(teacher[layer], student[layer], batch.get("attention_mask"))
        product = weight_product_loss(
            weight_product(t.up_weight, t.down_weight), weight_product(s.up_weight, s.down_weight)
        )
        terms.append(hidden + 0.5 * product)
    torch.testing.assert_close(loss.total, torch.stack(terms).mean())
    torch.testing.assert_close(loss.total, loss.hidden + 0.5 * loss.product)


@pytest.mark.parametrize("model_type", TEXT_ROWS)
def test_what_stands_in_the_padding_does_not_count(model_type):
    module, batch = alignment(model_type), tiny_batch(model_type)
    other = batch | {"input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 39)}
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    if model_type in ("camembert", "roberta", "xlm-roberta"):  # derive their positions from the padding token
        other["position_ids"] = (torch.arange(7) + 1) * batch["attention_mask"]
        batch["position_ids"] = other["position_ids"]
    torch.testing.assert_close(module.loss(batch).total, module.loss(other).total)


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_both_terms_reach_the_gradient(model_type):
    gradients = []
    for product_weight in (0.0, 1.0):
        module = alignment(model_type, product_weight=product_weight)
        module.loss(tiny_batch(model_type)).total.backward()
        gradients.append([ffn.up.weight.grad.clone() for ffn in find_ffns(module.student)[1:]])
    for first_term, both_terms in zip(*gradients, strict=True):
        assert first_term.abs().max() > 0
        assert not torch.allclose(first_term, both_terms)


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_only_the_compressed_ffns_get_a_gradient(model_type):
    module = alignment(model_type, product_weight=1.0)
    module.loss(tiny_batch(model_type)).total.backward()
    trained = {id(p) for ffn in find_ffns(module.student)[1:] for p in ffn.parameters()}
    assert {id(p) for p in module.parameters() if p.requires_grad} == trained
    assert {id(p) for p in module.parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_post_ln_families_train_the_norm_that_closes_the_ffn(model_type):
    module = alignment(model_type)
    assert all(ffn.closing_norm.weight.requires_grad for ffn in find_ffns(module.student)[1:])


def test_labels_in_a_batch_are_ignored():
    module, batch = alignment("bert"), tiny_batch("bert")
    assert torch.equal(module.loss(batch).total, module.loss(batch | {"labels": torch.zeros(4)}).total)


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_only_the_dropout_at_the_output_of_a_compressed_ffn_is_active(model_type):
    module = alignment(model_type)
    expected = {id(ffn.dropout) for ffn in find_ffns(module.student)[1:] if ffn.dropout is not None}
    assert {id(child) for child in module.modules() if child.training} == expected


@pytest.mark.parametrize("model_type", DROPOUT)
def test_the_active_dropout_changes_the_loss_from_pass_to_pass(model_type):
    module = alignment(model_type, dropout=0.3)
    batch = tiny_batch(model_type)
    assert module.loss(batch).total != module.loss(batch).total
    module.eval()
    assert module.loss(batch).total == module.loss(batch).total


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_frozen_neurons_get_a_zero_gradient_and_the_chosen_ones_their_own(model_type):
    chosen = torch.arange(12) % 3 == 0
    masked = alignment(model_type, neuron_masks={1: chosen, 2: ~chosen})
    free = alignment(model_type)
    for module in (masked, free):
        module.loss(tiny_batch(model_type)).total.backward()
        module.on_after_backward()
    for layer, mask in ((1, chosen), (2, ~chosen)):
        ours, theirs = find_ffns(masked.student)[layer], find_ffns(free.student)[layer]
        for (parameter, axis), (reference, _) in zip(ours.neuron_axes(), theirs.neuron_axes(), strict=True):
            gradient, full = parameter.grad.movedim(axis, 0), reference.grad.movedim(axis, 0)
            for mine, whole in zip(gradient.split(12), full.split(12), strict=True):
                assert not mine[~mask].any()
                assert torch.equal(mine[mask], whole[mask])


def test_decay_is_on_matrices_only_and_the_rate_warms_up_and_falls_to_zero():
    module = alignment("bert", lr=1.0, num_steps=4, num_warmup_steps=1, weight_decay=0.1)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for group in optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in module.trained_parameters()}
    rates = []
    for _ in range(5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 1, 2 / 3, 1 / 3, 0])


def test_weight_decay_together_with_masks_is_refused():
    with pytest.raises(AssertionError, match="weight decay would move the masked neurons"):
        alignment("bert", weight_decay=0.1, neuron_masks={1: torch.ones(12), 2: torch.ones(12)})
