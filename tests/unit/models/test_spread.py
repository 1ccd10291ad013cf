import copy
import pickle

import pytest
import torch

from fedpft.config import Config, ConfigError, FMConfig, LoraConfig, PoolConfig, ServerConfig
from fedpft.config.data import PretrainConfig
from fedpft.construct.compress import compress
from fedpft.construct.layer_drop import LayerMap, drop_layers
from fedpft.devices import is_spread
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import attach_lora, get_adapter, set_adapter
from fedpft.models.spread import gpu_of_layers, share_out, spread, spread_over_gpus
from fedpft.models.weights import pack_model
from fedpft.trainer import gpus_of_fm, server_fabric
from tests.pretend_cuda import pretended_cuda
from tests.tiny import FAMILIES, OPT_350M, WITHOUT_CLASSIFIER, tiny_batch, tiny_fm, tiny_lm

GPUS = [torch.device("cuda", index) for index in range(2)]
LAYERS = [GPUS[0], GPUS[1], GPUS[1]]


def devices(model):
    """Return where each layer lies, and all else."""
    layers = [ffn.layer for ffn in find_ffns(model)]
    inner = {id(parameter) for layer in layers for parameter in layer.parameters()}
    of_layers = [{parameter.device for parameter in layer.parameters()} for layer in layers]
    return of_layers, {parameter.device for parameter in model.parameters() if id(parameter) not in inner}


def answers_and_gradients(model, batch):
    """Return the logits and the gradient of their square in every parameter, on the CPU."""
    logits = model(**batch).logits
    logits.square().sum().backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().cpu(), gradients


def in_float64(model, batch):
    return model.double(), {name: v.double() if v.is_floating_point() else v for name, v in batch.items()}


@pytest.mark.parametrize(
    ("family", "make", "fields"),
    [
        *((family, tiny_fm, {}) for family in FAMILIES),
        *((family, tiny_lm, {}) for family in ("llama", "gpt2", "gemma3_text", *WITHOUT_CLASSIFIER)),
        ("opt", tiny_lm, OPT_350M),
    ],
)
def test_a_model_over_two_gpus_says_and_learns_what_it_does_on_one(family, make, fields):
    model, batch = in_float64(make(family, **fields), tiny_batch(family))
    expected, gradients = answers_and_gradients(copy.deepcopy(model), batch)
    with pretended_cuda(2) as gpus:
        spread(model, LAYERS, GPUS[0])
        assert devices(model) == ([{place} for place in LAYERS], {GPUS[0]})
        moved = {name: value.to("cuda") for name, value in batch.items()}
        found, on_gpus = answers_and_gradients(model, moved)
    assert gpus.violations == []
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(on_gpus, gradients)


def test_without_hooks_a_model_over_two_gpus_would_mix_them():
    """What the tests above rest on: the pretended GPUs see it."""
    model = tiny_fm("bert")
    with pretended_cuda(2) as gpus:
        find_ffns(model.to("cuda"))[1].layer.to(GPUS[1])
        batch = {name: value.to("cuda") for name, value in tiny_batch("bert").items()}
        with pytest.raises(RuntimeError, match=r"cuda:0, cuda:1|cuda:1, cuda:0"):
            model(**batch)
    assert len(gpus.violations) == 1


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_copy_lies_beside_its_model_whether_its_neurons_or_layers_are_cut(family):
    fm = tiny_fm(family)
    with pretended_cuda(2) as gpus:
        spread(fm, LAYERS, GPUS[0])
        sub_fm, _ = compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
        proxy = drop_layers(fm, LayerMap(kept=(0, 2), adapter_layers=1))
        assert devices(sub_fm) == devices(fm)
        assert devices(proxy) == ([{GPUS[0]}, {GPUS[1]}], {GPUS[0]})
        batch = {name: value.to("cuda") for name, value in tiny_batch(family).items()}
        for model in (sub_fm, proxy):
            assert model(**batch).logits.device == GPUS[0]
    assert gpus.violations == []


@pytest.mark.parametrize(
    ("family", "make", "fields", "targets"),
    [
        ("bert", tiny_fm, {}, ("query", "dense")),  # the pooler's, too
        ("llama", tiny_lm, {}, ("all-linear",)),
        ("opt", tiny_fm, OPT_350M, ("q_proj", "project_out")),  # what follows the last layer
    ],
)
def test_an_adapter_lies_where_its_weights_are(family, make, fields, targets):
    model, lora = make(family, **fields), LoraConfig(rank=2, target_modules=targets)
    whole = attach_lora(copy.deepcopy(model), lora, seed=0)
    with pretended_cuda(2) as gpus:
        spread(model, LAYERS, GPUS[0])
        adapted = attach_lora(model, lora, seed=0)
        assert devices(adapted) == ([{place} for place in LAYERS], {GPUS[0]})
        drawn = torch.randn(len(get_adapter(whole)), generator=torch.Generator().manual_seed(0)).numpy()
        set_adapter(adapted, drawn)
        assert (get_adapter(adapted) == drawn).all()
        adapted(**{name: value.to("cuda") for name, value in tiny_batch(family).items()})
    assert gpus.violations == []


