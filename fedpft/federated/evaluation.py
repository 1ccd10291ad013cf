"""What the server measures: the task's metrics of FM and proxy with an adapter, and the fidelity meter."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from torchmetrics import Metric

from fedpft.config import Config
from fedpft.data.collate import rows
from fedpft.data.datamodule import FederatedData
from fedpft.data.sources.subsets import subset
from fedpft.evaluation.evaluate import evaluate, is_right
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.federated.adversary.poison import with_trigger
from fedpft.federated.client_accuracy import client_accuracy
from fedpft.methods.base import Method, Proxy
from fedpft.methods.carry_over import CarriedOver
from fedpft.metrics.table import METRICS, class_accuracy, class_counts
from fedpft.models.lora import AdaptedModel
from fedpft.seeding import numpy_rng
from fedpft.trainer import Progress


class Evaluation:
    """Adapter -> what an evaluation round adds to its record; changes nothing in the run.

    Always `fm` and `sub_fm`, the primary metric on the main evaluation set (only `fm` if the proxy is the FM itself);
    where the adapter is carried over, also `fm_copied`, the FM's with the proxy's adapter as it is, and `plug_in`, how
    far the FM was from the proxy on public data before and after;
    its name and direction, `metric` and `metric_goal`; `metrics`: for each model all metrics by name, those on other
    evaluation sets as `set/metric`. With the meter (`evaluation.fidelity_examples` above 0) also `leakage_gap`, the
    plugged-in FM's primary metric minus the sub-FM's, `fidelity`, a `Fidelity.record()`, and `time/fidelity_seconds`,
    what the meter took (a part of the round's `time/evaluate_seconds`). Of a classifier also `class_accuracy`, what the
    plugged-in FM gets right of each class of the main evaluation set (None: it has none of the class). Where clients
    hold out examples, what :func:`client_accuracy` says of the plugged-in FM, after one pass over all of them. With a
    backdoor `attack_success`, the share of evaluation examples of other classes that the plugged-in FM takes for the
    target's once they have the trigger.

    Args:
        method: has built its proxy.
        proxy: what it built.
        carry_over: adapter -> the FM with it, the result.
        data: the evaluation sets; the meter's batch is drawn from it once, by the run's seed.
        config: the run's settings.
        progress: hears about both stages.

    """

    def __init__(
        self,
        method: Method,
        proxy: Proxy,
        carry_over: Callable[[np.ndarray], CarriedOver],
        data: FederatedData,
        config: Config,
        progress: Progress,
    ) -> None:
        self._method, self._proxy, self._data, self._progress = method, proxy, data, progress
        self._carry_over = carry_over
        self._settings, self._server = config.evaluation, config.server
        shuffled = numpy_rng(config.seed, "fidelity").permutation(len(data.evaluation))
        drawn = shuffled[: 0 if proxy.is_fm else self._settings.fidelity_examples]
        self._batch = data.collate(rows(data.evaluation, drawn)) if len(drawn) else None
        held_out = data.held_out
        self._held_out = subset(data.train, held_out.order) if held_out is not None and len(held_out.order) else None
        adversary = config.federated.adversary
        triggered = with_trigger(adversary, data) if adversary.kind == "backdoor" else None
        self._triggered = triggered if triggered is not None and len(triggered) else None
        self.fidelity_seconds = 0.0
        """What the meter took in the whole run."""

    def __call__(self, adapter: np.ndarray) -> dict[str, Any]:
        """Evaluate the models with the adapter."""
        counts = class_counts(len(self._data.label_names)) if self._data.kind == "classification" else None
        carried = self._carry_over(adapter)
        self._progress.stage("evaluate")
        scores = {"fm": self._score(carried.fm, counts)}
        if carried.record:
            is_copy = carried.is_copy
            scores["fm_copied"] = scores["fm"] if is_copy else self._score(self._method.plug_in(adapter))
        if not self._proxy.is_fm:
            scores["sub_fm"] = self._score(self._method.proxy_with(adapter))
        record = self._record(scores) | carried.record
        if counts is not None:
            record["class_accuracy"] = class_accuracy(counts)
        if self._triggered is not None:
            record["attack_success"] = self._attack_success(carried.fm)
        if self._held_out is not None:
            record |= self._of_clients(carried.fm)
        return record if self._batch is None else record | self._meter(adapter, record, time.perf_counter())

    def untuned(self, adapter: np.ndarray) -> dict[str, Any]:
        """Evaluate the FM before round 1; the proxy only for the meter, as a part of its time."""
        self._progress.stage("evaluate untuned FM")
        scores = {"fm": self._score(self._method.plug_in(adapter))}
        if self._batch is None:
            return self._record(scores)
        start = time.perf_counter()
        self._progress.stage("evaluate untuned sub-FM")
        scores["sub_fm"] = self._score(self._method.proxy_with(adapter))
        record = self._record(scores)
        return record | self._meter(adapter, record, start)

    def summary(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        """Return the meter's part of `result.json` from the first and the last evaluation; empty without the meter."""
        if self._batch is None:
            return {}
        return {
            "fidelity": {
                "before": before["fidelity"],
                "after": after["fidelity"],
                "leakage_gap_before": before["leakage_gap"],
                "leakage_gap": after["leakage_gap"],
                "num_examples": len(self._batch["labels"]),
                "seconds": self.fidelity_seconds,
            }
        }

    def _record(self, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        primary = self._data.metrics[0]
        values = {model: score[primary] for model, score in scores.items()}
        return {**values, "metric": primary, "metric_goal": METRICS[primary].goal, "metrics": dict(scores)}

    def _attack_success(self, fm: AdaptedModel) -> float:
        assert self._triggered is not None
        self._progress.stage("evaluate the backdoor")
        return round(float(self._is_right(fm, self._triggered).mean()), 6)

    def _of_clients(self, fm: AdaptedModel) -> dict[str, Any]:
        assert self._data.held_out is not None
        self._progress.stage("evaluate on the clients' own held-out examples")
        assert self._held_out is not None
        return client_accuracy(self._is_right(fm, self._held_out), self._data.held_out)

    def _is_right(self, fm: AdaptedModel, dataset: Dataset) -> np.ndarray:
        return is_right(
            fm,
            dataset,
            self._data.collate,
            batch_size=self._settings.batch_size,
            server=self._server,
            on_step=self._progress.progress,
        )

    def _meter(self, adapter: np.ndarray, record: Mapping[str, Any], start: float) -> dict[str, Any]:
        assert self._batch is not None
        self._progress.stage("measure fidelity")
        fidelity = measure_fidelity(
            self._method.plug_in(adapter),
            self._method.proxy_with(adapter),
            self._batch,
            server=self._server,
            batch_size=self._settings.batch_size,
            layers=self._proxy.layer_pairs,
            neurons=self._proxy.neurons,
            on_step=self._progress.progress,
        )
        seconds = time.perf_counter() - start
        self.fidelity_seconds += seconds
        return {
            "leakage_gap": round(record["fm"] - record["sub_fm"], 6),
            "fidelity": fidelity.record(),
            "time/fidelity_seconds": seconds,
        }

    def _score(self, model: AdaptedModel, counts: Metric | None = None) -> dict[str, float]:
        """Return a model's metrics on every evaluation set, those on the main one first, which `counts` counts."""
        sets = {"": self._data.evaluation} | {f"{name}/": other for name, other in self._data.other_evaluations.items()}
        return {
            prefix + name: value
            for prefix, dataset in sets.items()
            for name, value in evaluate(
                model,
                dataset,
                self._data.collate,
                metrics=self._data.metrics,
                batch_size=self._settings.batch_size,
                server=self._server,
                counts=None if prefix else counts,
                on_step=self._progress.progress,
            ).items()
        }
