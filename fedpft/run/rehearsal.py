"""What a run does at its end, done at its start: a mistake costs a line, not the rounds."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import Config, ConfigError, TaskKind
from fedpft.data.collate import rows, text_lengths
from fedpft.data.datamodule import FederatedData
from fedpft.data.tasks.loading import TaskData
from fedpft.federated.broadcast import local_settings
from fedpft.federated.client_steps.table import client_step
from fedpft.federated.messages import RoundPlan
from fedpft.federated.server_rule import server_rule
from fedpft.methods import find_method
from fedpft.models.ffn import find_ffns
from fedpft.models.flags import restored_flags
from fedpft.models.loading import architecture
from fedpft.models.lora import attach_lora, save_adapter
from fedpft.models.standardized_head import first_head_layer
from fedpft.storage.whole import full_disk
from fedpft.trainer import SilentProgress

PROBLEM_TYPES: Mapping[TaskKind, Any] = {"classification": "single_label_classification", "regression": "regression"}
"""What transformers calls them; by this a model with a head for a task chooses its loss."""

_NOBODY_READS = PublicData(dataset=Dataset.from_dict({}), collate=lambda rows: {})


def rehearse(config: Config, task: TaskData) -> None:
    """Go through a run's steps with an FM that has no weights yet: what its config alone forbids is refused here.

    Raises:
        ConfigError: an architecture that cannot be built, a method that cannot have it, `lora.target_modules` that
            cannot have LoRA, or results that could not be saved.

    """
    fm = architecture(config.fm, task.modality, len(task.label_names), task.kind)
    server_rule(config.federated, ())  # parts of others can be imported and made
    nowhere = RoundPlan(round_index=1, lr=config.federated.lr, adapter=np.zeros(0), count_activations=False)
    client_step(local_settings(config), nowhere, [])
    find_method(config.method.name)(fm, _NOBODY_READS, config, SilentProgress())  # which checks what it is given
    if task.kind in PROBLEM_TYPES:
        fm.config.problem_type = PROBLEM_TYPES[task.kind]  # the FM may have been one of another kind
    if config.federated.head_inputs == "standardized":
        first_head_layer(fm)  # which checks that there is one
    check_can_be_saved(fm, config.fm.path)
    with tempfile.TemporaryDirectory(prefix="fedpft-") as folder:
        save_adapter(attach_lora(fm, config.lora, seed=0), Path(folder), empty=True)


def check_can_be_saved(fm: PreTrainedModel, path: str) -> None:
    """Save the FM's files without its weights, and open them.

    Raises:
        OSError: the disk of temporary files is full.
        ConfigError: one of them cannot be written, or what was written is another model's.

    """
    with tempfile.TemporaryDirectory(prefix="fedpft-") as folder:
        try:
            fm.save_pretrained(folder, state_dict={})
            with torch.device("meta"):
                opened = type(fm)(AutoConfig.from_pretrained(folder))
        except Exception as error:  # whatever transformers finds in its files
            if full := full_disk(error):
                raise OSError(full.errno, full.strerror, folder) from None
            reason = " ".join(str(error).split())[:200]
            found = f"{path!r}, which cannot be saved and opened again ({type(error).__name__}: {reason})"
            raise ConfigError(f"fm.path / fm.config: found {found}, allowed: what transformers can save") from error
    before, after = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (fm, opened))
    if before != after:
        name = min(name for name, _ in before.items() ^ after.items())
        found = f"{path!r}, which is another model when it was saved and opened again (in {name})"
        raise ConfigError(f"fm.path / fm.config: found {found}, allowed: a config that tells its whole architecture")


def try_examples(fm: PreTrainedModel, data: FederatedData, path: str) -> None:
    """Answer the shortest and the longest example of the task at once, and go backwards from the shortest.

    Raises:
        ConfigError: it fails.

    """
    lengths = text_lengths(data.evaluation)
    chosen = [0, len(data.evaluation) - 1] if lengths is None else [int(lengths.argmin()), int(lengths.argmax())]
    batch = data.collate(rows(data.evaluation, chosen))
    try:
        with torch.no_grad():
            fm(**batch)  # a decoder with keys and values, as its users have it
        with restored_flags(fm):
            fm.requires_grad_(False)
            first = next(find_ffns(fm)[0].layer.parameters()).requires_grad_(True)
            torch.autograd.grad(fm(**data.collate(rows(data.evaluation, chosen[:1]))).loss, first)
    except Exception as error:  # whatever an architecture says to inputs of another size or number of channels
        reason = " ".join(str(error).split())[:200]
        inputs = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in batch.items())
        found = f"{path!r}, which fails on examples of the task ({reason})"
        raise ConfigError(f"fm.path / fm.config: found {found}, allowed: a model that takes {inputs}") from error