def test_what_clients_get_of_a_model_over_two_gpus_is_what_they_get_of_it_on_one():
    model = attach_lora(tiny_fm("bert"), LoraConfig(rank=2), seed=0)
    before = pack_model(model)
    with pretended_cuda(2) as gpus:
        spread(model, LAYERS, GPUS[0])
        packed = pack_model(model)
        sent = pickle.dumps(packed)
    assert gpus.violations == []
    assert gpus.pickled == 0
    assert len(sent) == len(pickle.dumps(before)), "no hook travels"
    assert packed.weights.keys() == before.weights.keys()
    assert all((packed.weights[name] == array).all() for name, array in before.weights.items())
    assert all(parameter.is_meta for parameter in packed.skeleton.parameters())


def test_parameters_stay_the_same_objects_and_tied_ones_stay_tied():
    model = tiny_lm("gpt2", tie_word_embeddings=True)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pretended_cuda(2):
        spread(model, LAYERS, GPUS[0])
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_servers_fabric_moves_a_model_unless_it_lies_on_several_gpus():
    whole, several = tiny_fm("bert"), tiny_fm("bert")
    with pretended_cuda(2):
        fabric = server_fabric(ServerConfig())
        spread(several, LAYERS, GPUS[0])
        assert not is_spread(whole)
        assert is_spread(several)
        for model in (whole, several):
            fabric.to_device(model)
        assert devices(whole) == ([{GPUS[0]}] * 3, {GPUS[0]})
        assert devices(several) == ([{place} for place in LAYERS], {GPUS[0]})


@pytest.mark.parametrize(
    ("rest", "layers", "room", "expected"),
    [
        (0, [1, 1, 1, 1], [10, 10], [0, 0, 1, 1]),
        (2, [1, 1, 1, 1], [10, 10], [0, 1, 1, 1]),  # embeddings and head take their share of the first
        (8, [1, 1], [10, 10], [1, 1]),
        (0, [1] * 6, [20, 10], [0, 0, 0, 0, 1, 1]),
        (0, [1] * 6, [10, 10, 10], [0, 0, 1, 1, 2, 2]),
        (1, [3, 3], [4, 3], [0, 1]),
        (1, [1, 1], [10], [0, 0]),
        (0, [5, 5, 5], [6, 6], None),
        (7, [1, 1], [6, 6], None),
    ],
)
def test_layers_are_shared_out_in_order_to_the_same_part_of_every_gpu(rest, layers, room, expected):
    assert share_out(rest, layers, room) == expected


def test_an_fm_is_spread_by_what_is_free_and_a_line_says_where_its_layers_lie():
    fm = tiny_fm("bert", num_hidden_layers=4)
    with pretended_cuda(2, free=[3 * 2**20, 2**20]):
        assert gpu_of_layers(fm, 2) == [0, 0, 0, 1]
        assert spread_over_gpus(fm, 2) == "layers 0 to 2 on GPU 0, layers 3 to 3 on GPU 1, all else on GPU 0"
        assert devices(fm)[0] == [{GPUS[0]}] * 3 + [{GPUS[1]}]


def test_an_fm_that_all_gpus_together_do_not_hold_is_refused_in_a_line():
    fm = tiny_fm("bert").to("meta")
    line = r"^fm.device_map: found auto, .* 1e-06 \+ 1e-06 GB free, allowed: .*$"
    with pretended_cuda(2, free=[1000, 1000]), pytest.raises(ConfigError, match=line):
        gpu_of_layers(fm, 2)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"server": ServerConfig(accelerator="cpu")}, "fm.device_map.*server.accelerator = cpu"),
        ({"server": ServerConfig(devices=2)}, "fm.device_map.*server.devices = 2"),
        ({"server": ServerConfig(num_gpus=0.5)}, "server.num_gpus: found 0.5.*whole number"),
        ({"pool": PoolConfig(gpus_per_actor=1)}, "server.num_gpus: found 'auto'.*whole number"),
        ({"pool": PoolConfig(gpus_per_actor="auto")}, "server.num_gpus: found 'auto'.*whole number"),
    ],
)
def test_what_an_fm_over_several_gpus_cannot_be_combined_with_is_refused_with_the_reason(sections, line):
    Config(**sections)
    with pytest.raises(ConfigError, match=line):
        Config(fm=FMConfig(device_map="auto"), **sections)


def test_an_fm_that_is_pre_trained_here_is_not_spread():
    settings = {"path": "scratch://vit", "pretrain": PretrainConfig(num_epochs=1)}
    Config(fm=FMConfig(**settings))
    with pytest.raises(ConfigError, match=r"fm.device_map.*fm.pretrain.num_epochs > 0"):
        Config(fm=FMConfig(**settings, device_map="auto"))


def test_a_claim_of_whole_gpus_can_be_combined_with_actors_that_have_theirs():
    Config(fm=FMConfig(device_map="auto"), server=ServerConfig(num_gpus=4), pool=PoolConfig(gpus_per_actor=0.5))


@pytest.mark.parametrize(
    ("seen", "claimed", "expected"),
    [(1, "auto", 0), (2, "auto", 2), (3, 0, 3), (3, 2, 2), (3, 1, 0), (2, 4, 2)],
)
def test_an_fm_is_spread_over_the_gpus_that_are_claimed_or_all_that_are_seen(seen, claimed, expected):
    server = ServerConfig(num_gpus=claimed)
    with pretended_cuda(seen):
        assert gpus_of_fm(Config(fm=FMConfig(device_map="auto"), server=server)) == expected
        assert gpus_of_fm(Config(server=server)) == 0


def test_without_a_gpu_an_fm_stays_whole():
    assert gpus_of_fm(Config(fm=FMConfig(device_map="auto"))) == 0
