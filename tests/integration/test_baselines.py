"""The baselines run as FedPFT does: the same files, resumed and on Ray with the same bits."""

import json
from functools import cache
from io import StringIO

import pytest
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForSequenceClassification

from fedpft.config import ConfigError, load_config
from fedpft.evaluation.evaluate import evaluate
from fedpft.federated.observer import SilentObserver
from fedpft.report.plan import print_plan
from fedpft.report.screen import Screen, print_result
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.run.resume import go_on
from fedpft.storage.checkpoint import load_newest
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_fm, tiny_text_run, tiny_vision_run

FEDOT = ["method.name=fedot", "method.adapter_layers=1", "method.kept_layers=3"]
FEDOT += ["method.plug_in=distill", "align.adapter.num_steps=3", "align.adapter.batch_size=4"]
FEDPROXY = ["method.name=fedproxy", "method.kept_layers=3", "federated.aggregator.kind=h_ties"]
FEDPROXY += ["method.plug_in=distill", "align.adapter.num_steps=3", "align.adapter.batch_size=4"]
METHODS = {"full": ["method.name=full"], "fedot": FEDOT, "fedproxy": FEDPROXY}
DEPTH = 4
MEASURED = ("seconds", "utilisation", "utilisation_mean", "utilisation_min", "memory", "cached")


class Stop(BaseException):
    pass


class StopBeforeRound3(SilentObserver):
    def round_started(self, round_index, num_rounds, client_ids):
        if round_index == 3:
            raise Stop


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    made = [*tiny_text_run(folder), "evaluation.interval=2"]
    tiny_fm("bert", num_hidden_layers=DEPTH).save_pretrained(folder / "fm")
    return made


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    """Return a function that runs a method sequentially, once for all tests; it gives config and folder."""

    @cache
    def run_once(name):
        out = tmp_path_factory.mktemp(name) / "out"
        config = load_config(None, [*settings, *METHODS[name], f"output_dir={out}"])
        run(config)
        return config, out

    return run_once


IN_THE_LONG_SUITE = ("fedot", "full")


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.cluster] * (name in IN_THE_LONG_SUITE)) for name in METHODS]
)
def finished(request, done):
    return request.param, *done(request.param)


def outcome(folder):
    """Return what a run leaves but for times, places and memory."""

    def lasting(record):
        return {k: lasting(v) if isinstance(v, dict) else v for k, v in record.items() if not k.endswith(MEASURED)}

    weights = {
        name: (folder / name).read_bytes()
        for name in ("adapter/adapter_model.safetensors", "sub_fm/model.safetensors")
        if (folder / name).exists()
    }
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    rounds = [{k: v for k, v in lasting(line).items() if not k.startswith("memory/")} for line in rounds]
    result = lasting(json.loads((folder / "result.json").read_text()))
    return weights, rounds, {k: v for k, v in result.items() if k not in ("peak_memory_bytes", "actors")}


def accuracy(config, wrap):
    fm, data = load_fm_and_data(config, SilentProgress())
    scores = evaluate(wrap(fm), data.evaluation, data.collate, metrics=data.metrics, batch_size=7, server=config.server)
    return scores["accuracy"]


