"""Parameters, and what clients send, compute and hold, for people: rows of the tables of plan, result and page."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.filesize import decimal as format_bytes

from fedpft.report.scores import CURVES, shown_models

_COUNTS = (("params", "parameters", 10**6, "M"), ("transformer_params", "transformer layers", 2**20, "Mi"))
"""Count, its title, and its unit: for the layers alone it is the paper's."""


def cost_rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row that plan and result share: parameters, a client's bytes and compute."""
    models = shown_models(CURVES, values)
    for kind, title, unit, name in _COUNTS:
        counts = {model: values[f"num_{kind}_{model}"] for model in models}
        for model, count in counts.items():
            smaller = f"{counts['fm'] / count:.2f} x smaller" if model == "sub_fm" else ""
            yield f"{title}, {models[model]}", f"{count / unit:.2f} {name}", smaller
    yield "parameters, adapter", f"{values['num_params_adapter'] / 1e6:.2f} M", ""
    for direction in ("up", "down"):
        size = format_bytes(values[f"bytes_{direction}_per_client_round"])
        yield f"traffic {direction}", size, "per client and round"
    if "client_states_bytes" in values:
        size = format_bytes(values["client_states_bytes"])
        yield "client states", size, "on disk, when every client has trained"
    if "bytes_held_by_server" in values:
        yield "aggregation", format_bytes(values["bytes_held_by_server"]), "held by the server: all updates of a round"
    yield from compute_rows(values)


def compute_rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row: what clients spent, or before a run, one step; none if not counted."""
    if "local_step" not in values:
        return
    step = values["local_step"]
    batch = f"{step['examples']} x {step['tokens']} tokens" if "tokens" in step else f"{step['examples']} examples"
    more_flops, more_bytes = (step[f"{what}_fm"] / step[f"{what}_sub_fm"] for what in ("flops", "memory_bytes"))
    if "client_flops_per_round" in values:
        flops, per, size = values["client_flops_per_round"], "client and round", values["client_memory_bytes"]
    else:
        flops, per = step["flops_sub_fm"], f"step of {batch}"
        size = step["memory_bytes_sub_fm"]
    yield "compute", format_flops(flops), f"per {per}; FM: {more_flops:.2f} x"
    yield "memory", format_bytes(size), f"of a client; FM: {more_bytes:.2f} x"
    if "client_gpu_bytes" in values:
        yield "GPU memory", format_bytes(values["client_gpu_bytes"]), "of a client, measured"


def format_flops(flops: float) -> str:
    """Return a number of floating-point operations, e.g. `4.31 GFLOP`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if round(flops, 1) < 1000:
            return f"{flops:.3g} {prefix}FLOP"
        flops /= 1000
    return f"{flops:.3g} EFLOP"
