"""The figures of the page of results, drawn from the records whenever the book is built: panels, one SVG each."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import results

FOLDER = Path(__file__).parents[1] / "_build" / "figures"
PAGE = "/_build/figures"
"""The folder, as a page names it."""
COLOURS = {"full": "#555555", "fedpft": "#1b6ca8", "fedot": "#c8641b"}
NAMES = {"full": "FedPETuning", "fedpft": "FedPFT", "fedot": "FedOT"}
ALIGNMENTS = {"none": "o", "closed_form": "s", "distill_100": "^", "closed_form+distill_100": "D", "distill_500": "v"}
"""Kind of alignment -> its mark."""
SHIFTS = {"full": 0, "fedpft": -1, "fedot": 1}
"""Per cent of the parameters by which points are moved, or those of one size would cover each other."""


def methods() -> str:
    """Draw accuracy against the size of what clients tune; half intervals are Student's t over seeds."""
    plt, t = _pyplot(), importlib.import_module("scipy.stats").t
    cells = [cell for cell in results.cells_of("methods") if cell["partition"] == "iid" and not cell.get("rounds")]
    panels = []
    for task, title in results.TASKS.items():
        of_task = [cell for cell in cells if cell["task"] == task]
        figure, axis = plt.subplots(figsize=(3.3, 3), layout="constrained")
        for method in sorted({cell["method"] for cell in of_task} - set(results.ABLATIONS)):
            of_method = [cell for cell in of_task if cell["method"] == method]
            size = of_method[0]["num_transformer_params_sub_fm"] / of_method[0]["num_transformer_params_fm"]
            scores = [100 * cell["fm"] for cell in of_method]
            half = t.ppf(0.975, len(scores) - 1) * stdev(scores) / len(scores) ** 0.5
            family, emulator = method.partition("_")[0], method.endswith("_e")
            label = NAMES[family] + ", emulator at 67 %" * emulator
            at, style = 100 * size + SHIFTS[family], "s" if emulator else "o"
            axis.errorbar(at, fmean(scores), yerr=half, fmt=style, color=COLOURS[family], capsize=3, label=label)
        axis.axhline(
            100 * fmean(cell["untuned_fm"] for cell in of_task), color="#999999", linestyle=":", label="untuned FM"
        )
        axis.set(
            title=title, xlabel="parameters, % of the FM's", ylabel="accuracy of the plugged-in FM, %", xlim=(42, 108)
        )
        labelled = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one entry for each name
        figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
        panels.append(_saved(figure, f"methods-{task}", f"Accuracy on {title} against the size of what clients tune"))
    return _side_by_side(panels)


def alignment() -> str:
    """Draw hidden error against the server's time, a quarter of the neurons kept."""
    plt = _pyplot()
    cells = [cell for cell in results.cells_of("alignment") if cell["ratio"] == 0.25]
    figure, axis = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    for scorer, colour in zip(("weight_norm", "activation", "greedy"), COLOURS.values(), strict=True):
        found = {cell["alignment"]: cell for cell in cells if cell["scorer"] == scorer}
        points = [
            (max(1, found[kind]["construct_cpu_seconds"]), found[kind]["hidden_errors"][-1]) for kind in ALIGNMENTS
        ]
        for point, mark in zip(points, ALIGNMENTS.values(), strict=True):
            axis.plot(*point, mark, color=colour, markersize=6)
        axis.plot(*zip(*sorted(points), strict=True), color=colour, linewidth=0.7, label=f"scorer {scorer}")
    for kind, mark in ALIGNMENTS.items():
        axis.plot([], [], mark, color="#555555", label=kind.replace("_", " "))
    axis.set(xscale="log", xlim=(0.8, 600), ylim=(0.4, 1.35))
    axis.set(xlabel="CPU seconds of scorer and alignment", ylabel="hidden error, last layer")
    axis.legend(frameon=False, fontsize=8)
    return _side_by_side([_saved(figure, "alignment", "Hidden error of the sub-FM against CPU seconds, three scorers")])


def simulation() -> str:
    """Draw a round's time over plain PyTorch's."""
    plt = _pyplot()
    names = list(results.PEERS)[::-1]
    titles = [results.PEERS[name].replace("*", "").replace("`", "") for name in names]
    panels = []
    for workload, title in (("minilm", "training counts"), ("overhead", "overhead counts")):
        figure, axis = plt.subplots(figsize=(4.2, 2), layout="constrained")
        ratios = [median(results.time_ratios(workload, name)) for name in names]
        colours = [COLOURS["fedpft" if name == "fedpft" else "full"] for name in names]
        axis.bar_label(axis.barh(titles, ratios, color=colours, height=0.6), fmt="%.2f", padding=3, fontsize=8)
        axis.axvline(1, color="#999999", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="round, times plain PyTorch's", xlim=(0, 1.25 * max(ratios)))
        panels.append(_saved(figure, f"simulation-{workload}", f"Time of a round over plain PyTorch's, {title}"))
    return _side_by_side(panels)


def together() -> str:
    """Draw clients a second of one place, over one at a time, against how many of them share a forward pass."""
    figure, axis = _pyplot().subplots(figsize=(4.2, 2.6), layout="constrained")
    for name, rates in results.together().items():
        times_one = [rate / rates["1"][0] for rate, _ in rates.values()]
        axis.plot([int(number) for number in rates], times_one, "o-", label=name.split(", ")[-1])
    axis.set(xlabel="clients in one forward pass", ylabel="clients a second, times one alone", ylim=(0, None))
    axis.legend(frameon=False)
    return _side_by_side([_saved(figure, "together", "Clients a second against clients in one forward pass")])


def robust() -> str:
    """Draw the accuracy of each aggregator against the number of Byzantine clients."""
    figure, axis = _pyplot().subplots(figsize=(5.2, 2.8), layout="constrained")
    record = results.robust_record()
    for name, cells in zip(record["rows"], record["cells"], strict=True):
        axis.plot(record["columns"], [100 * fmean(cell["values"]) for cell in cells], "o-", markersize=3, label=name)
    axis.set(xlabel="Byzantine clients", ylabel="accuracy of the FM in %")
    axis.legend(frameon=False, fontsize=7)
    return _side_by_side([_saved(figure, "robust", "Accuracy of each aggregator by the number of Byzantine clients")])


def _pyplot() -> Any:
    """Return matplotlib's, which is there where the book is built."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    plain = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "fedpft"}
    matplotlib.rcParams.update(plain)
    return importlib.import_module("matplotlib.pyplot")


def _saved(figure: Any, name: str, description: str) -> str:
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    importlib.import_module("matplotlib.pyplot").close(figure)
    return f"![{description}]({PAGE}/{name}.svg)"


def _side_by_side(panels: Sequence[str]) -> str:
    return "\n\n".join([":::{container} panels", *panels, ":::"])
