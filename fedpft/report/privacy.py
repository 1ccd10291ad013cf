"""What is guaranteed to clients, for people: rows of the tables of plan, result, page and card."""

from collections.abc import Iterator, Mapping
from typing import Any

SIMULATION_ONLY = "simulation only"
"""Mark of numbers that no server of real clients would have."""

NOISED = {"client": "mean update", "example": "mean gradient of a step"}
"""Unit of the guarantee -> what has noise on it."""


def privacy_rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row, given `result.json` or a plan; none for a run without a guarantee."""
    if (found := values.get("privacy")) is None:
        return
    yield "epsilon", *_epsilon(found)
    yield "delta", f"{found['delta']:g}", f"unit: {found['unit']}; {found['neighbours']}"
    yield "noise multiplier", f"{found['noise_multiplier']:.4g}", _noise(found)
    if "simulated_population" in found:
        yield "population", f"{found['simulated_population']}", "simulated: epsilon is not that of this run's clients"


def secure_rows(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of what secure aggregation costs, given a plan; none for a run without it."""
    if (found := plan.get("secure_aggregation")) is None:
        return
    at_least = f"{found['threshold']} of {found['clients']} clients must be there at a round's end"
    yield "secure aggregation", f"steps of {found['resolution']:.2g}", at_least
    parts = ", ".join(f"{part} {number}" for part, number in found["bytes_per_client"].items())
    seconds = f"and {found['mask_seconds_per_client']:.2g} s for its masks on this machine"
    total = sum(found["bytes_per_client"].values())
    yield "traffic with masks", f"{total / 1e6:.2f} MB", f"a client and round, in bytes: {parts}; {seconds}"


def epsilon_by_round(plan: Mapping[str, Any]) -> str:
    """Return the line of `plan`: what is spent after how many rounds."""
    spent = plan["privacy"]["epsilon_by_round"]
    return "epsilon by round: " + ", ".join(f"{rounds}: {value:.3g}" for rounds, value in spent.items())


def _epsilon(found: Mapping[str, Any]) -> tuple[str, str]:
    if "epsilon_by_round" in found:
        *_, last = found["epsilon_by_round"].values()
        return f"{last:.3f}", f"after {found['rounds']} rounds; {found['sampling']}"
    after = f"after {found['releases']} releases, " if "releases" in found else ""  # which may tell a client's size
    note = f"{after}by {found['accountant']}; RDP {found['epsilon_rdp']:.3f}"
    return f"{found['epsilon']:.3f}", f"{note}; {found['sampling']}"


def _noise(found: Mapping[str, Any]) -> str:
    if "noise_ratio" in found:
        return f"noise over the longest {NOISED[found['unit']]}: {found['noise_ratio']:.3g}"
    return f"clip {found['clip']:.4g}"
