"""Embedded instruction data: what does this function of Python's standard library do?

The answer is the first sentence of its docstring. Read as in `fedpft.data.embedded.stdlib_docs`; the owners are the ten
packages with the most examples.
"""

import ast
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets

from fedpft.data.embedded.stdlib_docs import (
    NUM_PACKAGES,
    documented_nodes,
    held_out_groups,
    near_duplicate_groups,
    package_modules,
)

MIN_WORDS, MAX_WORDS = 4, 30

COLUMNS = ("function", "arguments", "summary", "package")


def stdlib_summaries_task(stdlib: Path | None = None) -> tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...]]:
    """Return train and evaluation rows (`COLUMNS`, all strings) and the package names, sorted.

    A function of the files alone. About a quarter of every package is evaluated on; no answer there is one of the
    training data's, or nearly so. `stdlib` is the folder of packages; None: the running Python's.
    """
    found = list(_summaries(stdlib or Path(sysconfig.get_path("stdlib"))))
    counts = Counter(row["package"] for row in found)
    packages = sorted(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NUM_PACKAGES])
    chosen = [row for row in found if row["package"] in packages]
    groups = near_duplicate_groups([row["summary"] for row in chosen])
    keyed = [{"text": row["summary"], "label": packages.index(row["package"])} for row in chosen]
    held_out = held_out_groups(groups, keyed)
    sides = [[row for row, group in zip(chosen, groups, strict=True) if (group in held_out) == side] for side in (0, 1)]
    features = datasets.Features({column: datasets.Value("string") for column in COLUMNS})
    train, evaluation = (datasets.Dataset.from_list(side, features=features) for side in sides)
    return train, evaluation, tuple(packages)


def _summaries(stdlib: Path) -> Iterator[dict[str, str]]:
    """Yield a row for each answer of a package, the first of equals, in file order."""
    seen = set()
    for module, tree in package_modules(stdlib):
        for node in documented_nodes(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            summary = _first_sentence(ast.get_docstring(node) or "")
            package = module.split(".")[0]
            if MIN_WORDS <= len(summary.split()) <= MAX_WORDS and (package, summary) not in seen:
                seen.add((package, summary))
                arguments = ", ".join(argument.arg for argument in node.args.args)
                yield dict(zip(COLUMNS, (f"{module}.{node.name}", arguments, summary, package), strict=True))


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".") + "."
