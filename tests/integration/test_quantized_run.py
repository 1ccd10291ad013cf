"""Whole runs whose clients hold frozen weights in few bits."""

import json
import sys

import pytest
from safetensors.torch import load_file

from fedpft.config import ConfigError, load_config
from fedpft.federated.pool import SequentialPool
from fedpft.models import quantized_linear
from fedpft.models.patches import HeldWeights, num_bytes
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.run.resume import go_on
from tests.integration.test_bfloat16 import StopBefore, numbers, tensors
from tests.tiny import tiny_causal_run, tiny_text_run

SETTINGS = ["pool.quantize=nf4", "federated.rounds=3", "evaluation.interval=3", "evaluation.fidelity_examples=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_text_run(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Run once, with an alignment of neurons after round 2; return config, folder and the sizes of what was sent."""
    folder, sent = tmp_path_factory.mktemp("run") / "out", {}
    config = load_config(None, [*data, *SETTINGS, f"output_dir={folder}"])
    with pytest.MonkeyPatch.context() as patch:

        def broadcast(pool, package, original=SequentialPool.broadcast):
            sent["package"] = package.proxy
            original(pool, package)

        def replace_weights(pool, weights, original=SequentialPool.replace_weights):
            sent["changes"] = weights
            return original(pool, weights)

        patch.setattr(SequentialPool, "broadcast", broadcast)
        patch.setattr(SequentialPool, "replace_weights", replace_weights)
        run(config)
    return config, folder, sent


def test_clients_get_codes_and_the_server_keeps_its_weights_in_full(finished):
    _, folder, sent = finished
    assert any(name.endswith(".codes") for name in sent["package"].weights)
    assert any(name.endswith("intermediate.dense.codes") for name in sent["changes"])
    assert not any(name.endswith("dense.weight") for name in sent["changes"])
    for file in ("sub_fm/model", "adapter/adapter_model", "sub_fm_adapter/adapter_model"):
        assert {tensor.dtype.is_floating_point for tensor in load_file(folder / f"{file}.safetensors").values()} == {
            True
        }


def test_what_is_sent_after_an_alignment_is_counted_in_codes(finished):
    _, folder, sent = finished
    before, after = (numbers(folder)[i]["comm/bytes_down"] for i in (1, 2))
    assert after - before == 3 * num_bytes(HeldWeights(sent["package"].weights).changes(sent["changes"]))


def test_it_is_near_the_run_in_full_and_another_one(data, finished, tmp_path):
    config = load_config(None, [*data, *SETTINGS, "pool.quantize=none", f"output_dir={tmp_path / 'out'}"])
    run(config)
    expected, found = (numbers(folder) for folder in (tmp_path / "out", finished[1]))
    for one, other in zip(expected, found, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=0.05)
        assert other["train_loss"] != one["train_loss"]
    environments = [json.loads((f / "result.json").read_text())["environment"] for f in (tmp_path / "out", finished[1])]
    assert environments[1].keys() - environments[0].keys() == {"clients' frozen weights by"}


def test_a_run_that_was_stopped_after_an_alignment_goes_on_to_the_same_bits(data, finished, tmp_path):
    config = load_config(None, [*data, *SETTINGS, f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(KeyboardInterrupt):
        run(config, StopBefore(3))
    go_on(config)
    assert tensors(tmp_path / "out") == tensors(finished[1])
    assert numbers(tmp_path / "out") == numbers(finished[1])


def test_a_run_goes_on_with_no_other_kind(data, finished):
    other = load_config(None, [*data, *SETTINGS, "pool.quantize=int8", f"output_dir={finished[1]}"])
    with pytest.raises(ConfigError, match=r"pool\.quantize: .*nf4.* -> .*int8"):
        go_on(other)


@pytest.mark.parametrize(
    "settings",
    [
        ["method={name: fedot, adapter_layers: 1, kept_layers: 2}", "align.layers.kind=none"],
        pytest.param(["method.name=full", "federated.lora_aggregation=ffa"], marks=pytest.mark.cluster),
        pytest.param(
            ["lora.target_modules=[all-linear]", "align.neurons.kind=closed_form", "pool.clients_per_batch=3"],
            marks=pytest.mark.cluster,
        ),
    ],
)
def test_other_methods_and_lora_on_ffns_run_so_too(settings, tmp_path):
    more = ["federated.rounds=2", "align.neurons.interval=1", "pool.quantize=int8"]
    result = run(load_config(None, [*tiny_causal_run(tmp_path), *more, *settings])).result
    assert result["rounds"] == 2
    assert numbers(tmp_path / "out")[-1]["train_loss"] > 0


def test_a_plan_counts_codes_where_clients_hold_them(data):
    ray = ["pool.kind=ray", "pool.actors=2", "align.neurons.kind=none"]
    plans = [plan(load_config(None, [*data, *SETTINGS, *ray, f"pool.quantize={kind}"])) for kind in ("none", "nf4")]
    full, few = ({part["holder"]: part["num_bytes"] for part in one["memory"]} for one in plans)
    store = "object store of each node"
    assert 0.3 * full[store] < few[store] < 0.9 * full[store]
    (line,) = [note for note in plans[1]["notes"] if "pool.quantize" in note]
    assert line.startswith("pool.quantize = nf4: of ")
    assert not [note for note in plans[0]["notes"] if "pool.quantize" in note]
    steps = [one["local_step"] for one in plans]
    assert steps[1]["memory_bytes_sub_fm"] < steps[0]["memory_bytes_sub_fm"]
    assert steps[1]["flops_sub_fm"] == steps[0]["flops_sub_fm"]


@pytest.mark.parametrize("start", [run, plan])
def test_without_the_library_nothing_starts(start, data, tmp_path, monkeypatch):
    for cached in (quantized_linear._library, quantized_linear.check_quantizer):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = load_config(None, [*data, *SETTINGS, f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(ConfigError, match=r"^pool\.quantize: .*not installed.* pip install 'fedpft\[quantize\]'$"):
        start(config)
    assert not (tmp_path / "out").exists()


def test_nobody_else_pays_for_it(data, tmp_path, monkeypatch):
    def fail(*args):
        raise AssertionError("bitsandbytes is not needed")

    monkeypatch.setattr(quantized_linear, "_library", fail)
    settings = [*data, "federated.rounds=1", "evaluation.fidelity_examples=0", f"output_dir={tmp_path}/out"]
    assert run(load_config(None, settings)).result["rounds"] == 1
