import pytest
import torch

from fedpft.align.distill import align_layers, align_neurons, num_warmup_steps
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import LayerAlignConfig, LoraConfig, NeuronAlignConfig, ServerConfig
from fedpft.construct.compress import compress
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import attach_lora, get_adapter, set_adapter
from tests.tiny import EVERY_ROW, tiny_batch, tiny_fm

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode", "ignore:Converting a tensor")
SERVER = ServerConfig(accelerator="cpu")


def public_data(model_type):
    """Return 8 examples with different padding."""
    batch = tiny_batch(model_type, batch_size=8)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    return PublicData(dataset=rows, collate=torch.utils.data.default_collate)


def models(model_type, *, adapter=True, **overrides):
    """Return an FM and its sub-FM, layer 0 whole, both with the same non-trivial adapter."""
    fm = tiny_fm(model_type, **overrides)
    sub_fm, _ = compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
    if not adapter:
        return fm, sub_fm
    fm, sub_fm = attach_lora(fm, LoraConfig(rank=2), seed=0), attach_lora(sub_fm, LoraConfig(rank=2), seed=1)
    vector = get_adapter(fm) + 0.1
    set_adapter(fm, vector)
    set_adapter(sub_fm, vector)
    return fm, sub_fm


def run_layers(model_type, fm, sub_fm, *, seed=0, on_step=None, **kwargs):
    config = LayerAlignConfig(**({"num_steps": 3, "batch_size": 4, "lr": 1e-2} | kwargs))
    context = AlignmentContext(public=public_data(model_type), server=SERVER, seed=seed, on_step=on_step)
    return align_layers(fm, sub_fm, config, context, layers=(1, 2))


def run_neurons(model_type, fm, sub_fm, masks, **kwargs):
    config = NeuronAlignConfig(**({"num_steps": 3, "batch_size": 4, "lr": 1e-2} | kwargs))
    context = AlignmentContext(public=public_data(model_type), server=SERVER, seed=0)
    return align_neurons(fm, sub_fm, config, context, neuron_masks=masks)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def names_of(model, parameters):
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_align_neurons_changes_the_chosen_neurons_and_nothing_else(model_type):
    fm, sub_fm = models(model_type)
    fm_before, before = weights(fm), weights(sub_fm)
    masks = {1: torch.arange(12) % 2 == 0, 2: torch.arange(12) < 5}
    run_neurons(model_type, fm, sub_fm, masks)

    assert not changed(fm, fm_before)
    allowed = names_of(sub_fm, [p for ffn in find_ffns(sub_fm)[1:] for p in ffn.parameters()])
    assert changed(sub_fm, before) == allowed
    name_of = {id(parameter): name for name, parameter in sub_fm.named_parameters()}
    for layer, mask in masks.items():
        for parameter, axis in find_ffns(sub_fm)[layer].neuron_axes():
            old, new = before[name_of[id(parameter)]].movedim(axis, 0), parameter.detach().movedim(axis, 0)
            for now, then in zip(new.split(12), old.split(12), strict=True):
                assert torch.equal(now[~mask], then[~mask])
                assert (now[mask] != then[mask]).reshape(int(mask.sum()), -1).any(dim=1).all()


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_align_layers_lowers_the_loss_and_changes_only_compressed_ffns(model_type):
    fm, sub_fm = models(model_type, adapter=False)
    fm_before, before = weights(fm), weights(sub_fm)
    report = run_layers(model_type, fm, sub_fm, num_steps=12, batch_size=8)
    assert report.last_loss < report.first_loss
    assert not changed(fm, fm_before)
    assert changed(sub_fm, before) == names_of(sub_fm, [p for ffn in find_ffns(sub_fm)[1:] for p in ffn.parameters()])


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_models_come_back_as_they_were_handed_in(model_type):
    fm, sub_fm = models(model_type)
    sub_fm.train()
    next(sub_fm.modules()).eval()  # a mixture
    states = [
        ({name: p.requires_grad for name, p in m.named_parameters()}, {n: c.training for n, c in m.named_modules()})
        for m in (fm, sub_fm)
    ]
    run_neurons(model_type, fm, sub_fm, {1: torch.ones(12, dtype=torch.bool)})
    for model, (flags, modes) in zip((fm, sub_fm), states, strict=True):
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert {name: child.training for name, child in model.named_modules()} == modes
        assert all(p.grad is None for p in model.parameters())
        assert not any(child._forward_hooks for child in model.modules())


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_during_a_run_only_the_dropout_of_compressed_ffns_is_active(model_type):
    fm, sub_fm = models(model_type)
    fm.train()
    sub_fm.train()
    expected = {id(ffn.dropout) for ffn in find_ffns(sub_fm)[1:] if ffn.dropout is not None}
    active = []

    def look(*_):
        active.append({id(child) for model in (fm, sub_fm) for child in model.modules() if child.training})

    run_layers(model_type, fm, sub_fm, on_step=look)
    assert active == [expected] * 3


def test_result_depends_on_the_seed_and_not_on_the_global_generator():
    results = []
    for seed, global_seed in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(global_seed)
        fm, sub_fm = models("bert", adapter=False, hidden_dropout_prob=0.1)
        run_layers("bert", fm, sub_fm, seed=seed)
        results.append(weights(sub_fm))
    first, second, other = results
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_alignment_leaves_the_global_generator_alone():
    fm, sub_fm = models("bert", adapter=False, hidden_dropout_prob=0.1)
    state = torch.get_rng_state()
    run_layers("bert", fm, sub_fm)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_single_step_is_not_run_at_rate_zero():
    fm, sub_fm = models("bert")
    before = weights(sub_fm)
    run_neurons("bert", fm, sub_fm, {1: torch.ones(12, dtype=torch.bool)}, num_steps=1, warmup_ratio=0.9)
    assert changed(sub_fm, before)


def test_warm_up_is_rounded_down():
    assert [num_warmup_steps(n, 0.048) for n in (1, 20, 21, 1000)] == [0, 0, 1, 48]


def test_every_step_is_reported():
    fm, sub_fm = models("bert", adapter=False)
    steps = []
    report = run_layers("bert", fm, sub_fm, on_step=lambda done, total, metrics: steps.append((done, total, metrics)))
    assert [(done, total) for done, total, _ in steps] == [(1, 3), (2, 3), (3, 3)]
    assert (report.first_loss, report.last_loss) == (steps[0][2]["loss"], steps[-1][2]["loss"])


def test_few_public_examples_are_gone_through_again_each_once_a_pass():
    fm, sub_fm = models("bert", adapter=False)
    seen = []
    public = public_data("bert")
    watched = PublicData(
        dataset=public.dataset,
        collate=lambda rows: seen.extend(id(row["input_ids"]) for row in rows) or public.collate(rows),
    )
    config = LayerAlignConfig(num_steps=4, batch_size=4)
    align_layers(fm, sub_fm, config, AlignmentContext(public=watched, server=SERVER, seed=0), layers=(1, 2))
    measured, first, second = seen[:8], seen[8:16], seen[16:]
    assert len(set(measured)) == len(set(first)) == len(set(second)) == 8
    assert first != second


def test_gradients_are_clipped_after_the_frozen_neurons_are_zeroed(monkeypatch):
    fm, sub_fm = models("bert")
    norms = []
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    mask = torch.zeros(12, dtype=torch.bool).index_fill(0, torch.tensor([3]), True)
    run_neurons("bert", fm, sub_fm, {1: mask, 2: mask}, max_grad_norm=1e-3)
    assert norms == pytest.approx([1e-3] * 3, rel=1e-3)
