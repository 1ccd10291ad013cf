"""What a finished run gives away: of the clients' data by its models, and of the FM by the sub-FM.

All is measured after the fact, on the files that the run left and the data that it had; nothing in the run changes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from fedpft.config import Config, ConfigError
from fedpft.data.canaries import Canaries
from fedpft.data.datamodule import FederatedData
from fedpft.evaluation.example_losses import example_losses
from fedpft.federated.sampling import draw_attendance
from fedpft.models.loading import load_sub_fm
from fedpft.models.lora import AdaptedModel
from fedpft.models.spread import spread_over_gpus
from fedpft.privacy.accountant import Event
from fedpft.privacy.canaries import canary_bound, one_run_bound
from fedpft.privacy.guarantee import Guarantee, PrivacyState
from fedpft.privacy.membership import attack
from fedpft.privacy.table import guarantee_of
from fedpft.run.finished import finished_run, tuned_fm, tuned_sub_fm, untuned_fm
from fedpft.run.inputs import load_data
from fedpft.run.skill import skill_of
from fedpft.run.tuning import public_data
from fedpft.run.update_attack import update_attack
from fedpft.seeding import derive_seed, numpy_rng
from fedpft.storage.output import AUDIT_FILE, ROUNDS_FILE, write_json
from fedpft.trainer import Progress, SilentProgress, gpus_of_fm

NUM_EXAMPLES = 2000
"""Members and others, each at most."""

CANARY_RELEASES = 60_000
"""In all canary runs with a canary together, and as many without: seconds."""


def audit(run_dir: Path, progress: Progress | None = None, *, num_examples: int = NUM_EXAMPLES) -> dict[str, Any]:
    """Measure what a run gives away, and write it to `audit.json` in its folder.

    Args:
        run_dir: the output folder of a finished run.
        progress: hears about the stages.
        num_examples: of the clients' examples, and of others, at most.

    Returns:
        `membership`: for each model an `Attack`; `update_membership`: one on updates of single clients, where these
        tell anything; `planted`: a `OneRunBound` by the run's own canaries, where it has any; `skill`: a
        `SharedSkill`, where there is a sub-FM; `delta`: primary metric of the plugged-in FM minus the sub-FM's;
        `canaries`: a `CanaryBound` beside the accountant's epsilon, where there is one.

    Raises:
        ConfigError: no finished run, or data or models that cannot be loaded again.

    """
    progress = progress or SilentProgress()
    config, result = finished_run(run_dir)
    found: dict[str, Any] = {"name": result["name"], "method": result["method"], "metric": result["metric"]}
    data = load_data(config, progress)
    fm, _ = untuned_fm(run_dir, config, result)
    models = {"fm": tuned_fm(run_dir, config, result)}
    if num_gpus := gpus_of_fm(config):
        progress.stage("spread FM over GPUs")
        for model in (fm, models["fm"]):
            spread_over_gpus(model, num_gpus)
    if (run_dir / "sub_fm").exists():
        models["sub_fm"] = tuned_sub_fm(run_dir)
        progress.stage("compare the skill of FM and sub-FM")
        sub_fm = load_sub_fm(run_dir / "sub_fm")
        found["skill"] = asdict(skill_of(fm, sub_fm, public_data(data), data, config, probes=True))
        found["delta"] = result["fm"] - result["sub_fm"]
    clients = _clients(run_dir, data)
    members = np.concatenate([data.partition.shard(client) for client in clients])
    members = members[members < (data.canaries.first_row if data.canaries else len(data.train))]
    found["membership"] = _membership(fm, models, data, config, members, progress, num_examples)
    progress.stage("look at single updates")
    proxy = models.get("sub_fm", models["fm"])
    if (of_updates := update_attack(proxy, data, config, clients, result["rounds"] + 1)) is not None:
        found["update_membership"] = asdict(of_updates)
    if data.canaries is not None:
        progress.stage("losses of planted canaries")
        found["planted"] = _planted(fm, proxy, data, data.canaries, config, result.get("privacy", {}))
    noise_multiplier = result.get("privacy", {}).get("noise_multiplier")
    if (guarantee := guarantee_of(config, data.partition.sizes, noise_multiplier)) is not None:
        progress.stage("run canaries")
        event = _dearest(guarantee, config, data.partition.sizes, result["rounds"])
        runs = max(1000, CANARY_RELEASES // event.count)
        bound = canary_bound(guarantee, event, num_runs=runs, seed=derive_seed(config.seed, "canaries"))
        found["canaries"] = {**asdict(bound), "accounted_epsilon": result["privacy"]["epsilon"]}
    write_json(run_dir / AUDIT_FILE, found)
    return found


def _dearest(guarantee: Guarantee, config: Config, sizes: np.ndarray, num_rounds: int) -> Event:
    """Return the releases that cost one unit most: the run's draws of clients are the same when they are made again."""
    state: PrivacyState = guarantee.start()
    for round_index in range(1, num_rounds + 1):
        drawn = draw_attendance(config.federated, sizes, config.client_seed, round_index)
        state = guarantee.spent(state, drawn.begun)
    return guarantee.dearest(state)


