from unittest.mock import Mock, call

import datasets
import numpy as np
import pytest

from fedpft.config import Config, EvaluationConfig, ServerConfig
from fedpft.data.collate import TextCollator
from fedpft.data.partition import Partition
from fedpft.evaluation.evaluate import evaluate
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.federated import evaluation as module_under_test
from fedpft.federated.evaluation import Evaluation
from fedpft.methods.base import Proxy
from fedpft.methods.carry_over import CarriedOver
from fedpft.models.lora import get_adapter
from fedpft.trainer import SilentProgress
from tests.fakes import FakeMethod
from tests.tiny import tiny_fm, tiny_texts, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS, LABELS = tiny_texts(23)
DATASET = datasets.Dataset.from_dict({"input_ids": TOKENIZER(TEXTS)["input_ids"], "label": LABELS})
SERVER = ServerConfig(accelerator="cpu")


def made(num_examples=8, *, seed=0, layer_pairs=None, metrics=("accuracy",), others=(), carry_over=None, **of_data):
    method, progress = FakeMethod(num_labels=2), Mock(spec=SilentProgress)
    carry_over = carry_over or (lambda adapter: CarriedOver(fm=method.plug_in(adapter), is_copy=True))
    config = Config(seed=seed, evaluation=EvaluationConfig(batch_size=5, fidelity_examples=num_examples), server=SERVER)
    sets = {"evaluation": DATASET, "other_evaluations": dict(others)}
    data = Mock(**sets, collate=TextCollator(TOKENIZER), metrics=metrics, **{"held_out": None} | of_data)
    proxy = Proxy(model=method.sub_fm, watched_layers=(), layer_pairs=layer_pairs)
    return Evaluation(method, proxy, carry_over, data, config, progress), method, progress


def tuned(method):
    adapter = get_adapter(method.fm)
    return adapter + np.random.default_rng(0).normal(0, 0.2, adapter.shape).astype(np.float32)


def accuracy(model):
    return evaluate(model, DATASET, TextCollator(TOKENIZER), metrics=["accuracy"], batch_size=23, server=SERVER)[
        "accuracy"
    ]


def stages(progress):
    return [made_call.args[0] for made_call in progress.stage.mock_calls]


def test_each_clients_own_examples_are_counted_in_one_pass_over_all_of_them():
    held_out = Partition.of_sizes(np.random.default_rng(0).permutation(23)[:14], np.array([5, 0, 8, 1]))
    evaluation, method, progress = made(0, train=DATASET, held_out=held_out)
    adapter = tuned(method)
    record = evaluation(adapter)
    assert progress.progress.call_count == 5 + 5 + 3, "two models on the evaluation set, and 14 examples, 5 at a time"
    plain, other, _ = made(0)
    assert plain(adapter) == {key: value for key, value in record.items() if not key.startswith("client_")}
    fm = other.plug_in(adapter)
    for client, found in enumerate(record["client_accuracies"]):
        shard = held_out.shard(client)
        own = {"metrics": ["accuracy"], "batch_size": 23, "server": SERVER}
        alone = evaluate(fm, DATASET.select(shard), TextCollator(TOKENIZER), **own)["accuracy"] if len(shard) else None
        assert found == (None if alone is None else pytest.approx(alone, abs=1e-6))
    assert (record["client_accuracy"]["clients"], record["client_accuracy"]["without"]) == (3, 1)


def test_of_a_classifier_the_record_has_the_accuracy_of_each_class_of_the_main_set_at_no_further_pass():
    class_names = {"kind": "classification", "label_names": ("no", "yes")}
    other = {"other": DATASET.select(range(5))}
    evaluation, method, progress = made(0, metrics=("f1", "accuracy"), others=other, **class_names)
    adapter = tuned(method)
    record, steps = evaluation(adapter), progress.progress.call_count
    logits = [method.plug_in(adapter)(**TextCollator(TOKENIZER)([row])).logits for row in DATASET]
    right = np.array([int(one.argmax()) == label for one, label in zip(logits, LABELS, strict=True)])
    expected = [right[np.array(LABELS) == label].mean() for label in (0, 1)]
    assert record["class_accuracy"] == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]
    plain, method, progress = made(0, metrics=("f1", "accuracy"), others=other)
    assert plain(adapter) == {key: value for key, value in record.items() if key != "class_accuracy"}
    assert progress.progress.call_count == steps


