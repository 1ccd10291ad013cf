"""An audit in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedpft.report.fidelity import skill_rows
from fedpft.report.scores import MODELS, metric_change

BROKEN = "; THE GUARANTEE IS BROKEN"


def print_audit(console: Console, found: Mapping[str, Any]) -> None:
    """Print what `fedpft.run.audit.audit` returned."""
    table = Table(title=f"{found['name']}: {found['method']}", title_justify="left", box=SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for row in audit_rows(found):
        table.add_row(*row)
    console.print(table)


def audit_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row."""
    for model, attack in found["membership"].items():
        control = "; the control: it knows no member" if model == "untuned_fm" else ""
        error = f"± {attack['auc_error']:.3f}; {attack['num_members']} members, {attack['num_others']} others{control}"
        yield f"membership AUC, {MODELS[model]}", f"{attack['auc']:.3f}", error
        yield "found at 1 % false accusations", f"{100 * attack['tpr']:.1f} %", "knowing nothing: 1 %"
    if of_updates := found.get("update_membership"):
        note = f"± {of_updates['auc_error']:.3f}; for whoever sees one client's update in the clear"
        yield "membership AUC, single updates", f"{of_updates['auc']:.3f}", note
    if "delta" in found:
        yield "plugged-in FM minus sub-FM", metric_change(found["delta"], found["metric"]), "the owner's gain (Delta)"
    yield from skill_rows(found.get("skill", {}))
    if planted := found.get("planted"):
        accounted = planted["accounted_epsilon"]
        kept = accounted is None or planted["epsilon"] <= accounted
        said = "no guarantee" if accounted is None else f"accounted {accounted:.3f}"
        coins = f"{planted['num_right']} of {planted['num_guesses']} guesses right, {planted['num_canaries']} canaries"
        note = f"at least, of {planted['unit']}s in this run: {coins}; {said}"
        yield "epsilon by this run", f"{planted['epsilon']:.3f}", note + ("" if kept else BROKEN)
    if canaries := found.get("canaries"):
        kept = canaries["epsilon"] <= canaries["accounted_epsilon"]
        note = (
            f"at least, by {canaries['num_runs']} runs of the mechanism; accounted {canaries['accounted_epsilon']:.3f}"
        )
        yield "epsilon by canaries", f"{canaries['epsilon']:.3f}", note + ("" if kept else BROKEN)
