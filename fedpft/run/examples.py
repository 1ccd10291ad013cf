"""What the tuned FM answers to a few evaluation examples: kept with the run, so that an export can be compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedpft.data.collate import rows
from fedpft.data.datamodule import FederatedData
from fedpft.models.target_logits import is_language_model, last_states, logits_of
from fedpft.storage.whole import written_whole

EXAMPLES_FILE = "examples.safetensors"
NUM_EXAMPLES = 4
_ANSWERS = "logits"


def save_examples(model: nn.Module, data: FederatedData, folder: Path) -> Path:
    """Write inputs and logits of the first evaluation examples; of a language model only those after the last token."""
    batch = data.collate(rows(data.evaluation, range(min(NUM_EXAMPLES, len(data.evaluation)))))
    inputs = {name: tensor.contiguous() for name, tensor in batch.items() if name != "labels"}
    path = folder / EXAMPLES_FILE
    with written_whole(path) as temporary:
        save_file({**inputs, _ANSWERS: answers(model, inputs)}, temporary)
    return path


def load_examples(folder: Path) -> tuple[dict[str, Tensor], Tensor] | None:
    """Return inputs and logits of :func:`save_examples`; None: there are none.

    Raises:
        SafetensorError, KeyError: the file is damaged.

    """
    path = folder / EXAMPLES_FILE
    if not path.exists():
        return None
    tensors = load_file(path)
    return tensors, tensors.pop(_ANSWERS)


@torch.no_grad()
def answers(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits, (B, labels), or of a language model (B, vocabulary) after each text's last token."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    moved = {name: tensor.to(device) for name, tensor in inputs.items()}
    if is_language_model(model.eval()):
        last = moved["attention_mask"].sum(dim=1) - 1
        logits: Any = logits_of(model, last_states(model, moved)[torch.arange(len(last)), last])
    else:
        logits = model(**moved).logits
    for module, mode in modes:
        module.training = mode
    return logits.float().cpu().contiguous()


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two models' logits over the largest logit; infinite if it is no number."""
    if found.shape != expected.shape:
        return float("inf")
    part = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return part if part == part else float("inf")