def _membership(
    fm: PreTrainedModel,
    models: Mapping[str, AdaptedModel],
    data: FederatedData,
    config: Config,
    members: np.ndarray,
    progress: Progress,
    num_examples: int,
) -> dict[str, Any]:
    """Return an attack for each model, by how much lower its loss of an example is than the untuned FM's.

    `untuned_fm` is the control: its own losses, which know nothing of the run. If it tells members from others, the two
    sets differ by themselves, and so much of the other numbers is no leak.
    """
    rng = numpy_rng(config.seed, "audit")
    chosen = [
        np.sort(rng.choice(each, size=min(num_examples, len(each)), replace=False))
        for each in (members, np.arange(len(data.evaluation)))
    ]
    sets = list(zip((data.train, data.evaluation), chosen, strict=True))

    def losses(model: Any) -> list[np.ndarray]:
        how: dict[str, Any] = {"kind": data.kind, "batch_size": config.evaluation.batch_size, "server": config.server}
        return [example_losses(model, dataset, rows, data.collate, **how) for dataset, rows in sets]

    progress.stage("losses of the untuned FM")
    reference = losses(fm)
    found = {"untuned_fm": asdict(attack(*(-each for each in reference)))}
    for name, model in models.items():
        progress.stage(f"losses of the tuned {'FM' if name == 'fm' else 'sub-FM'}")
        tuned = losses(model)
        found[name] = asdict(attack(*(before - after for before, after in zip(reference, tuned, strict=True))))
    return found


def _planted(
    fm: PreTrainedModel,
    proxy: AdaptedModel,
    data: FederatedData,
    canaries: Canaries,
    config: Config,
    guarantee: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a `OneRunBound` on the epsilon of the run's own training, and an attack's AUC on its canaries.

    They are guessed by how much lower their loss is by the proxy, which was trained on them, than by the untuned FM.
    """
    how: dict[str, Any] = {"kind": data.kind, "batch_size": config.evaluation.batch_size, "server": config.server}

    def losses(model: Any) -> np.ndarray:
        return example_losses(model, canaries.examples, range(len(canaries.planted)), data.collate, **how)

    before, after = losses(fm), losses(proxy)
    scores, planted = before - after, canaries.planted
    is_mixed = planted.any() and not planted.all()
    return {
        **asdict(one_run_bound(scores, planted, guarantee.get("delta", 0.0))),
        "unit": "client" if canaries.are_clients else "example",
        "auc": attack(scores[planted], scores[~planted]).auc if is_mixed else None,
        "accounted_epsilon": guarantee.get("epsilon"),
    }


def _clients(run_dir: Path, data: FederatedData) -> list[int]:
    """Return who trained, as far as the run says it, else all clients; only those that have examples of their own."""
    lines = (run_dir / ROUNDS_FILE).read_text(encoding="utf-8").splitlines()
    trained = {client for line in lines for client in json.loads(line).get("clients", ())}
    others = data.canaries.clients if data.canaries else frozenset()
    able = [
        client
        for client in sorted(trained or range(data.partition.num_clients))
        if client not in others and len(data.partition.shard(client))
    ]
    if not able:
        raise ConfigError("RUN_DIR: found a run in which nobody trained, allowed: one with members to look for")
    return able
