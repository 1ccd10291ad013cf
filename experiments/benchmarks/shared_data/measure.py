"""Measures what training data on disk cost, and writes experiments/results/shared_data.json.

    python experiments/benchmarks/shared_data/measure.py --gigabytes 2     # in a temporary folder

Memory: a run of 2 rounds with 2 actors on a parquet file of so many bytes, and one on images that take so many bytes as
pixels. Every half second the driver's and the actors' `smaps_rollup` are read. `anonymous` is what a process holds for
itself; `rss` also counts pages of mapped files and of libraries; `peak` is the most `rss` ever, as the system noted it.

Time: one process has the same small data in both ways and trains the same clients in turns, sent and shared.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fedpft.config import load_config
from fedpft.federated.broadcast import client_package
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.methods import find_method
from fedpft.models.lora import get_adapter
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.tuning import public_data
from fedpft.trainer import SilentProgress

RESULT = Path(__file__).parents[2] / "results" / "shared_data.json"
WORD_LETTERS, ROW_WORDS, ROWS_AT_ONCE = 180, 24, 4000
"""Long words: tokenisers take time for each word, and the bytes are what counts here."""
PIXEL_BYTES = 4 * 3 * 224 * 224
SECONDS_BETWEEN_LOOKS = 0.5
PROGRAM = "from fedpft.config import load_config; from fedpft.run.pipeline import run; "
RUN = [
    "method.retained_ratio=0.5",
    "align.layers={num_steps: 2, batch_size: 4}",
    "align.neurons.kind=none",
    "method.plug_in=copy",
    "pool={kind: ray, actors: 2, accelerator: cpu, start_timeout_seconds: 1200}",
    "server.accelerator=cpu",
    "tracking.wandb=disabled",
    "evaluation.fidelity_examples=0",
]


def write_fm(folder: Path, words: list[str]) -> None:
    """Write a BERT of 4 small layers and a tokenizer of these words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    size = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(words) + 4, max_position_embeddings=64, **size)).save_pretrained(folder)


