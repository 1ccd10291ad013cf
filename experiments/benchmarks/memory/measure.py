"""Compares what `plan` says that a run's phases hold with what they then hold; writes experiments/results/memory.json.

    python experiments/benchmarks/memory/measure.py

The same phases run twice: without values, as in a plan, and on the CPU with real weights. Measured is the highest
resident memory of this process in a phase, less what it had before, plus the models that were there before. glibc is
told to give memory back that is free; by default a process keeps some of it.
"""

import ctypes
import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from torch import nn

from fedpft.config import load_config
from fedpft.federated.memory import process_memory
from fedpft.methods.sketch import sketch
from fedpft.run import phases
from fedpft.run.inputs import load_data, load_untuned_fm
from fedpft.trainer import SilentProgress

FOLDER = Path(__file__).parents[2]
RESULT = FOLDER / "results" / "memory.json"
LLAMA = (
    "fm.config={vocab_size: 1024, hidden_size: 768, num_hidden_layers: 3, num_attention_heads: 12, "
    "num_key_value_heads: 4, intermediate_size: 3072, max_position_embeddings: 128}"
)
HERE = [
    "pool={kind: sequential, accelerator: cpu}", "server.accelerator=cpu", "fm.pretrain.num_epochs=0",
    "evaluation.batch_size=16",
]  # fmt: skip
CASES = {
    "MiniLM, float32": ("quickstart", ["evaluation.batch_size=128", "federated.batch_size=32"]),
    "LLaMA of 27 M, float32, distilled": (
        "instructions_stdlib", [LLAMA, "align.layers.kind=distill", "method.scorer=weight_norm"],
    ),
    "LLaMA of 27 M, bfloat16, layers computed again": (
        "instructions_stdlib",
        [LLAMA, "fm.dtype=bfloat16", "server.precision=bf16-mixed", "federated.gradient_checkpointing=true"],
    ),
}  # fmt: skip
"""What -> config and what is changed in it."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def main() -> None:
    libc = ctypes.CDLL("libc.so.6")
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        libc.mallopt(option, 2**18)

    @contextmanager
    def resident(*models: nn.Module, device: str) -> Iterator[Any]:
        gc.collect()
        libc.malloc_trim(0)
        memory, before = SimpleNamespace(peak_bytes=0), process_memory().rss_bytes
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        yield memory
        memory.peak_bytes = sum(map(phases.model_bytes, models)) + _highest() - before

    found = {"a process with libraries and data": {}, "phases": {}}
    for case, (name, changes) in CASES.items():
        config = load_config(FOLDER / "configs" / f"{name}.yaml", [*HERE, *changes])
        data = load_data(config, SilentProgress())
        found["a process with libraries and data"][case] = process_memory().rss_bytes
        planned = peaks(config, data, empty=True)
        with mock.patch.multiple(phases, live_memory=resident, _moved=iter):
            measured = peaks(config, data, empty=False)
        for phase, num_bytes in planned.items():
            ratio = num_bytes / measured[phase]
            row = {"planned_bytes": num_bytes, "measured_bytes": measured[phase], "ratio": round(ratio, 3)}
            found["phases"].setdefault(case, {})[phase] = row
            print(f"{case}: {phase}: {num_bytes / 1e6:.1f} MB, measured {measured[phase] / 1e6:.1f} MB", flush=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def peaks(config: Any, data: Any, *, empty: bool) -> dict[str, int]:
    """Return the peak of each phase."""
    pad = data.collate.settings().get("pad_token_id")
    fm = load_untuned_fm(config, data.kind, data.modality, data.label_names, pad, empty=empty)
    sketched = sketch(fm, config)
    found = phases.construction_peaks(config, sketched, data, "cpu")
    adapted, proxy = sketched.with_adapters(config)
    found |= phases.round_peaks(config, adapted, proxy, data, "cpu")
    found |= phases.client_peak(config, proxy, data, "cpu")
    for line in found.notes:
        print(line)
    return dict(found.by_phase)


def _highest() -> int:
    """Return the highest resident memory since `clear_refs`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return 1024 * int(match[1])


if __name__ == "__main__":
    main()
