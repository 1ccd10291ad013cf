import pytest
import yaml
from huggingface_hub import ModelCard, metadata_eval_result

from fedpft.config import load_config
from fedpft.report.card import hub_id, model_card

RESULT = {
    "name": "sst2_bert", "seed": 7, "method": "fedpft", "rounds": 100, "kind": "classification",
    "modality": "text", "metric": "accuracy",
    "metrics": {"untuned_fm": {"accuracy": 0.5}, "sub_fm": {"accuracy": 0.875}, "fm": {"accuracy": 0.9}},
    "untuned_fm": 0.5, "sub_fm": 0.875, "fm": 0.9, "label_names": ["negative", "positive"], "num_eval_examples": 872,
    "num_params_fm": 109_000_000, "num_params_sub_fm": 67_000_000, "compression_ratio": 1.72,
    "bytes_up_per_client_round": 4000, "bytes_down_per_client_round": 4000,
    "fidelity": {"leakage_gap": 0.025}, "versions": {"torch": "2.6", "peft": "0.18"},
}  # fmt: skip
SETTINGS = ["name=sst2_bert", "task.name=sst2", "method.uncompressed_layers=[0,-1]", "fm.config.dropout=0.5"]


def card(*settings, merged=True, **result):
    config = load_config(None, [*SETTINGS, "output_dir=/home/me/secret", *settings])
    return model_card(RESULT | result, config, "AutoModelForSequenceClassification", merged=merged)


def test_the_hub_reads_base_model_data_and_results():
    data = ModelCard(str(card())).data
    assert data.base_model == "google-bert/bert-base-uncased"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.datasets == ["nyu-mll/glue"]
    assert data.metrics == ["accuracy"]
    assert {"fedpft", "federated-learning", "lora"} <= set(data.tags)
    (evaluation,) = data.eval_results
    found = (evaluation.dataset_type, evaluation.dataset_config, evaluation.dataset_split, evaluation.metric_value)
    assert found == ("nyu-mll/glue", "sst2", "validation", 0.9)


def test_the_table_has_every_model():
    assert "| untuned FM | 0.5000 |\n| sub-FM | 0.8750 |\n| **plugged-in FM** | 0.9000 |" in card().text
    assert "On 872 evaluation examples; leakage gap (plugged-in FM minus sub-FM) +2.5 points." in card().text


def test_several_metrics_have_a_column_and_an_entry_each():
    metrics = {
        "untuned_fm": {"accuracy": 0.5, "f1": 0.25},
        "sub_fm": {"accuracy": 0.875, "f1": 0.8},
        "fm": {"accuracy": 0.9, "f1": 0.85},
    }
    made = card(metrics=metrics)
    assert "| model | accuracy | f1 |" in made.text
    assert "| **plugged-in FM** | 0.9000 | 0.8500 |" in made.text
    entries = {entry.metric_type: entry.metric_value for entry in made.data.eval_results}
    assert entries == {"accuracy": 0.9, "f1": 0.85}


def test_data_and_models_that_are_not_on_the_hub_are_no_links(tmp_path):
    made = card(f"fm.path={tmp_path}", "task={name: custom, path: a/b/c, text_columns: [text]}").data.to_dict()
    assert "base_model" not in made
    assert "datasets" not in made
    assert made["model-index"][0]["results"][0]["dataset"] == {"name": "custom", "type": "custom"}


@pytest.mark.parametrize("path", ["package://gt/model", "scratch://vit", "/a/b", "./b", "a/b/c", "", None, "a b"])
def test_what_is_no_hub_id(path):
    assert hub_id(path) is None


def test_settings_are_those_that_differ_and_none_of_this_machine():
    text = card("pool.kind=sequential", "tracking.entity=me").text
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert settings == {
        "name": "sst2_bert",
        "fm": {"config": {"dropout": 0.5}},
        "method": {"uncompressed_layers": [0, -1]},
    }
    assert "secret" not in text


def test_an_adapter_beside_the_fm_is_opened_with_peft():
    made = card(merged=False)
    assert made.data.library_name == "peft"
    assert "from peft import PeftModel" in made.text
    assert "peft import" not in card().text


def test_one_metadata_entry_is_what_the_hub_itself_would_make():
    own = metadata_eval_result(
        model_pretty_name="sst2_bert", task_pretty_name=None, task_id="text-classification",
        metrics_pretty_name=None, metrics_id="accuracy", metrics_value=0.9, dataset_pretty_name="sst2",
        dataset_id="nyu-mll/glue", dataset_config="sst2", dataset_split="validation",
    )["model-index"]  # fmt: skip
    found = card().data.to_dict()["model-index"]
    strip = lambda index: [{k: v for k, v in r.items() if v} for r in index[0]["results"]]  # noqa: E731
    assert strip(found)[0]["dataset"] == strip(own)[0]["dataset"]
