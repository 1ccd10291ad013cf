import csv
import json

import pytest
from peft import PeftModel

from fedpft.config import load_config
from fedpft.evaluation.evaluate import evaluate
from fedpft.models.loading import load_sub_fm
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_text_run, tiny_texts

SHORT = ["federated.rounds=2", "evaluation.interval=1", "align.layers.num_steps=1", "align.neurons.interval=1"]


@pytest.fixture
def settings(tmp_path):
    """Return the settings of a short run whose labels are numbers: 4 for texts of the second half of words, else 1."""
    written = tiny_text_run(tmp_path)
    for split, seed, num_texts in (("train", 0, 48), ("validation", 1, 40)):
        texts, labels = tiny_texts(num_texts, seed=seed)
        rows = [(text, 1 + 3 * label + 0.01 * len(text)) for text, label in zip(texts, labels, strict=True)]
        with (tmp_path / f"task/{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("text", "grade"), *rows])
    return [*written, "task.label_column=grade", "task.kind=regression", *SHORT]


@pytest.mark.parametrize(("metrics", "goal"), [("", "max"), ("mse,mae", "min")])
def test_numbers_are_learned_and_every_file_tells_the_same(tmp_path, settings, metrics, goal):
    config = load_config(None, [*settings, f"task.metrics=[{metrics}]"])
    result = run(config).result
    names = metrics.split(",") if metrics else ["pearson", "spearman"]
    assert (result["metric"], result["metric_goal"], result["label_names"]) == (names[0], goal, ["grade"])
    assert {model: list(values) for model, values in result["metrics"].items()} == dict.fromkeys(
        ("untuned_fm", "fm", "sub_fm"), names
    )
    records = [json.loads(line) for line in (tmp_path / "out/rounds.jsonl").read_text().splitlines()]
    assert result["metrics"]["fm"] == records[-1]["metrics"]["fm"]
    best = (max if goal == "max" else min)(record["fm"] for record in records)
    assert result["best"]["fm"] == best
    assert all(-1 <= value <= 1 for value in result["fidelity"]["after"]["gradient_cosine"])
    if goal == "min":
        assert records[-1]["train_loss"] < records[0]["train_loss"]
        assert result["fm"] < result["untuned_fm"]
    assert f"<dd>{result['fm']:.3f}</dd>" in (tmp_path / "out/report.html").read_text()
    if goal == "max":
        the_adapter_opens_with_peft_and_the_saved_sub_fm_predicts_a_number(tmp_path, config, result)


def the_adapter_opens_with_peft_and_the_saved_sub_fm_predicts_a_number(tmp_path, config, result):
    fm, data = load_fm_and_data(config, SilentProgress())
    assert fm.config.id2label == {0: "grade"}
    for model, key in ((fm, "fm"), (load_sub_fm(tmp_path / "out/sub_fm", modality="text"), "sub_fm")):
        assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
        adapted = PeftModel.from_pretrained(model, str(tmp_path / "out/adapter"))
        scores = {"metrics": data.metrics, "batch_size": 7, "server": config.server}
        found = evaluate(adapted, data.evaluation, data.collate, **scores)
        assert found == pytest.approx(result["metrics"][key], abs=1e-5), "in batches of another size"


def test_the_plan_shows_intervals(settings):
    planned = plan(load_config(None, settings), counts_memory=False)
    assert len(planned["label_names"]) == 5
    assert planned["label_histogram"].shape[1] == 5