def test_stopped_and_resumed_is_the_straight_run(finished, settings, tmp_path):
    name, _, out = finished
    config = load_config(None, [*settings, *METHODS[name], f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(Stop):
        run(config, StopBeforeRound3())
    assert load_newest(tmp_path / "out/checkpoints").rounds_done == 2
    go_on(config)
    assert outcome(tmp_path / "out") == outcome(out)


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_two_actors_give_the_bits_of_the_sequential_run(done, settings, tmp_path):
    ray = ["pool.kind=ray", "pool.actors=2", f"output_dir={tmp_path / 'out'}"]
    run(load_config(None, [*settings, *FEDOT, *ray]))
    assert outcome(tmp_path / "out") == outcome(done("fedot")[1])


def test_the_adapter_opens_on_the_fm_with_peft_and_gives_the_result(finished):
    _, config, out = finished
    result = json.loads((out / "result.json").read_text())
    assert accuracy(config, lambda fm: PeftModel.from_pretrained(fm, str(out / "adapter"))) == result["fm"]
    assert result["untuned_fm"] == accuracy(config, lambda fm: fm)


def test_the_result_names_the_method_and_counts_its_layers(finished):
    name, config, out = finished
    result = json.loads((out / "result.json").read_text())
    planned = plan(config, counts_memory=False)
    a_layer = result["num_transformer_params_fm"] // DEPTH
    assert result["method"] == planned["method"] == name
    assert result["num_transformer_params_sub_fm"] == a_layer * {"full": 4, "fedot": 3, "fedproxy": 3}[name]
    for key in (
        "num_params_sub_fm",
        "num_transformer_params_fm",
        "num_transformer_params_sub_fm",
        "num_params_adapter",
    ):
        assert planned[key] == result[key]
    lora_layers = {"full": 4, "fedot": 2, "fedproxy": 3}[name]
    assert result["num_params_adapter"] == lora_layers * 4 * 2 * (16 + 16) + 2 * 16 + 2


def test_fedot_leaves_a_proxy_that_opens_with_plain_transformers_and_a_meter_of_three_layers(done):
    _, out = done("fedot")
    opened = AutoModelForSequenceClassification.from_pretrained(out / "sub_fm")
    assert opened.config.num_hidden_layers == 3
    record = json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])
    first, emulator, last = record["fidelity"]["gradient_cosine"]
    assert (first is None, emulator, last is None) == (False, None, False)
    result = json.loads((out / "result.json").read_text())
    assert result["fidelity"]["leakage_gap"] == pytest.approx(result["fm"] - result["sub_fm"], abs=1e-6)
    assert "align_loss_last" in result["construction"], "the emulator was distilled"


def test_a_proxy_of_all_layers_with_an_adapter_in_all_is_the_full_model(done, settings, tmp_path):
    everything = ["method.name=fedot", f"method.adapter_layers={DEPTH // 2}", f"method.kept_layers={DEPTH}"]
    run(load_config(None, [*settings, *everything, f"output_dir={tmp_path / 'out'}"]))
    outcomes = {}
    for name, folder in {"fedot": tmp_path / "out", "full": done("full")[1]}.items():
        weights, rounds, result = outcome(folder)
        losses = [(line["train_loss"], line.get("fm")) for line in rounds]
        outcomes[name] = weights["adapter/adapter_model.safetensors"], losses, result["fm"], result["sub_fm"]
    assert outcomes["fedot"] == outcomes["full"]


def test_of_the_full_model_nothing_is_called_a_sub_fm_and_nothing_is_compared(settings, tmp_path, monkeypatch):
    scored = []
    real = evaluate
    monkeypatch.setattr("fedpft.federated.evaluation.evaluate", lambda *a, **k: scored.append(1) or real(*a, **k))
    monkeypatch.setattr("fedpft.federated.evaluation.measure_fidelity", None)
    config = load_config(None, [*settings, *METHODS["full"], f"output_dir={tmp_path / 'out'}"])
    console = Console(file=StringIO(), width=100)
    with Screen(console) as screen:
        finished = run(config, screen)
    print_result(console, finished.result, {})
    text = console.file.getvalue()
    print_plan(console, plan(config, counts_memory=False) | {"own_settings": {}})
    page = (tmp_path / "out/report.html").read_text()
    shown = [console.file.getvalue(), page[:4000], page[-20_000:]]  # plotly's own program lies between
    assert not any(word in part.lower() for part in shown for word in ("sub-fm", "fidelity", "gradient", "leakage"))
    assert "round 2/4" in text
    assert "accuracy, plugged-in FM" in text
    assert len(scored) == 3, "before round 1, after rounds 2 and 4"
    assert finished.result["sub_fm"] == finished.result["fm"]
    assert not (tmp_path / "out/sub_fm").exists()
    assert "sub_fm" not in finished.locations


def test_a_proxy_of_fewer_layers_runs_on_images(tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    method = ["method.name=fedot", "method.adapter_layers=1"]
    result = run(load_config(None, [*tiny_vision_run(tmp_path), *method, "federated.rounds=1"])).result
    assert result["num_transformer_params_sub_fm"] / result["num_transformer_params_fm"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.kept_layers=5", "method.kept_layers: found 5, allowed: 2 to 4, from 2 * adapter_layers to the FM's"),
        ("method.adapter_layers=3", "method.adapter_layers: found 3, allowed: 1 to 2, half of the FM's layers"),
    ],
)
def test_layers_that_the_fm_does_not_have_are_one_line_in_plan_and_run(settings, override, message):
    overrides = ["method.name=fedot", "method.adapter_layers=1", override]
    for action in (plan, run):
        with pytest.raises(ConfigError) as error:
            action(load_config(None, [*settings, *overrides]))
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)
