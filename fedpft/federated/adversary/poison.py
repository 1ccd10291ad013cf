"""Data of adversaries: flipped labels, and triggers of a backdoor in texts and images.

What clients train on is changed, nothing that the server looks at: adversaries get rows of their own behind those of
everybody, so that an honest client's rows, and with them its bits, stay what they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw

from fedpft.config import AdversaryConfig, Config
from fedpft.config.adversary import ON_DATA
from fedpft.data.datamodule import FederatedData
from fedpft.data.partition import Partition
from fedpft.data.shared import SharedRows
from fedpft.data.sources.columns import IMAGE, LABEL, PIXELS
from fedpft.data.sources.errors import fail
from fedpft.data.sources.subsets import subset
from fedpft.federated.adversary.clients import Adversaries
from fedpft.seeding import numpy_rng


@dataclass(frozen=True)
class Trigger:
    """Puts its mark on examples; the same mark on each."""

    tokens: Sequence[int] = ()
    """Of texts: these replace those after the first, as far as there are any, so that no length changes."""
    patch_ratio: float = 0.0
    """Of images: side of the square over the shorter side."""

    def on(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with the mark."""
        if IMAGE in row:
            image: Image.Image = row[IMAGE].convert("RGB")
            side = max(1, round(self.patch_ratio * min(image.size)))
            width, height = image.size
            ImageDraw.Draw(image).rectangle((width - side, height - side, width, height), fill=(255, 255, 255))
            return {**row, IMAGE: image}
        ids = list(row["input_ids"])
        room = max(0, len(ids) - 2)  # first and last token stay
        ids[1 : 1 + min(room, len(self.tokens))] = self.tokens[:room]
        return {**row, "input_ids": ids}


def make_trigger(config: AdversaryConfig, data: FederatedData) -> Trigger:
    """Return the trigger of a backdoor for the run's kind of data.

    Raises:
        ConfigError: the tokenizer knows no token of it, or no class is the target.

    """
    check_adversary(config, data)
    if data.tokenizer is None:
        return Trigger(patch_ratio=config.patch_ratio)
    tokens = data.tokenizer(config.trigger, add_special_tokens=False)["input_ids"]
    if not tokens:
        fail("federated.adversary.trigger", config.trigger, "a word of which the tokenizer makes tokens")
    return Trigger(tokens=tuple(tokens))


def check_adversary(config: AdversaryConfig, data: FederatedData) -> None:
    """Look whether the attack suits the data.

    Raises:
        ConfigError: it does not.

    """
    if config.kind not in ON_DATA:
        return
    if data.kind != "classification":
        fail("federated.adversary.kind", config.kind, f"an attack on updates, because task.kind is {data.kind}")
    if config.kind == "backdoor" and PIXELS in data.train.column_names:
        fail("task.data", "shared", "broadcast, because a backdoor changes images before they are pixels")
    last = len(data.label_names) - 1
    if config.kind == "backdoor" and config.target_label > last:
        fail("federated.adversary.target_label", config.target_label, f"0 to {last}, the task's labels")


def poisoned(
    config: Config, data: FederatedData, adversaries: Adversaries | None
) -> tuple[datasets.Dataset | SharedRows, Partition]:
    """Return what clients train on, and who owns which rows of it; `data` itself is not changed."""
    settings = config.federated.adversary
    if adversaries is None or settings.kind not in ON_DATA:
        return data.shared or data.train, data.partition
    order, spoilt = data.partition.order.copy(), list[int]()
    for client in sorted(adversaries.clients):
        spoilt += _spoilt_places(config, data.partition, client)
    bad = subset(data.train, order[spoilt])
    if settings.kind == "label_flip":
        last = len(data.label_names) - 1
        bad = _mapped(bad, lambda row: {**row, LABEL: last - row[LABEL]})
    else:
        trigger, target = make_trigger(settings, data), settings.target_label
        bad = _mapped(bad, lambda row: {**trigger.on(row), LABEL: target})
    order[spoilt] = len(data.train) + np.arange(len(spoilt))
    partition = Partition(order, data.partition.offsets)
    if data.shared is not None:
        return replace(data.shared, more=bad), partition
    return datasets.concatenate_datasets([data.train, bad]), partition


def with_trigger(config: AdversaryConfig, data: FederatedData) -> datasets.Dataset:
    """Return the evaluation examples of other classes than the target, with the trigger and labelled as the target."""
    trigger = make_trigger(config, data)
    labels = data.evaluation.with_format("numpy")[LABEL][:]
    others = subset(data.evaluation, np.flatnonzero(labels != config.target_label))
    return _mapped(others, lambda row: {**trigger.on(row), LABEL: config.target_label})


def _spoilt_places(config: Config, partition: Partition, client: int) -> list[int]:
    """Return which places of the partition's order an adversary spoils: all of its own, or the backdoor's share."""
    start, end = int(partition.offsets[client]), int(partition.offsets[client + 1])
    if config.federated.adversary.kind == "label_flip":
        return list(range(start, end))
    number = ceil(config.federated.adversary.poison_ratio * (end - start) - 1e-9)
    drawn = numpy_rng(config.client_seed, "poison", 0, client).permutation(end - start)[:number]
    return sorted((start + drawn).tolist())


def _mapped(dataset: datasets.Dataset, change: Any) -> datasets.Dataset:
    return dataset.map(
        change, features=dataset.features, keep_in_memory=True, load_from_cache_file=False, new_fingerprint="poisoned"
    )
