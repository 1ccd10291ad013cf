"""The figures of the page of results, drawn from the records whenever the book is built."""

import importlib
from pathlib import Path
from statistics import fmean, median

import results

FOLDER = Path(__file__).parents[1] / "_build" / "figures"
COLOURS = {"full": "#555555", "fedpft": "#1b6ca8", "fedot": "#c8641b"}
PAGE = "/_build/figures"
"""The folder, as a page names it."""


def methods() -> str:
    """Draw accuracy against the size of what clients tune."""
    plt = _pyplot()
    t = importlib.import_module("scipy.stats").t
    cells = [cell for cell in results.cells_of("methods") if cell["partition"] == "iid" and not cell.get("rounds")]
    figure, axes = plt.subplots(1, len(results.TASKS), figsize=(9, 3.2), layout="constrained")
    names = {"full": "FedPETuning", "fedpft": "FedPFT", "fedot": "FedOT"}
    for axis, (task, title) in zip(axes, results.TASKS.items(), strict=True):
        of_task = [cell for cell in cells if cell["task"] == task]
        for method in sorted({cell["method"] for cell in of_task} - {"fedpft_67_n", "fedpft_67_b", "fedpft_67_d"}):
            of_method = [cell for cell in of_task if cell["method"] == method]
            sizes = of_method[0]["num_transformer_params_sub_fm"], of_method[0]["num_transformer_params_fm"]
            scores = [100 * cell["fm"] for cell in of_method]
            spread = importlib.import_module("statistics").stdev(scores) / len(scores) ** 0.5
            half = t.ppf(0.975, len(scores) - 1) * spread
            family = method.partition("_")[0]
            shift = {"fedot": 1, "fedpft": -1}.get(family, 0)
            axis.errorbar(
                100 * sizes[0] / sizes[1] + shift, fmean(scores), yerr=half, fmt="s" if method.endswith("_e") else "o",
                color=COLOURS[family], capsize=3, markersize=5,
            )  # fmt: skip
        untuned = 100 * fmean(cell["untuned_fm"] for cell in of_task)
        axis.axhline(untuned, color="#999999", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="transformer parameters, % of the FM's", xlim=(42, 108))
    axes[0].set_ylabel("accuracy of the plugged-in FM, %")
    marks = [plt.Line2D([], [], marker="o", linestyle="", color=COLOURS[key], label=name) for key, name in names.items()]
    marks.append(plt.Line2D([], [], marker="s", linestyle="", color=COLOURS["fedot"], label="FedOT with an emulator, at 67 %"))
    marks.append(plt.Line2D([], [], linestyle=":", color="#999999", label="untuned FM"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=8)
    return _saved(figure, "methods", "Accuracy of the plugged-in FM against the size of what clients tune, three tasks")


def alignment() -> str:
    """Draw hidden error against the server's time, a quarter of the neurons kept."""
    plt = _pyplot()
    cells = [cell for cell in results.cells_of("alignment") if cell["ratio"] == 0.25]
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    kinds = ("none", "closed_form", "distill_100", "closed_form+distill_100", "distill_500")
    for scorer, mark in (("weight_norm", "o"), ("activation", "s"), ("greedy", "^")):
        found = {cell["alignment"]: cell for cell in cells if cell["scorer"] == scorer}
        points = [(max(1, found[kind]["construct_cpu_seconds"]), found[kind]["hidden_errors"][-1]) for kind in kinds]
        axis.plot(*zip(*points, strict=True), mark, linestyle="-", linewidth=0.7, markersize=5, label=scorer)
        if scorer == "greedy":
            for kind, point in zip(kinds, points, strict=True):
                axis.annotate(kind.replace("_", " "), point, xytext=(4, -12), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel="CPU seconds of scorer and alignment", ylabel="hidden error, last layer", ylim=(0.35, 1.35))
    axis.legend(title="method.scorer", frameon=False, fontsize=8, title_fontsize=8)
    return _saved(figure, "alignment", "Hidden error of the sub-FM against CPU seconds, for three scorers")


def simulation() -> str:
    """Draw a round's time over plain PyTorch's."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained", sharey=True)
    names = list(results.PEERS)[::-1]
    titles = [results.PEERS[name].replace("*", "").replace("`", "") for name in names]
    for axis, (workload, title) in zip(axes, (("minilm", "training counts"), ("overhead", "overhead counts")), strict=True):
        ratios = [median(results.time_ratios(workload, name)) for name in names]
        colours = [COLOURS["fedpft" if name == "fedpft" else "full"] for name in names]
        bars = axis.barh(titles, ratios, color=colours, height=0.6)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axis.axvline(1, color="#999999", linestyle=":", linewidth=1)
        axis.set(title=title, xlim=(0, 1.2 * max(ratios)))
    figure.supxlabel("seconds of a round over those of plain PyTorch in two processes", fontsize=9)
    return _saved(figure, "simulation", "Seconds of a round over those of plain PyTorch, four programs")


def _pyplot():  # noqa: ANN202 - matplotlib is there where the book is built
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "fedpft",
    })  # fmt: skip
    return importlib.import_module("matplotlib.pyplot")


def _saved(figure, name: str, description: str) -> str:  # noqa: ANN001
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    return f"![{description}]({PAGE}/{name}.svg)"