def test_the_record_has_both_accuracies_their_gap_and_the_fidelity():
    evaluation, method, progress = made(num_examples=1000)
    adapter = tuned(method)
    record = evaluation(adapter)
    assert record["fm"] == accuracy(method.plug_in(adapter))
    assert record["sub_fm"] == accuracy(method.proxy_with(adapter))
    assert record["leakage_gap"] == pytest.approx(record["fm"] - record["sub_fm"], abs=1e-6)
    batch = TextCollator(TOKENIZER)(list(DATASET))
    expected = measure_fidelity(method.fm, method.sub_fm, batch, server=SERVER).record()
    assert record["fidelity"]["hidden_error"] == pytest.approx(expected["hidden_error"], rel=1e-4)
    assert record["fidelity"]["total"] == pytest.approx(expected["total"], rel=1e-4)
    assert record["time/fidelity_seconds"] > 0
    assert stages(progress) == ["evaluate", "measure fidelity"]
    assert call(23, 23, {}) in progress.progress.mock_calls


def test_every_metric_of_every_evaluation_set_is_recorded_and_the_first_is_the_primary_one():
    other = DATASET.select(range(9))
    evaluation, method, _ = made(num_examples=0, metrics=("f1", "accuracy"), others={"mismatched": other})
    record = evaluation(tuned(method))
    assert (record["metric"], record["metric_goal"]) == ("f1", "max")
    for key, model in (("fm", method.fm), ("sub_fm", method.sub_fm)):
        found = record["metrics"][key]
        assert list(found) == ["f1", "accuracy", "mismatched/f1", "mismatched/accuracy"]
        assert record[key] == found["f1"]
        assert found["accuracy"] == accuracy(model)
        collate = TextCollator(TOKENIZER)
        expected = evaluate(model, other, collate, metrics=["f1"], batch_size=9, server=SERVER)
        assert found["mismatched/f1"] == expected["f1"]


def test_the_untuned_models_are_measured_alike():
    evaluation, method, progress = made()
    adapter = get_adapter(method.fm)
    before, again = evaluation.untuned(adapter), evaluation(adapter)
    seconds = before.pop("time/fidelity_seconds"), again.pop("time/fidelity_seconds")
    assert before == again
    assert stages(progress)[:3] == ["evaluate untuned FM", "evaluate untuned sub-FM", "measure fidelity"]
    summary = evaluation.summary(before, again)["fidelity"]
    assert summary["seconds"] == pytest.approx(sum(seconds))
    assert (summary["before"], summary["after"]) == (before["fidelity"], again["fidelity"])
    assert (summary["num_examples"], summary["leakage_gap_before"]) == (8, before["leakage_gap"])


@pytest.mark.parametrize("is_copy", [False, True])
def test_an_adapter_that_was_carried_over_is_the_fms_and_the_copied_one_is_told_beside_it(is_copy):
    carried = tiny_fm("bert", num_labels=2, seed=5)  # some other FM
    report = {"plug_in": {"accepted": not is_copy}, "time/plug_in_seconds": 1.0}
    class_names = {"kind": "classification", "label_names": ("no", "yes")}
    evaluation, method, _ = made(
        carry_over=lambda _: CarriedOver(fm=carried, is_copy=is_copy, record=report), **class_names
    )
    adapter = tuned(method)
    record = evaluation(adapter)
    assert record["fm"] == record["metrics"]["fm"]["accuracy"] == accuracy(carried)
    copied = accuracy(carried if is_copy else method.plug_in(adapter))
    assert record["fm_copied"] == record["metrics"]["fm_copied"]["accuracy"] == copied
    shares = np.bincount(LABELS) / len(LABELS)
    assert np.dot(record["class_accuracy"], shares) == pytest.approx(record["fm"], abs=1e-6), "of the result's FM"
    assert report.items() <= record.items()
    assert record["fidelity"] == made()[0](adapter)["fidelity"], "the meter compares models with one adapter"


def test_the_batch_is_fixed_by_the_seed():
    def measured(seed):
        evaluation, method, _ = made(seed=seed)
        return evaluation(tuned(method))["fidelity"]

    assert measured(0) == measured(0) != measured(1)


def test_off_costs_nothing_and_leaves_no_key(monkeypatch):
    monkeypatch.setattr(module_under_test, "measure_fidelity", None)
    evaluation, method, progress = made(num_examples=0)
    adapter = get_adapter(method.fm)
    about = {"metric", "metric_goal", "metrics"}
    assert evaluation.untuned(adapter).keys() == {"fm"} | about
    assert stages(progress) == ["evaluate untuned FM"]
    assert evaluation(adapter).keys() == {"fm", "sub_fm"} | about
    assert evaluation.summary({}, {}) == {}


def test_the_proxys_pairs_of_layers_are_the_meters():
    evaluation, method, _ = made(layer_pairs=((0, 0), (2, 2)))
    assert len(evaluation(tuned(method))["fidelity"]["hidden_error"]) == 2
