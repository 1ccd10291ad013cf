"""Membership guessed from one client's update: clients of a finished run train once more, and each update is looked at.

That is what a server sees that gets updates in the clear: the honest but curious one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata
from torch import Tensor

from fedpft.config import Config
from fedpft.data.collate import rows
from fedpft.data.datamodule import FederatedData
from fedpft.evaluation.update_span import span_scores, spans
from fedpft.federated.broadcast import client_package
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.methods.base import Proxy
from fedpft.models.flags import restored_flags
from fedpft.models.lora import AdaptedModel, adapter_parameters, get_adapter, set_adapter
from fedpft.privacy.membership import Attack, attack
from fedpft.seeding import numpy_rng
from fedpft.trainer import accelerator

NUM_CLIENTS, NUM_EXAMPLES = 8, 64
"""Whose updates are looked at, and of each its examples and as many others, at most."""


def update_attack(
    proxy: AdaptedModel, data: FederatedData, config: Config, clients: Sequence[int], round_index: int
) -> Attack | None:
    """Tell clients' examples from others by their updates alone (see `fedpft.evaluation.update_span`).

    The others are examples of the evaluation set, of a classification with the client's own labels, so that it is not
    these that give it away. Scores are ranks among those of one update, since updates differ.

    Args:
        proxy: with the run's last adapter, which is sent to the clients; it ends with the same.
        data: the run's.
        config: the run's.
        clients: that trained, each with examples.
        round_index: of the round after the last.

    Returns:
        None where an update has no A in it (`federated.lora_aggregation` other than `separate` and `svd`), or needs
        what a finished run does not keep (SCAFFOLD, FedNova, a rule of others, a head that reads standardized inputs),
        or where nobody else has such labels.

    """
    if config.federated.head_inputs == "standardized":
        return None
    rule = config.federated.client.kind
    if rule not in ("adamw", "sgd", "prox") or config.federated.lora_aggregation not in ("separate", "svd"):
        return None
    device, sent, parameters = accelerator(config.server.accelerator), get_adapter(proxy), adapter_parameters(proxy)
    before = {name: p.detach().to(device, copy=True) for name, p in parameters.items() if "lora_A." in name}
    plan = RoundPlan(round_index=round_index, lr=config.federated.lr, adapter=sent, count_activations=False)
    rng = numpy_rng(config.seed, "update_attack")
    members, others = [], []
    with restored_flags(proxy):
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        package = client_package(config, Proxy(model=proxy, watched_layers=()), data)
        settings = replace(package.settings, accelerator=device, clients_per_batch=1)
        place = LocalClient(replace(package, settings=settings))
        proxy.to(device).eval()
        for client in rng.permutation(clients)[:NUM_CLIENTS]:
            shard = data.partition.shard(int(client))
            own = rng.choice(shard, size=min(NUM_EXAMPLES, len(shard)), replace=False)
            beside = _others(data, own, rng)
            set_adapter(proxy, place.fit(plan, int(client)).adapter)
            if not (bases := spans(proxy, before)):
                continue
            sets = ((data.train, own), (data.evaluation, beside))
            scores = np.concatenate([_scores(proxy, bases, data, *which, config, device) for which in sets])
            ranks = rankdata(scores) / len(scores)
            members.append(ranks[: len(own)])
            others.append(ranks[len(own) :])
    set_adapter(proxy, sent)
    return attack(np.concatenate(members), np.concatenate(others)) if any(map(len, others)) else None


def _others(data: FederatedData, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many rows of the evaluation set; of a classification, for each of a client's own one of its label."""
    if data.kind != "classification":
        return rng.choice(len(data.evaluation), size=min(len(own), len(data.evaluation)), replace=False)
    labels, wanted = np.array(data.evaluation["label"]), np.array(data.train["label"])[own]
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(*np.unique(wanted, return_counts=True), strict=True)
    ]
    return np.concatenate(drawn)


def _scores(
    proxy: AdaptedModel,
    bases: Mapping[str, Tensor],
    data: FederatedData,
    dataset: Dataset,
    chosen: np.ndarray,
    config: Config,
    device: str,
) -> np.ndarray:
    """Return the score of each of these rows."""
    found, size = [np.zeros(0)], config.evaluation.batch_size
    for start in range(0, len(chosen), size):
        batch = data.collate(rows(dataset, chosen[start : start + size]))
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        found.append(span_scores(proxy, bases, inputs).cpu().numpy())
    return np.concatenate(found)
