import pytest

from fedpft.config import ConfigError, doubtful_settings, load_config, reported_name
from fedpft.config.unread import UNREAD

NO_EFFECT = "no effect with method.name = "


def doubts(*overrides):
    return doubtful_settings(load_config(None, overrides))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "fedpft"),
        (["align.layers.kind=none"], "fedpft_d"),
        (["align.neurons.kind=none"], "fedpft_b"),
        (["align.layers.kind=none", "align.neurons.kind=none"], "fedpft_n"),
        (["align.layers.kind=closed_form", "align.neurons.kind=closed_form"], "fedpft"),
        (["align.layers.kind=closed_form+distill", "align.neurons.kind=none"], "fedpft_b"),
        (["method.name=full", "align.layers.kind=none"], "full"),
        (["method.name=fedot", "align.layers.kind=none", "align.neurons.kind=none"], "fedot"),
    ],
)
def test_ablations_are_named_by_their_settings(overrides, name):
    config = load_config(None, overrides)
    assert reported_name(config.method, config.align) == name


@pytest.mark.parametrize("name", UNREAD)
def test_of_defaults_no_method_says_anything(name):
    assert not any(NO_EFFECT in line for line in doubts(f"method.name={name}"))


@pytest.mark.parametrize(
    ("name", "overrides", "keys"),
    [
        ("fedpft", ["method.adapter_layers=1", "method.kept_layers=4"], "method.adapter_layers, method.kept_layers"),
        ("fedot", ["method.scorer=random", "method.kept_layers=5"], "method.scorer"),
        ("fedot", ["align.layers.refit=bias", "align.neurons.lr=1"], "align.layers.refit, align.neurons.lr"),
        ("full", ["method.kept_layers=5", "align.layers.num_steps=3"], "method.kept_layers, align.layers.num_steps"),
        ("full", ["evaluation.fidelity_examples=3", "lora.rank=3"], "evaluation.fidelity_examples"),
    ],
)  # fmt: skip
def test_settings_that_a_method_does_not_read_are_named_in_one_line(name, overrides, keys):
    assert [line for line in doubts(f"method.name={name}", *overrides) if NO_EFFECT in line] == [
        f"{NO_EFFECT}{name}: {keys}"
    ]


def test_an_interval_of_alignment_beyond_the_run_is_doubted_only_where_neurons_are_aligned():
    overrides = ("federated.rounds=4", "align.neurons.interval=10")
    assert [any("interval = 10" in line for line in doubts(f"method.name={name}", *overrides)) for name in UNREAD] == [
        name == "fedpft" for name in UNREAD
    ]


def test_an_alignment_of_no_emulator_is_doubted():
    empty = ("method.name=fedot", "method.adapter_layers=2", "method.kept_layers=4")
    assert any("there is no emulator to align" in line for line in doubts(*empty))
    for overrides in ((*empty, "align.layers.kind=none"), (*empty, "method.kept_layers=5"), ("method.kept_layers=4",)):
        assert not any("emulator" in line for line in doubts(*overrides))


@pytest.mark.parametrize("kind", ["closed_form", "closed_form+distill"])
def test_an_emulator_cannot_be_aligned_in_closed_form(kind):
    with pytest.raises(ConfigError) as error:
        load_config(None, ["method.name=fedot", f"align.layers.kind={kind}"])
    assert str(error.value).startswith(f"align.layers.kind: found {kind!r}, allowed: distill or none with method.name")
    assert "\n" not in str(error.value)
    load_config(None, ["method.name=full", f"align.layers.kind={kind}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.adapter_layers=0"], "method.adapter_layers: found 0, allowed: a number > 0"),
        (["method.kept_layers=3"], "method.kept_layers: found 3, allowed: null or an integer >= 2 * adapter_"),
        (["method.name=fedavg"], "method.name: "),
    ],
)  # fmt: skip
def test_numbers_of_layers_out_of_range_are_one_line(overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
