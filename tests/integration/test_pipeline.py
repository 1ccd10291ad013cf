import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification

from fedpft.config import ConfigError, dump_config, load_config
from fedpft.config.sweep import SweepConfig
from fedpft.config.trials import planned_trials
from fedpft.evaluation.evaluate import evaluate
from fedpft.federated.adversary.poison import with_trigger
from fedpft.federated.broadcast import local_settings
from fedpft.federated.sampling import draw_attendance
from fedpft.models.loading import load_sub_fm
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.sweeps.sweep import outcome, play_trial
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_text_run, tiny_vision_run

RESULT_KEYS = {
    "name", "seed", "method", "metric", "metric_goal", "metrics",
    "untuned_fm", "sub_fm", "fm", "rounds", "num_params_fm", "num_params_sub_fm", "num_params_adapter",
    "bytes_up_per_client_round", "bytes_down_per_client_round", "wall_seconds", "versions", "environment",
}  # fmt: skip
DISTILLED = ["method.plug_in=distill", "align.adapter.num_steps=4", "align.adapter.batch_size=4"]
VARIANTS = {
    "text, layer 0 whole, LoRA on FFNs, a standardized head": (
        "text",
        tiny_text_run,
        [
            *("evaluation.interval=2", "method.uncompressed_layers=[0]", "federated.seed=5"),
            *("lora.target_modules=[all-linear]", "federated.head_inputs=standardized", *DISTILLED),
        ],
    ),
    "images, uniform sub-FM": (
        "image",
        tiny_vision_run,
        [
            *("evaluation.interval=2", "federated.client_eval_ratio=0.25"),
            "federated.adversary={kind: backdoor, fraction: 0.25, target_label: 1}",
        ],
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def finished(request, tmp_path_factory):
    """Run a variant once and open what it left."""
    modality, write, extra = VARIANTS[request.param]
    if modality == "image":
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    folder = tmp_path_factory.mktemp("run")
    config = load_config(None, [*write(folder), *extra])
    returned = run(config)
    out = folder / "out"
    return SimpleNamespace(
        config=config,
        out=out,
        returned=returned,
        result=json.loads((out / "result.json").read_text()),
        rounds=[json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()],
        modality=modality,
        uniform=not config.method.uncompressed_layers,
    )


def accuracy(finished, model):
    """Return the accuracy of a model on the run's evaluation set, and the FM that the run started from."""
    fm, data = load_fm_and_data(finished.config, SilentProgress())
    model = model(fm) if callable(model) and not isinstance(model, torch.nn.Module) else model
    settings = {"metrics": data.metrics, "batch_size": 7, "server": finished.config.server}
    return evaluate(model, data.evaluation, data.collate, **settings)["accuracy"]


def test_clients_are_drawn_by_their_own_seed_or_the_runs(finished):
    config, (_, data) = finished.config, load_fm_and_data(finished.config, SilentProgress())
    for record in finished.rounds:
        drawn = draw_attendance(config.federated, data.partition.sizes, config.client_seed, record["round"])
        assert record["clients"] == list(drawn.cohort)


def test_accuracy_on_the_clients_own_examples_is_in_records_result_and_page(finished):
    last, result, page = finished.rounds[-1], finished.result, (finished.out / "report.html").read_text()
    is_measured = finished.config.federated.client_eval_ratio > 0
    assert ("client_accuracy" in last) == ("client_accuracy" in result) == is_measured
    assert ("held-out examples" in page) == is_measured
    if is_measured:
        assert result["client_accuracy"] == last["client_accuracy"] | {"values": last["client_accuracies"]}
        assert result["client_accuracy"]["examples"] == 48 // 4


def test_a_backdoors_success_stands_beside_the_clean_accuracy(finished):
    last, result, page = finished.rounds[-1], finished.result, (finished.out / "report.html").read_text()
    has_backdoor = finished.config.federated.adversary.kind == "backdoor"
    assert ("attack_success" in last) == ("attack_success" in result) == ("Attack success" in page) == has_backdoor
    if has_backdoor:
        (adversary,) = result["adversaries"]
        assert any("adversaries" in record for record in finished.rounds), "3 of 4 clients in each of 4 rounds"
        for record in finished.rounds:
            assert record.get("adversaries", []) == [adversary] * (adversary in record["clients"])

        def model(fm):
            return PeftModel.from_pretrained(fm, finished.out / "adapter")

        fm, data = load_fm_and_data(finished.config, SilentProgress())
        triggered = with_trigger(finished.config.federated.adversary, data)
        settings = {"metrics": data.metrics, "batch_size": 7, "server": finished.config.server}
        assert evaluate(model(fm), triggered, data.collate, **settings)["accuracy"] == result["attack_success"]


def test_a_run_that_reaches_its_target_is_finished_with_all_that_a_run_leaves(tmp_path):
    config = load_config(None, [*tiny_text_run(tmp_path), "evaluation.interval=2", "stop.target=0.0"])
    result = run(config).result
    assert (result["rounds"], result["stopped"]["reason"], result["stopped"]["planned_rounds"]) == (2, "target", 4)
    lines = (tmp_path / "out/rounds.jsonl").read_text().splitlines()
    assert [json.loads(line).get("stopped") for line in lines] == [None, "target"]
    assert result["fm"] == json.loads(lines[-1])["fm"]
    assert "2 of 4 rounds" in (tmp_path / "out/report.html").read_text()
    assert not (tmp_path / "out/checkpoints").exists()
    (trial,) = planned_trials(SweepConfig(base=str(tmp_path / "out/config.yaml"), output_dir=str(tmp_path)))
    trial, sweep = replace(trial, config=config), SweepConfig(base="", scheduler="asha")
    reported = []
    play_trial("fm", None, trial, lambda *report: reported.append(report))
    assert reported == [(2, result["fm"], result["fm"])]
    assert outcome(sweep, trial, None).status == "finished"


def test_the_output_folder_holds_what_is_promised(finished):
    own_fm = {"fm"} if finished.config.fm.pretrain.num_epochs else set()
    promised = {"config.yaml", "partition.json", "rounds.jsonl", "result.json", "report.html", "adapter"}
    promised |= {"examples.safetensors", "sub_fm", "sub_fm_adapter", "tracking.json"}
    assert {path.name for path in finished.out.iterdir()} == promised | own_fm
    assert {name: str(path) for name, path in finished.returned.locations.items()} == {
        "config": str(finished.out / "config.yaml"),
        "rounds": str(finished.out / "rounds.jsonl"),
        "result": str(finished.out / "result.json"),
        "adapter": str(finished.out / "adapter"),
        **{name: str(finished.out / name) for name in own_fm},
        "sub_fm": str(finished.out / "sub_fm"),
        "sub_fm_adapter": str(finished.out / "sub_fm_adapter"),
        "report": str(finished.out / "report.html"),
    }


def test_the_saved_config_is_the_config(finished):
    assert load_config(finished.out / "config.yaml") == finished.config


def test_rounds_have_one_line_each_with_the_right_keys(finished):
    assert [record["round"] for record in finished.rounds] == [1, 2, 3, 4]
    for record in finished.rounds:
        assert {"round", "clients", "train_loss", "lr", "seconds"} <= record.keys()
        assert len(record["clients"]) == 3
        assert ({"fm", "sub_fm"} <= record.keys()) == (record["round"] in (2, 4))
        assert ("align/loss" in record) == (record["round"] == 2), "every 2 rounds, but not after the last"
        assert np.isfinite(record["train_loss"])
    assert [record["lr"] for record in finished.rounds] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_the_meter_is_in_every_evaluation_round_and_in_the_result(finished):
    keys = {"fidelity", "leakage_gap", "time/fidelity_seconds"}
    for record in finished.rounds:
        assert keys & record.keys() == (keys if record["round"] in (2, 4) else set())
    meter, last = finished.result["fidelity"], finished.rounds[-1]
    assert meter["after"] == last["fidelity"]
    assert meter["leakage_gap"] == last["leakage_gap"] == pytest.approx(last["fm"] - last["sub_fm"], abs=1e-6)
    assert meter["num_examples"] == 40, "fewer than asked for: all"
    assert meter["seconds"] > sum(record.get("time/fidelity_seconds", 0) for record in finished.rounds) > 0
    for measured in (meter["before"], meter["after"]):
        assert {len(measured[name]) for name in measured if name != "total"} == {3}
        assert all(np.isfinite(value) for value in measured["total"].values())
    skill = finished.result["skill"]
    assert 0 <= skill["agreement"] <= 1
    assert skill["hidden"] < 1
    assert (skill["probe"], skill["loss"]) == (None, None), "a classifier; an audit asks for the linear map"
    whole_layer = meter["before"]["hidden_error"][0]
    assert (whole_layer == 0) == (not finished.uniform), "an uncompressed first layer is the FM's own"


def test_the_report_shows_the_accuracies_and_the_meter(finished):
    html = (finished.out / "report.html").read_text()
    assert f"{100 * finished.result['fm']:.1f} %" in html
    assert "Fidelity" in html


def test_without_the_meter_nothing_is_left_of_it(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the meter is off")

    monkeypatch.setattr("fedpft.federated.evaluation.measure_fidelity", never)
    settings = [*tiny_text_run(tmp_path), "federated.rounds=1", "align.layers.kind=none"]
    result = run(load_config(None, [*settings, "evaluation.fidelity_examples=0"])).result
    record = json.loads((tmp_path / "out/rounds.jsonl").read_text())
    words = ("fidelity", "leakage", "gradient")
    assert not any(word in text for text in (json.dumps(result), json.dumps(record)) for word in words)
    assert not any(word in (tmp_path / "out/report.html").read_text() for word in ("Fidelity", "Gradient cosine"))


def test_the_aligned_weights_travel_once(finished):
    adapter = finished.result["bytes_down_per_client_round"]
    down = [record["comm/bytes_down"] / 3 for record in finished.rounds]
    assert [down[0], down[1], down[3]] == [adapter] * 3
    assert adapter < down[2] <= adapter + 4 * finished.result["num_transformer_params_sub_fm"]
    assert [record["proxy_version"] for record in finished.rounds] == [0, 0, 1, 1]


def test_result_has_the_promised_keys_and_true_numbers(finished):
    result = finished.result
    assert result.keys() >= RESULT_KEYS
    assert result == json.loads(json.dumps(finished.returned.result))
    assert not {"privacy", "simulation_only"} & {*result, *(key for record in finished.rounds for key in record)}
    assert (result["name"], result["seed"], result["method"], result["rounds"]) == ("tiny", 42, "fedpft", 4)
    assert {key: finished.rounds[-1][key] for key in ("fm", "sub_fm")} == {key: result[key] for key in ("fm", "sub_fm")}
    assert (result["metric"], result["metric_goal"]) == ("accuracy", "max")
    models = {"untuned_fm", "fm", "sub_fm"} | ({"fm_copied"} & result.keys())
    assert ("fm_copied" in models) == (finished.config.plugs_in_by == "distill")
    assert result["metrics"] == {key: {"accuracy": result[key]} for key in models}
    assert result["bytes_up_per_client_round"] == 4 * result["num_params_adapter"]
    assert {"torch", "transformers", "peft", "lightning", "python"} <= result["versions"].keys()
    fm, _ = load_fm_and_data(finished.config, SilentProgress())
    assert result["num_params_fm"] == sum(parameter.numel() for parameter in fm.parameters())
    sub_fm = load_sub_fm(finished.out / "sub_fm", modality=finished.modality)
    assert result["num_params_sub_fm"] == sum(parameter.numel() for parameter in sub_fm.parameters())
    layers = 3 if finished.uniform else 2
    assert result["num_params_fm"] - result["num_params_sub_fm"] == layers * 12 * (16 + 1 + 16)


def test_the_result_has_what_the_rounds_cost_together(finished):
    result, rounds = finished.result, finished.rounds
    sums = {
        "client_flops_total": "clients/flops",
        "bytes_up_total": "comm/bytes_up",
        "bytes_down_total": "comm/bytes_down",
        "align_seconds": "time/align_seconds",
    }
    for key, source in sums.items():
        assert result[key] == sum(record.get(source, 0) for record in rounds) > 0
    assert result["client_fits"] == 12
    assert result["client_flops_per_round"] == round(result["client_flops_total"] / 12)
    assert result["client_memory_bytes"] == max(record["clients/memory_bytes_max"] for record in rounds)
    step = result["local_step"]
    assert step["flops_fm"] > step["flops_sub_fm"] > 0
    assert all(0 < record["clients/flops_mean"] <= record["clients/flops_max"] for record in rounds)
    assert "MFLOP</td>" in (finished.out / "report.html").read_text()
    assert plan(finished.config, counts_memory=False)["local_step"] == step, "known before the run"


def test_the_tuning_did_something(finished):
    losses = [record["train_loss"] for record in finished.rounds]
    assert losses[-1] < losses[0]


def test_the_adapter_opens_on_the_fm_with_peft_and_gives_the_result(finished):
    folder = str(finished.out / "adapter")
    assert accuracy(finished, lambda fm: PeftModel.from_pretrained(fm, folder)) == finished.result["fm"]


def test_the_untuned_fm_gives_its_number(finished):
    assert accuracy(finished, lambda fm: fm) == finished.result["untuned_fm"]


def test_the_sub_fm_opens_and_with_the_adapter_gives_its_number(finished):
    folder = finished.out / "sub_fm"
    sub_fm = load_sub_fm(folder, modality=finished.modality)
    if finished.uniform:
        plain = AutoModelForImageClassification.from_pretrained(folder)
        assert type(plain) is type(sub_fm)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), sub_fm.parameters(), strict=True))
        sub_fm = plain
    adapted = PeftModel.from_pretrained(sub_fm, str(finished.out / "sub_fm_adapter"))
    assert accuracy(finished, adapted) == finished.result["sub_fm"]


