"""A finished run -> the plugged-in FM as a folder that transformers (and peft) open, with its model card.

OUT/  config.json, model.safetensors, tokenizer or image processor, README.md: the tuned FM (merged),
      or the untuned FM, and in OUT/adapter/ what PEFT puts on it
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from fedpft.config import ConfigError
from fedpft.models.limits import fit_inputs
from fedpft.models.loading import auto_model
from fedpft.models.lora import load_adapter, merge_adapter, save_adapter
from fedpft.report.card import model_card
from fedpft.run.examples import EXAMPLES_FILE, answers, difference, load_examples
from fedpft.run.finished import finished_run, untuned_fm
from fedpft.trainer import Progress, SilentProgress

DEFAULT_NAME = "export"
"""Of the new folder, in the run's."""

OF_MERGING, OF_ANOTHER_MACHINE = 1e-4, 1e-2
"""Differences of logits, as parts of the largest one, that rounding explains: of merging here, and between devices."""

OF_BFLOAT16 = 5e-2
"""The same of both where weights are bfloat16: a merged weight is rounded to 8 bits, and devices multiply otherwise."""


def export(run_dir: Path, out: Path | None = None, *, merge: bool = False, progress: Progress | None = None) -> Path:
    """Write a run's plugged-in FM in Hugging Face layout; whole or not at all.

    Args:
        run_dir: the output folder of a finished run.
        out: the new folder; None: `export` in `run_dir`.
        merge: fold LoRA into the weights; else the adapter lies beside the untuned FM.
        progress: hears about the stages.

    Returns:
        The folder.

    Raises:
        ConfigError: no finished run, a folder that exists or cannot be written, an FM that cannot be loaded again, or
            an adapter that does not fit it; another FM than the run's; or an export that, opened with transformers
            alone, answers the run's stored examples otherwise.

    """
    progress = progress or SilentProgress()
    config, result = finished_run(run_dir)
    kind, modality = result["kind"], result["modality"]
    target, auto = (out or run_dir / DEFAULT_NAME).resolve(), auto_model(modality, kind)
    with _staging_folder(target) as folder:
        progress.stage("load FM")
        fm, processor = untuned_fm(run_dir, config, result)
        if modality == "text":
            fit_inputs(fm.config, processor)
        new = Path(folder, target.name)
        if not merge:
            progress.stage("write FM")
            fm.save_pretrained(new)
        progress.stage("plug in adapter")
        tuned_fm = load_adapter(fm, run_dir / "adapter")
        expected = _answers(tuned_fm, run_dir, OF_BFLOAT16 if config.fm.dtype == "bfloat16" else OF_ANOTHER_MACHINE)
        progress.stage("write tuned FM" if merge else "write adapter")
        if merge:
            merge_adapter(tuned_fm).save_pretrained(new)
        else:
            save_adapter(tuned_fm, new / "adapter")
            (new / "adapter" / "README.md").unlink(missing_ok=True)  # a form of PEFT's, to be filled in
        processor.save_pretrained(new)
        del fm, tuned_fm
        if expected is not None:
            progress.stage("open it again")
            of_merging = OF_BFLOAT16 if merge and config.fm.dtype == "bfloat16" else OF_MERGING
            _check_answers(auto, new, *expected, of_merging)
        model_card(result, config, auto.__name__, merged=merge).save(new / "README.md")
        new.replace(target)  # an empty folder is replaced, one with content is not
    return target


def _answers(tuned_fm: nn.Module, run_dir: Path, tolerance: float) -> tuple[Mapping[str, Tensor], Tensor] | None:
    """Return the run's stored examples and what the plugged-in FM says to them; None, with a warning: there are none.

    Raises:
        ConfigError: it says something else than in the run.

    """
    try:
        stored = load_examples(run_dir)
    except (OSError, KeyError, SafetensorError) as error:
        found = f"a damaged {EXAMPLES_FILE} ({error})"
        raise ConfigError(f"RUN_DIR: found {found}, allowed: the one that the run wrote, or none") from None
    if stored is None:
        warnings.warn(f"{run_dir} has no {EXAMPLES_FILE}: the export is not compared with the run", stacklevel=3)
        return None
    inputs, in_run = stored
    now = answers(tuned_fm, inputs)
    _require_close(now, in_run, tolerance, "the FM with the run's adapter", "the run's tuned FM")
    return inputs, now


def _check_answers(auto: Any, folder: Path, inputs: Mapping[str, Tensor], expected: Tensor, tolerance: float) -> None:
    """Open an export as its users will.

    Raises:
        ConfigError: it is another model than the run's.

    """
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    lacking = sorted({*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])})
    if lacking:
        raise ConfigError(f"export: found {lacking[0]} missing or left over in what was written; nothing is left")
    if (folder / "adapter").is_dir():
        model = load_adapter(model, folder / "adapter")
    _require_close(answers(model, inputs), expected, tolerance, "what was written", "the FM with the run's adapter")


def _require_close(found: Tensor, expected: Tensor, tolerance: float, what: str, other: str) -> None:
    apart = difference(found, expected)
    if apart > tolerance:
        raise ConfigError(
            f"export: found {what} to answer {len(expected)} stored examples otherwise than {other} (logits differ by "
            f"{apart:.1e} of the largest), allowed: up to {tolerance:.0e}; nothing is left of it"
        )


def _staging_folder(target: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder beside the target, which must not be there or be empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out: found {str(target)!r}, which exists, allowed: a new or empty folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent)
    except OSError as error:
        found = f"{str(target)!r} ({error.strerror})"
        raise ConfigError(f"--out: found {found}, allowed: a folder that can be written") from None