def write_texts(folder: Path, num_bytes: float) -> list[str]:
    """Write a task of texts and a corpus; return the settings of a run on them."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, WORD_LETTERS))) for _ in range(64)]
    write_fm(folder / "fm", words)

    def rows(count: int) -> pa.Table:
        drawn, labels = rng.integers(0, 32, (count, ROW_WORDS)), rng.integers(0, 2, count)
        texts = [" ".join(words[word] for word in row) for row in drawn + 32 * labels[:, None]]
        return pa.table({"text": texts, "label": labels})

    (folder / "task").mkdir()
    done = 0
    first = rows(200)
    with pq.ParquetWriter(
        folder / "task/train.parquet", first.schema, compression="none", use_dictionary=False
    ) as file:
        while done < num_bytes:
            file.write_table(part := rows(ROWS_AT_ONCE))
            done += part.nbytes
    pq.write_table(first, folder / "task/validation.parquet")
    pq.write_table(rows(60), folder / "public.parquet")
    num_clients = max(4, int(done / rows(100).nbytes))
    return [
        f"fm.path={folder / 'fm'}", "fm.max_length=32",
        f"task={{name: custom, path: {folder / 'task'}, text_columns: [text], label_column: label}}",
        f"public={{name: custom, path: {folder / 'public.parquet'}, text_column: text, chunk_length: 16}}",
        f"federated={{num_clients: {num_clients}, clients_per_round: 40, rounds: 2}}", *RUN,
    ]  # fmt: skip


def write_images(folder: Path, num_bytes: float) -> list[str]:
    """Write a task of small images; return the settings of a run on them, 224 pixels wide."""
    rng = np.random.default_rng(0)
    features = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def rows(count: int) -> pa.Table:
        files = []
        for _ in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file := BytesIO(), "png")
            files.append({"bytes": file.getvalue(), "path": None})
        return pa.table({"image": pa.array(files, features), "label": rng.integers(0, 2, count)})

    (folder / "task").mkdir()
    (folder / "public").mkdir()
    count = int(num_bytes / PIXEL_BYTES)
    pq.write_table(rows(count), folder / "task/train.parquet")
    pq.write_table(rows(20), folder / "task/validation.parquet")
    pq.write_table(rows(20), folder / "public/train.parquet")
    return [
        "fm.path=scratch://vit",
        "fm.config={hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 2, intermediate_size: 48, "
        "image_size: 224, patch_size: 32}",
        f"task={{name: custom, path: {folder / 'task'}, image_column: image, label_column: label}}",
        f"public={{name: custom, path: {folder / 'public'}, image_column: image}}",
        f"federated={{num_clients: {count // 20}, clients_per_round: 20, rounds: 2}}", *RUN,
    ]  # fmt: skip


def held(pid: int) -> dict[str, float] | None:
    """Return what a process holds now, and the most that it has held, in MB."""
    try:
        text = "".join(Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8") for name in ("smaps_rollup", "status"))
    except OSError:
        return None
    names = {"rss": "Rss", "anonymous": "Anonymous", "peak": "VmHWM"}
    found = {key: re.search(rf"^{name}:\s+(\d+)", text, re.M) for key, name in names.items()}
    if None in found.values():  # it is about to end
        return None
    return {key: int(match[1]) * 1.024 / 1000 for key, match in found.items()}


def watched(command: list[str]) -> dict[str, object]:
    """Run a command; return the most that its process, and each actor of it, held."""
    start, most = time.perf_counter(), {}
    process = subprocess.Popen(command)
    while process.poll() is None:
        pids = [("driver", process.pid)]
        try:
            children = psutil.Process(process.pid).children(recursive=True)
            pids += [(child.pid, child.pid) for child in children if "ClientActor" in " ".join(child.cmdline())]
        except psutil.Error:
            pass
        for who, pid in pids:
            known = most.setdefault(who, {})
            for name, size in (held(pid) or {}).items():
                known[name] = round(max(size, known.get(name, 0.0)), 1)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        sys.exit(f"failed: {command}")
    driver = most.pop("driver")
    return {
        "megabytes": {"driver": driver, "actors": [*most.values()]},
        "seconds": round(time.perf_counter() - start, 1),
    }


def in_turns(settings: list[str], num_clients: int = 60) -> dict[str, float]:
    """Train the same clients on data that were sent and on data that are shared, in turns; return seconds of both."""
    places, plans, updates = {}, {}, {}
    for way in ("broadcast", "shared"):
        config = load_config(None, [*settings, f"task.data={way}", "pool.kind=sequential"])
        fm, data = load_fm_and_data(config, SilentProgress())
        proxy = find_method("fedpft")(fm, public_data(data), config, SilentProgress()).build_proxy()
        package = client_package(config, proxy, data)
        places[way] = LocalClient(package)
        plans[way] = RoundPlan(round_index=1, lr=1e-3, adapter=get_adapter(proxy.model), count_activations=False)
    seconds = {way: [] for way in places}
    for client in range(num_clients):
        for way in (*places,) if client % 2 else (*places,)[::-1]:
            start = time.perf_counter()
            updates[way] = places[way].fit(plans[way], client)
            seconds[way].append(time.perf_counter() - start)
        assert np.array_equal(updates["broadcast"].adapter, updates["shared"].adapter), "the same bits"
    ratios = np.array(seconds["shared"]) / np.array(seconds["broadcast"])
    return {
        **{f"{way}_seconds_per_client_median": float(np.median(each)) for way, each in seconds.items()},
        "ratio_median": float(np.median(ratios)),
        "ratio_of_sums": float(sum(seconds["shared"]) / sum(seconds["broadcast"])),
        "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
        "clients": num_clients,
    }


def main() -> None:
    """Measure the cells that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--cells", nargs="+", default=["time", "texts", "images"])
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for cell in arguments.cells:
        with tempfile.TemporaryDirectory(prefix="shared-data-") as name:
            folder = Path(name)
            if cell == "time":
                settings = [*write_texts(folder, 40e6), f"cache.dir={folder / 'cache'}", f"output_dir={folder / 'out'}"]
                result["time"] = in_turns(settings)
            else:
                settings = {"texts": write_texts, "images": write_images}[cell](folder, arguments.gigabytes * 1e9)
                settings += [f"cache.dir={folder / 'cache'}", f"output_dir={folder / 'out'}", "task.data=shared"]
                measured = watched([sys.executable, "-c", f"{PROGRAM}run(load_config(None, {settings!r}))"])
                files = {"files": folder / "task", "prepared": folder / "cache/data"}
                sizes = {
                    name: round(sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6)
                    for name, place in files.items()
                }
                result[cell] = measured | {"data_megabytes": sizes}
        print(cell, json.dumps(result[cell]))
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