def test_the_sub_fm_file_has_the_fms_weights_but_for_the_compressed_ffns(finished):
    fm, _ = load_fm_and_data(finished.config, SilentProgress())
    sub_fm = load_sub_fm(finished.out / "sub_fm", modality=finished.modality).state_dict()
    ffn = ("intermediate", "output.dense", "output.LayerNorm", "mlp")
    first = () if finished.uniform else ("layer.0.", "layers.0.")
    for name, tensor in fm.state_dict().items():
        may_change = any(part in name for part in ffn) and "attention" not in name and not any(f in name for f in first)
        is_same = torch.allclose if name.startswith("classifier") else torch.equal  # its inputs may be standardized
        assert may_change or is_same(tensor, sub_fm[name]), name


def test_plan_says_what_the_run_then_did(finished):
    planned = plan(finished.config, counts_memory=False)
    for key in ("num_params_fm", "num_params_sub_fm", "num_params_adapter", "bytes_up_per_client_round", "actors"):
        assert planned[key] == finished.result[key]
    assert planned["label_histogram"].shape == (finished.config.federated.num_clients, len(planned["label_names"]))
    held_out = 12 if finished.config.federated.client_eval_ratio else 0
    assert planned["label_histogram"].sum() == 48 - held_out, "what clients train on"
    assert planned["config_yaml"] == dump_config(finished.config)


