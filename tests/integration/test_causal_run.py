import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedpft.config import ConfigError, load_config
from fedpft.evaluation.evaluate import evaluate
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.run.resume import go_on
from fedpft.storage.checkpoint import Checkpoints
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_causal_run, tiny_fm

DECODERS = ("gpt2", "llama")


DISTILLED = ["method.plug_in=distill", "align.adapter.num_steps=4", "align.adapter.batch_size=4"]


@pytest.fixture(scope="module", params=DECODERS)
def finished(request, tmp_path_factory):
    """Run once for each family of decoders and open what is left."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config(None, [*tiny_causal_run(folder, request.param), "evaluation.interval=2", *DISTILLED])
    run(config)
    out = folder / "out"
    return SimpleNamespace(
        config=config,
        out=out,
        result=json.loads((out / "result.json").read_text()),
        rounds=[json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()],
    )


def scores(finished, make):
    fm, data = load_fm_and_data(finished.config, SilentProgress())
    return evaluate(
        make(fm), data.evaluation, data.collate, metrics=data.metrics, batch_size=7, server=finished.config.server
    )


def test_tuning_lowers_the_loss_of_fm_and_sub_fm(finished):
    result = finished.result
    assert (result["metric"], result["metric_goal"], result["label_names"]) == ("loss", "min", [])
    assert max(result["fm"], result["sub_fm"]) < result["untuned_fm"] - 0.1
    assert finished.rounds[-1]["train_loss"] < finished.rounds[0]["train_loss"]
    assert result["best"] == {"round": 4, "fm": result["fm"], "sub_fm": result["sub_fm"]}
    assert result["fidelity"]["after"]["total"]["gradient_cosine"] > 0


def test_the_adapter_is_lora_alone(finished):
    saved = json.loads((finished.out / "adapter/adapter_config.json").read_text())
    assert saved["task_type"] == "CAUSAL_LM"
    assert not saved["modules_to_save"]


def test_what_is_left_opens_with_transformers_and_peft_and_gives_the_result(finished):
    folder, tuned = str(finished.out / "adapter"), str(finished.out / "sub_fm_adapter")

    def tuned_sub_fm(fm):
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(finished.out / "sub_fm"), tuned)

    found = {
        name: scores(finished, lambda fm, f=f: PeftModel.from_pretrained(fm, f))
        for name, f in (("fm", folder), ("fm_copied", tuned))
    }
    found |= {"sub_fm": scores(finished, tuned_sub_fm), "untuned_fm": scores(finished, lambda fm: fm)}
    assert found.keys() == finished.result["metrics"].keys()
    for name, metrics in finished.result["metrics"].items():
        assert found[name] == pytest.approx(metrics, rel=1e-6, abs=2e-6), name


def test_the_tuned_sub_fm_writes_text(finished):
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(finished.out / "sub_fm"), str(finished.out / "sub_fm_adapter")
    )
    written = model.generate(input_ids=torch.tensor([[7, 5, 6]]), max_new_tokens=4, do_sample=False)
    assert 4 <= written.shape[1] <= 7


def test_the_page_and_the_plan_do_without_labels(finished):
    html = (finished.out / "report.html").read_text()
    assert f"{finished.result['fm']:.3f}" in html
    planned = plan(finished.config, counts_memory=False)
    assert planned["label_names"] == ["all"]
    assert planned["num_params_adapter"] == finished.result["num_params_adapter"]


@pytest.mark.cluster
def test_a_resumed_run_has_the_bits_of_the_straight_one(tmp_path, monkeypatch):
    settings = [*tiny_causal_run(tmp_path, "qwen2"), "federated.partition.kind=dirichlet"]
    settings += ["task.label_column=topic", "align.layers.kind=none", "evaluation.fidelity_examples=0"]
    straight = run(load_config(None, [*settings, f"output_dir={tmp_path / 'straight'}"])).result
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'stopped'}"])
    save = Checkpoints.save

    def save_and_stop(self, checkpoint):
        save(self, checkpoint)
        if checkpoint.rounds_done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    resumed = go_on(config).result
    assert resumed["metrics"] == straight["metrics"]
    assert resumed["label_names"] == ["0", "1"]
    for name in ("adapter/adapter_model.safetensors", "sub_fm/model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_an_encoder_is_refused_in_one_line_before_its_weights_are_read(tmp_path):
    settings = tiny_causal_run(tmp_path)
    tiny_fm("bert").config.save_pretrained(tmp_path / "fm")
    (tmp_path / "fm/model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^fm\.path: found .*'bert', allowed for .* causal_lm: .*gpt2") as error:
        run(load_config(None, settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_language_model_from_scratch_is_made_tuned_and_left_with_its_tokenizer(tmp_path):
    architecture = (
        "{vocab_size: 300, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, "
        "intermediate_size: 24, max_position_embeddings: 64}"
    )
    settings = [
        *tiny_causal_run(tmp_path), "fm.path=scratch://llama", f"fm.config={architecture}",
        "fm.pretrain={num_epochs: 3, lr: 1e-2, batch_size: 8}", "align.layers.kind=none", "federated.rounds=2",
    ]  # fmt: skip
    result = run(load_config(None, settings)).result
    assert result["fm"] < result["untuned_fm"] < 5.7, "ln 300 without pre-training"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/fm")
    fm = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out/fm"), str(tmp_path / "out/adapter")
    )
    batch = tokenizer("w1 w2\n", return_tensors="pt")
    assert tokenizer.decode(batch["input_ids"][0]) == "w1 w2\n"
    assert fm(**batch).logits.shape[-1] == 300
