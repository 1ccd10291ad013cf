"""Compares what `plan` counts with what the same phases hold on the CPU; writes `experiments/results/memory.json`.

    OMP_NUM_THREADS=1 python experiments/benchmarks/memory/measure.py

A LLaMA of three layers, batches of 8 x 96 tokens. The phases are the plan's own (`fedpft.run.phases`), on models with
values. Measured is the most that a process holds in the second of two equal passes, less what it had before: its
resident memory without pages of files, which others get when they need them. glibc is told to give back at once what is
free.
"""

import csv
import ctypes
import gc
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from unittest import mock

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fedpft.config import Config, ConfigError, load_config
from fedpft.data.datamodule import FederatedData
from fedpft.federated.broadcast import packed_proxy
from fedpft.methods.sketch import sketch
from fedpft.models.live_memory import DeviceKind
from fedpft.models.tokenizer import train_tokenizer
from fedpft.run import phases
from fedpft.run.inputs import load_data, load_untuned_fm
from fedpft.storage.output import write_json
from fedpft.trainer import SilentProgress

SHAPE = {
    "vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 2048, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
SETTINGS = (
    "fm.max_length=96", "public.name=custom", "public.text_column=text", "public.chunk_length=96",
    "method={retained_ratio: 0.25, uncompressed_layers: []}", "lora.dropout=0", "align.adapter.batch_size=8",
    "federated={num_clients: 2, clients_per_round: 2, rounds: 3, batch_size: 8}", "pool.kind=sequential",
    "evaluation={batch_size: 8, fidelity_examples: 8}", "server.accelerator=cpu", "pool.accelerator=cpu",
)  # fmt: skip
UNALIGNED = ("align.layers.kind=none", "align.neurons.kind=none")
VARIANTS: Mapping[str, Sequence[str]] = {
    "activation, distilled": (
        "method.scorer=activation", "align.layers={kind: closed_form+distill, batch_size: 8}",
        "align.neurons={kind: distill, interval: 1, batch_size: 8}",
    ),
    "carried over, clients on 4 bits": (
        "method={scorer: random, plug_in: distill}", "pool.quantize=nf4", *UNALIGNED,
    ),
    "greedy, refitted": (
        "method.scorer=greedy", "align.layers.kind=none",
        "align.neurons={kind: closed_form, interval: 1, batch_size: 8}",
    ),
}  # fmt: skip
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
RESULTS = Path(__file__).parents[2] / "results" / "memory.json"


def write_inputs(folder: Path) -> list[str]:
    """Write an FM, a task and a corpus; return the settings that put them in place."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(200)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(192)]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)).save_pretrained(folder / "fm")
    train_tokenizer(texts, 600).save_pretrained(folder / "fm")
    for start, name in enumerate(("task/train", "task/validation", "public/train")):
        file = folder / f"{name}.csv"
        file.parent.mkdir(exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("prompt", "text"), *[("w1", text) for text in texts[start::3]]])
    return [
        f"fm.path={folder / 'fm'}", f"public.path={folder / 'public'}", f"output_dir={folder / 'out'}",
        "task={name: custom, kind: causal_lm, prompt_column: prompt, response_column: text}",
        f"task.path={folder / 'task'}",
    ]  # fmt: skip


def peaks(config: Config, data: FederatedData, *, empty: bool) -> tuple[dict[str, int], phases.Peaks]:
    """Return the size of the models in each phase, and each phase's peak."""
    pad = data.collate.settings().get("pad_token_id")
    fm = load_untuned_fm(config, data.kind, data.modality, data.label_names, pad, empty=empty)
    sketched, sizes = sketch(fm, config), dict[str, int]()

    def noting(work: Sequence[phases.Phase], models: Sequence[nn.Module], device: DeviceKind) -> phases.Peaks:
        sizes.update((name, sum(map(phases.model_bytes, models))) for name, _ in work)
        return count(work, models, device) if empty else measured(work, models, device)

    count = phases._peaks
    layer_by_layer = mock.patch.object(phases, "drop_layers", side_effect=ConfigError("all of them"))
    with mock.patch.object(phases, "_peaks", noting), nullcontext() if empty else layer_by_layer:
        found = phases.construction_peaks(config, sketched, data, "cpu")
        tuned_fm, proxy = sketched.with_adapters(config)
        found |= phases.round_peaks(config, tuned_fm, proxy, data, "cpu")
        found |= phases.client_peak(config, proxy, data, "cpu")
    sizes["train a client"] = phases.model_bytes(
        packed_proxy(config, proxy.model).skeleton
    )  # lies there as it was sent
    return sizes, found


def measured(work: Sequence[phases.Phase], models: Sequence[nn.Module], device: DeviceKind) -> phases.Peaks:
    """Stand in for the plan's own count: return what each phase holds on top of what is there before."""
    libc, found = ctypes.CDLL("libc.so.6"), dict[str, int]()
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(option, 2**18)
    for name, do in work:
        do()
        gc.collect()
        libc.malloc_trim(0)
        before = _status("RssAnon")
        with ThreadPoolExecutor() as pool:
            is_done = Event()
            highest = pool.submit(_highest, is_done)
            do()
            is_done.set()
        found[name] = highest.result() - before
    return phases.Peaks(found)


def _highest(is_done: Event) -> int:
    """Return the most that this process holds until something is done, looked at about every millisecond."""
    most = 0
    while not is_done.wait(0.0005):
        most = max(most, _status("RssAnon"))
    return most


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def compared(settings: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return for each phase of a run the bytes of its models, and those on top, as counted and as measured."""
    config = load_config(None, settings)
    data = load_data(config, SilentProgress())
    _, counted = peaks(config, data, empty=True)
    assert not counted.notes, counted.notes
    sizes, held = peaks(config, data, empty=False)
    return {
        name: {
            "models_bytes": size,
            "counted_bytes": counted.by_phase[name] - size,
            "measured_bytes": held.by_phase[name],
        }
        for name, size in sizes.items()
    }


def main() -> None:
    """Compare the variants, each in a process of its own, which prints its phases."""
    if len(sys.argv) > 1:
        print(json.dumps(compared(sys.argv[1:])))
        return
    records = dict[str, dict[str, int]]()
    for variant, settings in VARIANTS.items():
        for dtype in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                run = [
                    *write_inputs(Path(folder)),
                    *SETTINGS,
                    *settings,
                    f"fm.dtype={dtype}",
                    f"server.precision={PRECISIONS[dtype]}",
                ]
                call = [sys.executable, __file__, *run]
                printed = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
            for phase, found in json.loads(printed.splitlines()[-1]).items():
                whole, held = (found["models_bytes"] + found[f"{key}_bytes"] for key in ("counted", "measured"))
                print(f"{dtype}, {variant}: {phase}: {100 * (whole / held - 1):+.1f} %, {found}", flush=True)
                records[f"{dtype}, {variant}: {phase}"] = found
            write_json(RESULTS, records)


if __name__ == "__main__":
    main()
