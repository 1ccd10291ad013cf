"""Compares what is counted without values with what the same code holds on the CPU; prints a line for each.

    python experiments/benchmarks/memory/measure.py

A LLaMA of 134 MB with its sub-FM, 8 x 96 tokens, float32. Measured is the highest resident memory of this process in
the second of two equal steps, less what it had before; glibc is told to give back at once what is free.
"""

import ctypes
import gc
import json
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from fedpft.config import LoraConfig, ServerConfig
from fedpft.construct.compress import compress
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.models.live_memory import live_memory
from fedpft.models.lora import AdaptedModel, attach_lora
from fedpft.models.quantize import pack_quantized
from fedpft.models.weights import unpack_model

SHAPE = {
    "vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 2048,
}  # fmt: skip
Models = tuple[AdaptedModel, AdaptedModel]
Batch = Mapping[str, Tensor]
Prepare = Callable[[Models], Models]


def models(*, empty: bool) -> Models:
    with torch.device("meta") if empty else nullcontext():
        fm = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)).eval()
    sub_fm, _ = compress(fm, retained_ratio=0.25, scorer="random")
    return attach_lora(fm, LoraConfig(dropout=0.0), 0), attach_lora(sub_fm, LoraConfig(dropout=0.0), 0)


def client_step(both: Models, batch: Batch) -> None:
    moved = {name: tensor.to("cpu") for name, tensor in batch.items()}
    LocalTuningModule(both[1]).train().training_step(moved, 0).backward()
    for parameter in both[1].parameters():
        parameter.grad = None


def meter(both: Models, batch: Batch) -> None:
    measure_fidelity(*both, batch, server=ServerConfig(accelerator="cpu"))


def as_they_are(both: Models) -> Models:
    return both


def in_four_bits(both: Models) -> Models:
    """Return the same with the sub-FM as clients hold it with `pool.quantize=nf4`."""
    return both[0], unpack_model(pack_quantized(both[1], "nf4"))


def counted(work: Callable[[Models, Batch], None], batch: Batch, prepare: Prepare) -> int:
    both = prepare(models(empty=True))
    with live_memory(*both) as memory:
        work(both, batch)
    return memory.peak_bytes - num_bytes(*both)


def measured(work: Callable[[Models, Batch], None], batch: Batch, prepare: Prepare) -> int:
    libc, both = ctypes.CDLL("libc.so.6"), prepare(models(empty=False))
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(option, 2**18)
    work(both, batch)
    gc.collect()
    libc.malloc_trim(0)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    work(both, batch)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1]) - before


def num_bytes(*chosen: nn.Module) -> int:
    return sum(tensor.nbytes for model in chosen for tensor in (*model.parameters(), *model.buffers()))


def main() -> None:
    ids = torch.randint(3, 8000, (8, 96))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    for name, work, prepare in (
        ("client step", client_step, as_they_are),
        ("client step on 4 bits", client_step, in_four_bits),
        ("fidelity meter", meter, as_they_are),
    ):
        found = {"counted_bytes": counted(work, batch, prepare), "measured_bytes": measured(work, batch, prepare)}
        print(json.dumps({name: {"models_bytes": num_bytes(*prepare(models(empty=True))), **found}}))


if __name__ == "__main__":
    main()
