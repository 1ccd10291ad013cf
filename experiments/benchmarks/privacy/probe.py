"""What a linear head can learn of the FM's features in few steps, raw or standardized by public data.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.privacy.probe [FILE.json]

On the quickstart's docstrings, all training data at once: no clients, no LoRA, no privacy. Gradient descent of as many
steps as the small clients have rounds (`utility.yaml`), at several rates; beside it the best that there is to reach, a
logistic regression fitted to the end.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.benchmarks.privacy.utility import Cell
from fedpft.data.collate import rows
from fedpft.models.standardized_head import first_head_layer
from fedpft.run.inputs import load_fm_and_data
from fedpft.seeding import numpy_rng
from fedpft.storage.output import write_json
from fedpft.trainer import SilentProgress

RESULT = Path(__file__).parents[2] / "results/privacy/probe.json"
STEPS, RATES, BATCH_SIZE, NUM_PUBLIC = 40, (0.1, 1.0, 10.0, 100.0), 64, 800


@torch.no_grad()
def features(fm: Any, dataset: Dataset, chosen: Sequence[int], collate: Any) -> Tensor:
    """Return what the FM's head reads, (rows, H)."""
    seen: list[Tensor] = []
    handle = first_head_layer(fm).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for start in range(0, len(chosen), BATCH_SIZE):
        batch = collate(rows(dataset, chosen[start : start + BATCH_SIZE]))
        fm(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    handle.remove()
    return torch.cat(seen)


def accuracy(head: nn.Linear, inputs: Tensor, labels: Tensor) -> float:
    return float((head(inputs).argmax(dim=1) == labels).double().mean())


def descended(inputs: Tensor, labels: Tensor, num_labels: int, rate: float) -> nn.Linear:
    """Return a head after some steps on all examples."""
    torch.manual_seed(0)
    head = nn.Linear(inputs.shape[1], num_labels)
    nn.init.normal_(head.weight, std=0.02)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(head(inputs), labels).backward()
        optimizer.step()
    return head


def fitted(inputs: Tensor, labels: Tensor, num_labels: int) -> nn.Linear:
    """Return a logistic regression with a small ridge."""
    head = nn.Linear(inputs.shape[1], num_labels)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head(inputs), labels) + 1e-4 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head


def main() -> None:
    torch.set_num_threads(1)
    fm, data = load_fm_and_data(
        Cell(task="docs", population="1000", epsilon=None, seed=43).config(None), SilentProgress()
    )
    fm.eval()
    train, held_out = (features(fm, part, range(len(part)), data.collate) for part in (data.train, data.evaluation))
    labels, wanted = (torch.tensor(part["label"]) for part in (data.train, data.evaluation))
    drawn = numpy_rng(0, "probe").permutation(len(data.public))[:NUM_PUBLIC].tolist()
    public = features(fm, data.public, drawn, data.collate)
    mean, std, num_labels = public.mean(dim=0), public.std(dim=0), len(data.label_names)
    record: dict[str, Any] = {
        "norm_of_mean": float(train.mean(dim=0).norm()),
        "mean_distance_to_it": float((train - train.mean(dim=0)).norm(dim=1).mean()),
        "fitted": accuracy(fitted(train, labels, num_labels), held_out, wanted),
        "steps": STEPS,
    }
    for name, center, scale in (("raw", torch.zeros_like(mean), torch.ones_like(std)), ("standardized", mean, std)):
        inputs, others = (train - center) / scale, (held_out - center) / scale
        heads = {rate: descended(inputs, labels, num_labels, rate) for rate in RATES}
        record[name] = {f"{rate:g}": accuracy(head, others, wanted) for rate, head in heads.items()}
    write_json(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT, record)
    print(record)


if __name__ == "__main__":
    main()