def test_a_second_run_moves_the_first_aside_and_loses_nothing(tmp_path):
    config = load_config(None, [*tiny_text_run(tmp_path), "federated.rounds=1", "align.layers.kind=none"])

    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    (tmp_path / "out.1").mkdir()  # an earlier one, also out of the way
    run(config)
    first = content(tmp_path / "out")
    run(config)
    assert content(tmp_path / "out.2") == first
    assert content(tmp_path / "out.1") == {}
    assert content(tmp_path / "out").keys() == first.keys()


def test_a_diverging_run_stops_naming_round_and_client_and_closes_its_pool(tmp_path, monkeypatch):
    from fedpft.federated.pool import SequentialPool

    closed = []
    monkeypatch.setattr(SequentialPool, "close", lambda self: closed.append(self))
    config = load_config(None, [*tiny_text_run(tmp_path), "federated.lr=1e30", "align.layers.kind=none"])
    with pytest.raises(RuntimeError, match=r"3 rounds in a row .* round 3, client \d .*NaN or infinite"):
        run(config)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("method.uncompressed_layers=[3]", "method.uncompressed_layers"),
        ("fm.path=/nowhere/at/all", "fm.path"),
        ("task.path=/nowhere/at/all", "task.path"),
        ("lora.target_modules=[nowhere]", "lora.target_modules"),
        ("federated.num_clients=49", "federated.num_clients"),
        ("fm.pretrain.num_epochs=1", "fm.pretrain.num_epochs"),
    ],
)
def test_settings_that_only_the_data_or_the_fm_refute_name_their_key_in_one_line(tmp_path, setting, key):
    config = load_config(None, [*tiny_text_run(tmp_path), setting])
    for action in (run,) if "pretrain" in setting else (plan, run):
        with pytest.raises(ConfigError) as error:
            action(config)
        assert str(error.value).startswith(key)
        assert "\n" not in str(error.value)


def test_local_settings_follow_the_pool(tmp_path):
    ray = ["pool.kind=ray", "pool.accelerator=auto"]
    settings = {
        gpus: local_settings(load_config(None, [*ray, f"pool.gpus_per_actor={gpus}"])).accelerator for gpus in (0, 0.5)
    }
    assert settings == {0: "cpu", 0.5: "cuda"}
    here = "cuda" if torch.cuda.is_available() else "cpu"
    assert local_settings(load_config(None, ["pool.kind=sequential"])).accelerator == here


def test_full_sampling_plans_for_everyone():
    assert load_config(None, ["federated.sampling=full"]).federated.cohort_size == 100
    assert load_config().federated.cohort_size == 10
