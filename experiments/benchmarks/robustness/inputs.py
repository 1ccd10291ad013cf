"""Do any data end in a traceback: columns of any name and type, formats, splits, images?

    python -m experiments.benchmarks.robustness.inputs [NUM_CASES] [SEED]

Each case is a task of random columns, or of images, and a public corpus like it, in files of one of the formats; the
settings name some of the columns, as a rule the right ones.
"""

import csv
import datetime
import gzip
import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from experiments.benchmarks.robustness.cases import play_all, use, write_inputs

NAMES = [
    *("text", "label", "labels", "input_ids", "attention_mask", "idx", "image", "pixel_values", "answer"),
    *(
        "prompt",
        "split",
        "",
        " ",
        "a b",
        "größe",
        "日本",
        "1",
        "length",
        "__index_level_0__",
        "_",
        "a.b",
        "${x}",
        "[red]",
        "true",
    ),
]
SIGNS = ["w0", "w1 w2", "w20 w21 w22 w23", "", " ", "\n", "日本", "a,b", 'say "x"', "\t", "NA", "null"]
SIGNS += ["x" * 500, "w3 " * 200]
Column = Callable[[random.Random], Any]
KINDS: dict[str, Column] = {
    "texts": lambda draw: draw.choice(SIGNS[:5]),
    "odd texts": lambda draw: draw.choice(SIGNS),
    "words": lambda draw: f"w{draw.randrange(36)} w{draw.randrange(36)} w1",
    "classes": lambda draw: draw.choice(["neg", "pos"]),
    "integers": lambda draw: draw.randrange(3),
    "from one": lambda draw: draw.randrange(1, 4),
    "negative": lambda draw: draw.choice([-1, 0, 1]),
    "large": lambda draw: draw.choice([0, 2**40, 2**62]),
    "floats": lambda draw: draw.random(),
    "odd floats": lambda draw: draw.choice([0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 1.0]),
    "truths": lambda draw: draw.random() < 0.5,
    "nothing": lambda draw: None,
    "some nothing": lambda draw: draw.choice([None, "w1", "w2 w3"]),
    "some numbers": lambda draw: draw.choice([None, 0, 1]),
    "dates": lambda draw: datetime.date(2024, 1, draw.randrange(1, 28)),
    "times": lambda draw: datetime.datetime(2024, 1, 1, draw.randrange(24)),
    "lists": lambda draw: [draw.randrange(3)] * draw.randrange(3),
    "text lists": lambda draw: ["w1", "w2"][: draw.randrange(3)],
    "objects": lambda draw: {"a": draw.randrange(2), "b": "w1"},
    "messages": lambda draw: [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}],
    "bytes": lambda draw: bytes([draw.randrange(256)] * 3),
    "numbers as texts": lambda draw: draw.choice(["0", "1", "01", "1.0", "-1", "1e3"]),
}
MIXED = ["texts", "integers", "floats", "truths", "nothing", "lists"]


def drawn_columns(draw: random.Random) -> dict[str, list[str]]:
    """Return names of columns, and for each the kinds that its values are of: one, or several."""
    names = ["text", "label"] if draw.random() < 0.5 else draw.sample(NAMES, draw.choice([1, 2, 2, 3, 4]))
    likely = {"text": ["words", "texts", "odd texts"], "label": ["classes", "integers", "from one", "floats"]}
    columns = {}
    for name in names:
        kinds = likely.get(name, list(KINDS)) if draw.random() < 0.6 else list(KINDS)
        columns[name] = draw.sample(MIXED, 2) if draw.random() < 0.05 else [draw.choice(kinds)]
    return columns


