"""A finished run's folder, opened again: its settings and numbers, the FM that it began with, and the tuned models."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fedpft.config import Config, ConfigError, load_config
from fedpft.models.loading import load_sub_fm
from fedpft.models.lora import AdaptedModel, load_adapter
from fedpft.models.processor import load_processor
from fedpft.run.inputs import load_untuned_fm
from fedpft.run.same_fm import check_same_fm


def finished_run(run_dir: Path) -> tuple[Config, Mapping[str, Any]]:
    """Return config and result of a run.

    Raises:
        ConfigError: there is none, or it has not ended.

    """
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"RUN_DIR: found {str(run_dir)!r}, allowed: the output_dir of a run (it has a config.yaml)")
    missing = [name for name in ("result.json", "adapter") if not (run_dir / name).exists()]
    if missing:
        found = f"{str(run_dir)!r} without {' and '.join(missing)}"
        raise ConfigError(f"RUN_DIR: found {found}, allowed: a finished run (go on with: fedpft resume RUN_DIR)")
    try:
        result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
        unknown = [key for key in ("kind", "modality", "label_names") if key not in result]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"RUN_DIR: found a result.json that is not JSON ({error}), allowed: a whole one") from None
    if unknown:
        found = f"a result.json without {' and '.join(unknown)}"
        raise ConfigError(f"RUN_DIR: found {found}, allowed: one that this version of fedpft wrote")
    return load_config(run_dir / "config.yaml"), result


def untuned_fm(run_dir: Path, config: Config, result: Mapping[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return the FM as it was before the run, and its tokenizer or image processor.

    Raises:
        ConfigError: it cannot be loaded again, or is another one by now.

    """
    saved_fm = run_dir / "fm" if config.fm.pretrain.num_epochs else None
    own_files = saved_fm if result["kind"] == "causal_lm" else None  # with the tokenizer that the run made
    source = replace(config.fm, path=str(own_files), revision=None) if own_files else config.fm
    processor = load_processor(source, result["modality"])
    pad_token_id = getattr(processor, "pad_token_id", None)
    names = result["label_names"]
    fm = load_untuned_fm(config, result["kind"], result["modality"], names, pad_token_id, saved_fm)
    check_same_fm(fm, result, result.get("versions", {}), str(saved_fm or config.fm.path))
    return fm, processor


def tuned_fm(run_dir: Path, config: Config, result: Mapping[str, Any]) -> AdaptedModel:
    """Return the plugged-in FM.

    Raises:
        ConfigError: the FM cannot be loaded again, or the adapter is not one for it.

    """
    fm, _ = untuned_fm(run_dir, config, result)
    return load_adapter(fm, run_dir / "adapter")


def tuned_sub_fm(run_dir: Path) -> AdaptedModel:
    """Return the sub-FM with the adapter on it: what a client could run.

    Raises:
        ConfigError: the run has no sub-FM, or its adapter is not one for it.

    """
    if not (run_dir / "sub_fm").exists():
        raise ConfigError(f"RUN_DIR: found {str(run_dir)!r} without sub_fm, allowed: a run whose proxy is not the FM")
    return load_adapter(load_sub_fm(run_dir / "sub_fm"), run_dir / "sub_fm_adapter")
