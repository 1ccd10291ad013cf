"""What a run does at its end, done at its start: a mistake costs a line, not the rounds."""

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import Config, ConfigError
from fedpft.data.tasks.loading import TaskData
from fedpft.methods import METHODS
from fedpft.models.loading import architecture
from fedpft.models.lora import attach_lora, save_adapter
from fedpft.trainer import SilentProgress

_NOBODY_READS = PublicData(dataset=Dataset.from_dict({}), collate=lambda rows: {})


def rehearse(config: Config, task: TaskData) -> None:
    """Go through a run's steps with an FM that has no weights yet: what its config alone forbids is refused here.

    Raises:
        ConfigError: an architecture that cannot be built, a method that cannot have it, `lora.target_modules` that
            cannot have LoRA, or results that could not be saved.

    """
    fm = architecture(config.fm, task.modality, len(task.label_names), task.kind)
    METHODS[config.method.name](fm, _NOBODY_READS, config, SilentProgress())  # which checks what it is given
    check_can_be_saved(fm, config.fm.path)
    with tempfile.TemporaryDirectory(prefix="fedpft-") as folder:
        save_adapter(attach_lora(fm, config.lora, seed=0), Path(folder), empty=True)


def check_can_be_saved(fm: PreTrainedModel, path: str) -> None:
    """Save the FM's files without its weights, and open them.

    Raises:
        ConfigError: one of them cannot be written, or what was written is another model's.

    """
    with tempfile.TemporaryDirectory(prefix="fedpft-") as folder:
        try:
            fm.save_pretrained(folder, state_dict={})
            with torch.device("meta"):
                opened = type(fm)(AutoConfig.from_pretrained(folder))
        except Exception as error:  # whatever transformers finds in its files
            reason = " ".join(str(error).split())[:200]
            found = f"{path!r}, which cannot be saved and opened again ({type(error).__name__}: {reason})"
            raise ConfigError(f"fm.path / fm.config: found {found}, allowed: what transformers can save") from error
    before, after = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (fm, opened))
    if before != after:
        name = min(name for name, _ in before.items() ^ after.items())
        found = f"{path!r}, which is another model when it was saved and opened again (in {name})"
        raise ConfigError(f"fm.path / fm.config: found {found}, allowed: a config that tells its whole architecture")
