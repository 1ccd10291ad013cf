"""Embedded text task: which package of Python's standard library does this docstring document?

Read from the running Python's own files with `ast`: nothing is imported, downloaded or shipped. The classes are the ten
packages with the most examples, so they differ a little between Python versions.
"""

import ast
import gc
import hashlib
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import datasets

NUM_PACKAGES = 10
MIN_WORDS = 8
EVALUATION_RATIO = 0.25
SHINGLE_WORDS = 3
NEAR_DUPLICATE_JACCARD = 0.5
# Shingles shared by more texts than this are boilerplate ("return true if"): they would make the index quadratic.
MAX_POSTINGS = 60
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "__pycache__"})
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def stdlib_docs_task(stdlib: Path | None = None) -> tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...]]:
    """Return train and evaluation rows (`text`, `label`, `module`) and the package names, sorted.

    A function of the files alone, so the evaluation set is the same for every seed.
    `stdlib` is the folder of packages; None: the running Python's.
    """
    documents = _unique_documents(stdlib or Path(sysconfig.get_path("stdlib")))
    counts = Counter(module.split(".")[0] for module in documents.values())
    packages = sorted(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NUM_PACKAGES])
    rows = [
        {"text": text, "label": packages.index(package), "module": module}
        for text, module in documents.items()
        if (package := module.split(".")[0]) in packages
    ]
    groups = near_duplicate_groups([str(row["text"]) for row in rows])
    held_out = held_out_groups(groups, rows)
    sides = [[row for row, group in zip(rows, groups, strict=True) if (group in held_out) == side] for side in (0, 1)]
    train, evaluation = (datasets.Dataset.from_list(side, features=_FEATURES) for side in sides)
    return train, evaluation, tuple(packages)


_FEATURES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.Value("int64"), "module": datasets.Value("string")}
)


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """Return for each text the smallest index in its group.

    Two texts share a group when their sets of word triples overlap with a Jaccard index of at least 0.5, or their first
    sentences are the same but for case and digits, directly or through other texts.
    """
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(a: int, b: int) -> None:
        low, high = sorted((root(a), root(b)))
        parent[high] = low

    shingles = [_shingles(text) for text in texts]
    postings: dict[tuple[str, ...], list[int]] = defaultdict(list)
    openings: dict[str, int] = {}
    for index, text in enumerate(texts):
        for shingle in shingles[index]:
            postings[shingle].append(index)
        join(openings.setdefault(_first_sentence(text), index), index)
    shared: Counter[tuple[int, int]] = Counter()
    for members in postings.values():
        if len(members) <= MAX_POSTINGS:
            shared.update(combinations(members, 2))
    for a, b in shared:
        common = len(shingles[a] & shingles[b])
        if common >= NEAR_DUPLICATE_JACCARD * (len(shingles[a]) + len(shingles[b]) - common):
            join(a, b)
    return [root(index) for index in range(len(texts))]


def _unique_documents(stdlib: Path) -> dict[str, str]:
    """Return text -> dotted module, in file order; a text that occurs in several packages says nothing: dropped."""
    documents: dict[str, str] = {}
    ambiguous = set()
    for module, text in _documents(stdlib):
        first = documents.setdefault(text, module)
        if first.split(".")[0] != module.split(".")[0]:
            ambiguous.add(text)
    return {text: module for text, module in documents.items() if text not in ambiguous}


def _documents(stdlib: Path) -> Iterator[tuple[str, str]]:
    for module, tree in package_modules(stdlib):
        for node in documented_nodes(tree):
            text = " ".join((ast.get_docstring(node, clean=False) or "").split())
            if text.count(" ") + 1 >= MIN_WORDS:
                yield module, text


def package_modules(stdlib: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield dotted name and syntax tree of every module in a package, sorted, without tests."""
    for package in sorted(init.parent for init in stdlib.glob("*/__init__.py")):
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(stdlib).with_suffix("").parts
            if SKIPPED_FOLDERS.intersection(parts):
                continue
            tree = _parse(file)
            if tree is not None:
                yield ".".join(parts).removesuffix(".__init__"), tree


def _parse(file: Path) -> ast.Module | None:
    """Return the file's syntax tree; None for templates and other files that are not Python of this version."""
    collecting = gc.isenabled()
    gc.disable()  # trees have no cycles, but the collector would look through them again and again: twice the time
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None
    finally:
        if collecting:
            gc.enable()


def documented_nodes(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Walk statements only: `ast.walk` spends most of its time in expressions, which hold no docstrings."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, DOCUMENTED):
            yield node
        for block in ("body", "handlers", "orelse", "finalbody"):
            stack += reversed(getattr(node, block, None) or [])


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = _words(text)
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def _first_sentence(text: str) -> str:
    return " ".join(_words(text.split(". ")[0]))


def held_out_groups(groups: Sequence[int], rows: Sequence[dict[str, object]]) -> set[int]:
    """Return whole groups, about a quarter of every package, in an order that only their texts decide."""
    sizes, held_out = Counter(groups), set()
    for label in {row["label"] for row in rows}:
        members = [group for group in sizes if rows[group]["label"] == label]
        wanted = EVALUATION_RATIO * sum(sizes[group] for group in members)
        for group in sorted(members, key=lambda g: hashlib.blake2b(str(rows[g]["text"]).encode()).digest()):
            if sizes[group] <= wanted:
                held_out.add(group)
                wanted -= sizes[group]
    return held_out
