"""Print the alignment benchmark's table in Markdown: `python -m experiments.benchmarks.alignment.table`."""

import json
from statistics import fmean

from experiments.benchmarks.alignment.cells import ALIGNMENTS, RATIOS, SCORERS
from experiments.benchmarks.alignment.run import RESULTS

COLUMNS = {
    "hidden error": lambda cell: f"{cell['hidden_errors'][-1]:.3f}",
    "on the task": lambda cell: f"{cell['task_hidden_error']:.3f}",
    "gradient cosine": lambda cell: f"{cell['gradient_cosine']:.3f}",
    "after": lambda cell: f"{cell['gradient_cosine_after']:.3f}",
    "CPU s": lambda cell: f"{cell['construct_cpu_seconds']:.0f}",
}
ACCURACIES = {"sub-FM": "sub_fm", "FM": "fm"}


def main() -> None:
    """Read all finished cells; everything but the accuracies is the first seed's, accuracies are means over seeds."""
    cells = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    header = ["ratio", "scorer", "alignment", *COLUMNS, *(f"{name} %" for name in ACCURACIES), "seeds"]
    print("| " + " | ".join(header) + " |")
    print("| " + " | ".join("---" for _ in header) + " |")
    for ratio in sorted(RATIOS):
        for scorer in SCORERS:
            for alignment in ALIGNMENTS:
                wanted = {"ratio": ratio, "scorer": scorer, "alignment": alignment}
                found = [cell for cell in cells if wanted.items() <= cell.items()]
                if not found:
                    continue
                first = min(found, key=lambda cell: cell["seed"])
                accuracies = [f"{100 * fmean(cell[key] for cell in found):.1f}" for key in ACCURACIES.values()]
                row = [f"{ratio:g}", scorer, alignment, *(show(first) for show in COLUMNS.values()), *accuracies]
                print("| " + " | ".join([*row, str(len(found))]) + " |")


if __name__ == "__main__":
    main()
