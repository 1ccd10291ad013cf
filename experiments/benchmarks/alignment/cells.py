"""The cells of the alignment benchmark and how one is measured."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn

from fedpft.align.losses import hidden_state_loss
from fedpft.config import Config, load_config
from fedpft.data.corpora.chunks import chunk_corpus
from fedpft.data.datamodule import FederatedData
from fedpft.federated.observer import SilentObserver
from fedpft.federated.pool import SequentialPool
from fedpft.methods import METHODS
from fedpft.methods.base import Proxy
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_backbone, find_ffns
from fedpft.run.tuning import public_data, tune
from fedpft.seeding import numpy_rng
from fedpft.tracking.trackers import TrackerGroup

BASE = Path(__file__).parent / "base.yaml"
RATIOS = (0.25, 0.5, 0.125)
SCORERS = ("weight_norm", "activation", "greedy")
ALIGNMENTS: dict[str, tuple[str, int]] = {
    "none": ("none", 0),
    "closed_form": ("closed_form", 0),
    "distill_100": ("distill", 100),
    "distill_500": ("distill", 500),
    "closed_form+distill_100": ("closed_form+distill", 100),
}
"""Name -> `align.layers.kind` and distillation steps (of 8 chunks of 64 tokens)."""

NUM_HELD_OUT_CHUNKS = 150

Batches = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Cell:
    """One sub-FM and the federated run on it."""

    ratio: float
    scorer: str
    alignment: str
    seed: int

    @property
    def name(self) -> str:
        return f"r{self.ratio:g}_{self.scorer}_{self.alignment}_seed{self.seed}"

    def config(self, data_dir: Path, cache_dir: Path) -> Config:
        kind, steps = ALIGNMENTS[self.alignment]
        return load_config(
            BASE,
            [
                f"seed={self.seed}",
                f"method.retained_ratio={self.ratio}",
                f"method.scorer={self.scorer}",
                f"align.layers.kind={kind}",
                f"align.layers.num_steps={max(1, steps)}",
                f"task.path={data_dir / 'sst2'}",
                f"public.path={data_dir / 'align_text'}",
                f"cache.dir={cache_dir}",
            ],
        )


def all_cells(seeds: range) -> Iterator[Cell]:
    """Yield all cells, the most telling ones first."""
    for seed in seeds:
        for ratio in RATIOS:
            for alignment in ALIGNMENTS:
                for scorer in SCORERS:
                    yield Cell(ratio, scorer, alignment, seed)


def measure(config: Config, fm: nn.Module, data: FederatedData, held_out: Batches) -> dict[str, Any]:
    """Build the sub-FM (CPU seconds of one thread), compare it with the FM, tune federatedly, evaluate."""
    proxy, seconds = build(config, fm, data)
    if proxy.construction["cached"]:  # left by a run that was stopped: its seconds are those of reading
        proxy, seconds = build(replace(config, cache=replace(config.cache, enabled=False)), fm, data)
    errors = hidden_errors(fm, proxy.model, held_out)
    outcome = tune(config, copy.deepcopy(fm), data, SequentialPool(), TrackerGroup([]), SilentObserver())
    result = outcome.result
    before, after = result["fidelity"]["before"], result["fidelity"]["after"]
    return {
        "hidden_errors": [round(error, 4) for error in errors],
        "construct_cpu_seconds": round(seconds, 2),
        "task_hidden_error": before["total"]["hidden_error"],
        "gradient_cosine": before["total"]["gradient_cosine"],
        "gradient_cosine_after": after["total"]["gradient_cosine"],
        **{name: result[name] for name in ("untuned_fm", "sub_fm", "fm", "num_params_sub_fm", "compression_ratio")},
    }


def build(config: Config, fm: nn.Module, data: FederatedData) -> tuple[Proxy, float]:
    """Return the proxy and the CPU seconds that it took."""
    start = time.process_time()
    method = METHODS[config.method.name](copy.deepcopy(fm), public_data(data), config, SilentObserver())
    return method.build_proxy(), time.process_time() - start


@torch.no_grad()
def hidden_errors(fm: nn.Module, sub_fm: nn.Module, batches: Batches) -> list[float]:
    """Return each layer's relative RMS error of the hidden state."""
    fm.eval()
    sub_fm.eval()
    losses = []
    for batch in batches:
        with layer_outputs([ffn.layer for ffn in find_ffns(fm)]) as wanted:
            find_backbone(fm)(**batch)
        with layer_outputs([ffn.layer for ffn in find_ffns(sub_fm)]) as found:
            find_backbone(sub_fm)(**batch)
        losses.append([float(hidden_state_loss(wanted[i], found[i])) for i in wanted])
    return [float(error) for error in torch.tensor(losses).mean(dim=0).sqrt()]


def held_out_batches(data_dir: Path, tokenizer: Any, chunk_length: int) -> Batches:
    """Return chunks of public text that no alignment reads."""
    file = str(data_dir / "align_text" / "validation.parquet")
    corpus = datasets.load_dataset("parquet", data_files=file, split="train")
    chunks = chunk_corpus(corpus, tokenizer, chunk_length, NUM_HELD_OUT_CHUNKS, numpy_rng(0, "held_out"))
    ids = torch.tensor(chunks["input_ids"][:])
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(15)]
