"""What `fedpft plan` prints: sizes, traffic, and a picture of who has which labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.filesize import decimal as format_bytes

from fedpft.report.compute import cost_rows
from fedpft.report.privacy import epsilon_by_round, privacy_rows, secure_rows
from fedpft.report.screen import facts_table, print_note

_MAX_CLIENT_ROWS = 20
_SHADES = "·░▒▓█"
_SHADE_LIMITS = (0.0, 0.1, 0.25, 0.5)  # largest share of each shade but the last
_LABEL_WIDTH = 7


def print_plan(console: Console, plan: Mapping[str, Any], *, full: bool = False) -> None:
    """Print what `fedpft plan` knows: settings, the partition, sizes, traffic, actors and notes.

    Keys of `plan` shown: own_settings, or with `full` config_yaml; label_histogram (clients x labels; None: kept back),
    label_names, num_params_fm, num_params_sub_fm, num_params_adapter, num_transformer_params_fm,
    num_transformer_params_sub_fm, bytes_up_per_client_round, bytes_down_per_client_round, bytes_held_by_server,
    client_states_bytes, local_step, actors, pool, memory, data, privacy, secure_aggregation, notes; by method.
    """
    settings = plan["config_yaml"]
    if not full:
        console.print("[bold]Settings[/bold] other than the defaults; --full shows all:")
        settings = yaml.safe_dump(plan["own_settings"], sort_keys=False, allow_unicode=True)
    console.print(settings.rstrip(), markup=False, soft_wrap=True)
    if plan["label_histogram"] is not None:
        console.print(
            "\n[bold]Partition[/bold]: label shares in each client: · none, ░ to 10 %, ▒ to 25 %, ▓ to 50 %, █ more"
        )
        for line in partition_picture(plan["label_histogram"], plan["label_names"], console.width):
            console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
    facts = facts_table()
    for row in cost_rows(plan):
        facts.add_row(*row)
    facts.add_row("actors", str(plan["actors"]), f"pool {plan['pool']}")
    for row in memory_rows(plan.get("memory", ())):
        facts.add_row(*row)
    for row in (*privacy_rows(plan), *secure_rows(plan)):
        facts.add_row(*row)
    console.print(facts)
    console.print(f"data: {plan['data']}", highlight=False, soft_wrap=True)
    if "privacy" in plan:
        console.print(f"{epsilon_by_round(plan)}\n", highlight=False, soft_wrap=True)
    for line in plan["notes"]:
        print_note(console, line)


def memory_rows(memory: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row: who holds how much at most, during what, and of what room."""
    for part in memory:
        place = "" if part["kind"] == "shared memory" else f", {part['kind']}"
        note = f"during {part['during']}"
        if part["room_bytes"] is not None:
            room = format_bytes(round(part["share"] * part["room_bytes"]))
            note += f"; {'fits' if part['fits'] else 'does not fit'} into {room}"
        yield f"{part['holder']}{place}", format_bytes(part["num_bytes"]), note


def partition_picture(histogram: Sequence[Sequence[int]], label_names: Sequence[str], width: int) -> Iterable[str]:
    """Return the lines of a picture of a partition, clients x labels, at most `width` columns wide.

    The shade of a cell is the label's share of the client's examples: · none, ░ to 10 %, ▒ to 25 %, ▓ to 50 %, █ more.
    """
    counts = np.asarray(histogram)  # (clients, labels)
    sizes = counts.sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    room = (width - 16) // len(label_names)  # columns for a label, with the space after it
    cell, num_shown = (min(room - 1, _LABEL_WIDTH), None) if room >= 2 else (1, width - 16)
    gap = " " if room >= 2 else ""
    if cell >= 3:
        yield f"{'client':>6} {'size':>7}  " + gap.join(f"{name[:cell]:<{cell}}" for name in label_names)
    for client_id, share in enumerate(shares[:_MAX_CLIENT_ROWS]):
        shades = (_SHADES[np.searchsorted(_SHADE_LIMITS, value)] * cell for value in share[:num_shown])
        yield f"{client_id:>6} {sizes[client_id]:>7}  {gap.join(shades)}"
    if len(counts) > _MAX_CLIENT_ROWS:
        yield f"   ... {len(counts) - _MAX_CLIENT_ROWS} more"
    yield f"{len(counts)} clients, {counts.sum()} examples; over all clients:"
    quantities = {"size": sizes}
    if len(label_names) > 1:
        quantities |= {"labels held": (counts > 0).sum(axis=1), "largest share %": 100 * shares.max(axis=1)}
    for name, values in quantities.items():
        low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
        ends = (
            f"min {values.min():<6.0f} 10 % {low:<6.0f} median {median:<6.0f} 90 % {high:<6.0f} max {values.max():.0f}"
        )
        yield f"  {name:<16} {ends}"
