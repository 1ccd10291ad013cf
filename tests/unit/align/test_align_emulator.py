import pytest
import torch

from fedpft.align.distill import align_emulator
from fedpft.align.emulator import EmulatorModule
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import LayerAlignConfig, ServerConfig
from fedpft.construct.layer_drop import choose_layers, drop_layers
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_ffns
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode", "ignore:Converting a tensor")
DEPTH = {"distilbert": "n_layers", "gpt2": "n_layer"}


def models(model_type, **overrides):
    """Return an FM of 6 layers, its proxy of the layers 0, 1, 4, 5 and their map; 1 and 2 are the emulator."""
    fm = tiny_fm(model_type, **{DEPTH.get(model_type, "num_hidden_layers"): 6}, **overrides)
    layer_map = choose_layers(6, adapter_layers=1, kept_layers=4)
    assert layer_map.kept == (0, 1, 4, 5)
    return fm, drop_layers(fm, layer_map), layer_map


def align(model_type, fm, proxy, layer_map, *, seed=0, on_step=None, **settings):
    batch = tiny_batch(model_type, batch_size=8)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    public = PublicData(dataset=rows, collate=torch.utils.data.default_collate)
    config = LayerAlignConfig(**({"num_steps": 3, "batch_size": 4, "lr": 1e-2} | settings))
    context = AlignmentContext(public=public, server=ServerConfig(accelerator="cpu"), seed=seed, on_step=on_step)
    return align_emulator(fm, proxy, config, context, layers=layer_map.emulator, target=layer_map.end_of_middle)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_the_loss_compares_the_emulators_output_with_the_end_of_the_fms_middle(model_type):
    fm, proxy, layer_map = models(model_type)
    batch = tiny_batch(model_type)
    module = EmulatorModule(fm, proxy, layers=layer_map.emulator, target=layer_map.end_of_middle, lr=1.0, num_steps=1)
    with torch.no_grad():
        loss = module.eval().training_step(batch, 0)
        with layer_outputs([find_ffns(fm)[4].layer, find_ffns(proxy)[2].layer]) as outputs:
            fm(**batch)
            proxy(**batch)
    real = batch.get("attention_mask", torch.ones(outputs[0].shape[:2])).bool()
    target, found = outputs[0][real], outputs[1][real]
    assert float(loss) == pytest.approx(float((target - found).square().sum() / target.square().sum()), rel=1e-5)
    assert float(loss) > 1e-4


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_the_whole_emulator_and_nothing_else_changes_and_the_loss_falls(model_type):
    fm, proxy, layer_map = models(model_type)
    before = weights(fm), weights(proxy)
    report = align(model_type, fm, proxy, layer_map, num_steps=12, batch_size=8)
    assert report.last_loss < report.first_loss
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in fm.state_dict().items())
    changed = {name for name, tensor in proxy.state_dict().items() if not torch.equal(tensor, before[1][name])}
    emulator = {id(p) for layer in (1, 2) for p in find_ffns(proxy)[layer].layer.parameters()}
    trained = {name for name, parameter in proxy.named_parameters() if id(parameter) in emulator}
    no_effect = {name for name in trained if name.endswith(("key.bias", "k_lin.bias", "k_proj.bias"))}
    assert trained - no_effect <= changed <= trained, "a key's bias adds the same to all logits of a query"


def test_only_the_emulators_dropout_is_active_and_the_flags_come_back():
    fm, proxy, layer_map = models("bert")
    expected = {id(module) for layer in (1, 2) for module in find_ffns(proxy)[layer].layer.modules()}
    flags = [parameter.requires_grad for parameter in proxy.parameters()]
    active = []

    def look(*_):
        active.append({id(child) for model in (fm, proxy) for child in model.modules() if child.training})

    align("bert", fm, proxy, layer_map, on_step=look)
    assert active == [expected] * 3
    assert [parameter.requires_grad for parameter in proxy.parameters()] == flags
    assert not any(module.training for model in (fm, proxy) for module in model.modules())


def test_the_result_depends_on_the_seed_and_not_on_the_global_generator():
    results = []
    for seed, global_seed in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(global_seed)
        fm, proxy, layer_map = models("bert", hidden_dropout_prob=0.1)
        align("bert", fm, proxy, layer_map, seed=seed)
        results.append(weights(proxy))
    first, second, other = results
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