def write_rows(folder: Path, split: str, columns: dict[str, list[str]], ending: str, draw: random.Random) -> None:
    """Write a split's file."""
    count = draw.choice([0, 1, 2, 8, *[24] * 16])
    rows = [{name: KINDS[draw.choice(kinds)](draw) for name, kinds in columns.items()} for _ in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.{ending}"
    if ending in ("csv", "tsv"):
        encoding = draw.choice([*["utf-8"] * 9, "utf-8-sig", "utf-16", "latin-1"])
        with path.open("w", newline="", encoding=encoding, errors="replace") as stream:
            writer = csv.writer(stream, delimiter="\t" if ending == "tsv" else ",")
            writer.writerows([list(columns), *([*row.values()] for row in rows)])
    elif ending in ("jsonl", "json", "jsonl.gz"):
        lines = [json.dumps(row, default=str) for row in rows]
        text = f"[{', '.join(lines)}]" if ending == "json" else "\n".join(lines)
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    elif ending == "txt":
        path.write_text("\n".join(str(next(iter(row.values()))) for row in rows), encoding="utf-8")
    else:
        try:
            table = pa.table({name: [row[name] for row in rows] for name in columns})
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of two types
            table = pa.table({name: [str(row[name]) for row in rows] for name in columns})
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            datasets.Dataset(table).save_to_disk(folder / split)


def drawn_task(folder: Path, columns: dict[str, list[str]], draw: random.Random) -> dict[str, Any]:
    """Return what the settings say of the task."""
    named = [*columns] if draw.random() < 0.9 else [*columns, "nowhere", ""]

    def chosen(usual: str) -> str:
        return usual if usual in columns and draw.random() < 0.8 else draw.choice(named)

    task: dict[str, Any] = {"name": "custom", "path": str(folder / "task")}
    kind = draw.choice(["classification", "classification", "regression", "causal_lm"])
    if kind == "causal_lm":
        task |= {"kind": kind, "prompt_column": chosen("text"), "response_column": chosen("answer")}
        if draw.random() < 0.3:
            task["prompt_template"] = draw.choice(["{text}", "{nowhere}", "{", "{{}}", "{label}: ", "{0}", ""])
    else:
        task |= {"kind": kind, "text_columns": [chosen("text")], "label_column": chosen("label")}
        if draw.random() < 0.1:
            task["text_columns"].append(draw.choice(named))
    if draw.random() < 0.3:
        task["on_bad_example"] = "drop"
    if draw.random() < 0.2:
        task["eval_ratio"] = draw.choice([0.1, 0.5])
    return task


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a file's bytes, seldom cut off or others."""
    return draw.choice([*[content] * 30, content[: len(content) // 2], b"", b"no image"])


def write_images(folder: Path, draw: random.Random) -> None:
    """Write folders of images of many modes and sizes."""
    rng = np.random.default_rng(draw.randrange(1000))
    for split, count in (("task/train", draw.choice([1, 12])), ("task/validation", 8), ("public/train", 8)):
        for index in range(count):
            ending = draw.choice(["png", "png", "png", "jpg", "bmp", "gif", "webp", "tiff", "txt", "PNG"])
            path = folder / split / draw.choice(["a", "b", "c d", "ä", "a/sub"]) / f"{index}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = draw.choice([(8, 8, 3), (8, 8, 3), (1, 1, 3), (30, 7, 3), (8, 8, 4), (8, 8)])
            image = Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8))
            if ending == "txt":
                path.write_text("no image")
                continue
            image.convert("RGB" if ending == "jpg" else draw.choice(["RGB", "RGB", "L", "P", "RGBA"])).save(path)
            path.write_bytes(damaged(path.read_bytes(), draw))


def without(settings: Sequence[str], *sections: str) -> list[str]:
    """Return settings without those of some sections."""
    return [item for item in settings if item.partition("=")[0] not in sections]


def attempt(folder: Path, draw: random.Random) -> tuple[str, Callable[[], None]]:
    """Write a case; return it in words, and what plays it."""
    if draw.random() < 0.15:
        settings = write_inputs(folder, "vit", "classification")
        for part in ("task", "public"):
            (folder / part).rename(folder / f"old_{part}")
        write_images(folder, draw)
        if draw.random() < 0.3:
            settings.append("task.on_bad_example=drop")
        return f"images {sorted(str(p.relative_to(folder)) for p in folder.glob('task/**/*.*'))}", partial(
            use, folder, settings, draw
        )
    columns = drawn_columns(draw)
    task = drawn_task(folder, columns, draw)
    family = "llama" if task["kind"] == "causal_lm" else draw.choice(["bert", "llama"])
    settings = write_inputs(folder, family, "causal_lm" if family == "llama" else "classification")
    (folder / "task").rename(folder / "old_task")
    ending = draw.choice(["csv", "csv", "tsv", "jsonl", "json", "jsonl.gz", "parquet", "saved", "txt"])
    for split in ("train", *["validation"] * (draw.random() < 0.9)):
        write_rows(folder / "task", split, columns, ending, draw)
    settings = [*without(settings, "task"), f"task={json.dumps(task, ensure_ascii=False)}"]
    if draw.random() < 0.2:
        (folder / "public").rename(folder / "old_public")
        write_rows(folder / "public", "train", columns, ending, draw)
        settings.append(f"public.text_column={json.dumps(draw.choice([*columns]))}")
    if draw.random() < 0.1:
        settings.append(f"federated.partition={{kind: natural, column: {json.dumps(draw.choice([*columns]))}}}")
    return f"{family} {ending} {columns} {settings[-2:]}", partial(use, folder, settings, draw)


if __name__ == "__main__":
    sys.exit(play_all("inputs", attempt))
