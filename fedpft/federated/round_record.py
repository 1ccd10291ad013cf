"""What is written down of a round and of its clients."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedpft.config import FederatedConfig
from fedpft.federated.aggregate import Aggregation, in_client_order, mean_loss
from fedpft.federated.messages import ClientFailure, ClientReport, RoundPlan
from fedpft.federated.sampling import Attendance
from fedpft.federated.spending import clients_spent


def round_record(
    plan: RoundPlan,
    attendance: Attendance,
    aggregation: Aggregation,
    failures: Sequence[ClientFailure],
    adversaries: Collection[int] = (),
) -> dict[str, Any]:
    """Return the round's line; what is out of the ordinary has a key only when it happened.

    Args:
        plan: the round's.
        attendance: who was drawn.
        aggregation: of the good updates.
        failures: of the others.
        adversaries: all of the run.

    """
    reports = in_client_order(aggregation.reports)
    clients = [report.client_id for report in reports]
    unusual = {
        "dropped": sorted(set(attendance.cohort) - set(clients)),
        "failures": [str(failure) for failure in failures],
        "retries": sum(r.attempts - 1 for r in reports) + sum(f.attempts - 1 for f in failures),
        "unavailable": list(attendance.unavailable),
        "stragglers": list(attendance.stragglers),
        "candidates": list(attendance.candidates),
        "adversaries": sorted(set(adversaries) & set(clients)),
    }
    return {
        "round": plan.round_index,
        "clients": clients,
        "train_loss": mean_loss(reports) if reports else None,
        "client_losses": [report.metrics["loss"] for report in reports],
        "lr": plan.lr,
        "comm/bytes_up": aggregation.num_bytes,
        **clients_spent(reports),
        **_clipped(reports),
        **({} if aggregation.product_error is None else {"lora/product_error": aggregation.product_error}),
        **{key: value for key, value in unusual.items() if value},
    }


def _clipped(reports: Sequence[ClientReport]) -> dict[str, float]:
    """Return which part of the examples' gradients was too long, the mean over clients; only under DP of examples."""
    parts = [report.metrics["clipped"] for report in reports if "clipped" in report.metrics]
    return {"clients/clipped": sum(parts) / len(parts)} if parts else {}


def client_row(report: ClientReport) -> dict[str, Any]:
    """Return what the table of a round's clients has of one."""
    return {
        "client_id": report.client_id,
        "num_examples": report.num_examples,
        "loss": report.metrics["loss"],
        "seconds": report.metrics["seconds"],
        "actor": report.actor,
    }


def why_stopped(config: FederatedConfig, min_updates: int, uncounted_rounds: int, record: Mapping[str, Any]) -> str:
    """Return in one line why a run stops after rounds in a row that did not count.

    Args:
        config: the run's.
        min_updates: that the aggregator needs.
        uncounted_rounds: how many rounds.
        record: of the last one.

    """
    found = f"the last one, round {record['round']}, has {len(record['clients'])} good updates"
    absent = [f"{len(record[key])} {key}" for key in ("dropped", "unavailable", "stragglers") if key in record]
    allowed = f"federated.min_clients = {config.min_clients}"
    if min_updates > config.min_clients:
        allowed = f"the {min_updates} that federated.aggregator.kind = {config.aggregator.kind} needs"
    not_opened = [record["not_opened"]] if "not_opened" in record else []
    why = "; ".join([", ".join([found, *absent]), allowed, *record.get("failures", [])[-1:], *not_opened])
    return f"{uncounted_rounds} rounds in a row did not count: {why}"
