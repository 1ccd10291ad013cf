"""Models and their tokenizers / image processors: from the hub, a folder, a Python package, or from scratch."""

import difflib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from fedpft.config import ConfigError, FMConfig
from fedpft.models.ffn import FFN_LOCATIONS, ffn_location, find_ffns
from fedpft.seeding import derive_seed, isolated_torch_rng

Modality = Literal["text", "image"]
SCRATCH = "scratch://"
PACKAGE = "package://"
FFN_SIZES_FIELD = "ffn_sizes"
"""Field of a non-uniform sub-FM's config.json: neurons of each layer."""

_AUTO_MODELS: Mapping[Modality, Any] = {
    "text": AutoModelForSequenceClassification,
    "image": AutoModelForImageClassification,
}


def resolve_path(path: str) -> str:
    """Turn `package://module/sub/folder` into that installed package's folder; return any other path as it is.

    Raises:
        ConfigError: the package is not installed or lacks the folder.

    """
    if not path.startswith(PACKAGE):
        return path
    module, _, folder = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"fm.path: found {path!r}, but no package {module!r} is installed (pip install fedpft[quickstart]?)"
        )
    resolved = Path(spec.origin).parent / folder
    if not resolved.is_dir():
        raise ConfigError(f"fm.path: found {path!r}, but {module!r} has no folder {folder!r}")
    return str(resolved)


def load_processor(config: FMConfig, modality: Modality) -> Any:
    """Return the tokenizer (text) or image processor (image) that belongs to the FM.

    Raises:
        ConfigError: nothing to load at `fm.path`.

    """
    if config.path.startswith(SCRATCH):
        return _scratch_processor(config, modality)
    auto = AutoTokenizer if modality == "text" else AutoImageProcessor
    processor = _from_pretrained(auto, config.path)
    if modality == "text" and processor.pad_token is None:
        processor.pad_token = processor.eos_token
    return processor


def load_fm(
    config: FMConfig, *, modality: Modality, num_labels: int, seed: int, pad_token_id: int | None = None
) -> PreTrainedModel:
    """Return the FM with a head for `num_labels` classes, in eval mode; a new head is initialised from `seed`.

    Args:
        config: the `fm` section.
        modality: which kind of head.
        num_labels: classes of the head.
        seed: the run's.
        pad_token_id: the tokenizer's; a decoder pools the last token that is not padding.

    Raises:
        ConfigError: nothing to load at `fm.path`, or a family without a row in `FFN_LOCATIONS`.

    """
    auto = _AUTO_MODELS[modality]
    with isolated_torch_rng(derive_seed(seed, "fm")):
        if config.path.startswith(SCRATCH):
            fm = auto.from_config(_scratch_config(config, num_labels))
        else:
            pretrained = _from_pretrained(AutoConfig, config.path)
            _check_family(pretrained.model_type, config.path)
            _check_fields(pretrained, config.config)
            fm = _from_pretrained(
                auto, config.path, num_labels=num_labels, ignore_mismatched_sizes=True, **config.config
            )
    if pad_token_id is not None:
        fm.config.pad_token_id = pad_token_id
    return fm.float().eval()


def _check_family(model_type: str, path: str) -> None:
    if model_type not in FFN_LOCATIONS:
        raise ConfigError(
            f"fm.path: found {path!r} of model type {model_type!r}, allowed: {', '.join(sorted(FFN_LOCATIONS))} "
            "(add a row to FFN_LOCATIONS in fedpft/models/ffn.py)"
        )


def record_ffn_sizes(model: PreTrainedModel) -> None:
    """Write a model's FFN sizes into its config, so that it can be saved and opened again.

    Equal sizes go into the family's own field: the folder then opens with plain `AutoModel`. Different sizes go into
    `ffn_sizes`, and :func:`load_sub_fm` opens the folder.
    """
    sizes = [ffn.num_neurons for ffn in find_ffns(model)]
    if len(set(sizes)) == 1:
        vars(model.config).pop(FFN_SIZES_FIELD, None)
        setattr(model.config, ffn_location(model).size_field, sizes[0])
    else:
        setattr(model.config, FFN_SIZES_FIELD, sizes)


def load_sub_fm(folder: str | Path, *, modality: Modality) -> PreTrainedModel:
    """Open a saved sub-FM, uniform or not, in eval mode.

    Args:
        folder: written by `save_pretrained` after :func:`record_ffn_sizes`.
        modality: which kind of head it has.

    """
    auto = _AUTO_MODELS[modality]
    sizes = json.loads((Path(folder) / "config.json").read_text()).get(FFN_SIZES_FIELD)
    if sizes is None:
        return auto.from_pretrained(folder).eval()
    with torch.device("meta"):
        model_class: Any = type(auto.from_config(AutoConfig.from_pretrained(folder)))

    class WithSizes(model_class):
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            resize_ffns(self, sizes)

    # through from_pretrained, because families rename their weights when they are saved (ViT)
    model = WithSizes.from_pretrained(folder)
    model.__class__ = model_class
    return model.eval()


def resize_ffns(model: PreTrainedModel, sizes: Sequence[int]) -> None:
    """Cut each layer's FFN down to its first `sizes[l]` neurons: a skeleton to load weights into."""
    for ffn, size in zip(find_ffns(model), sizes, strict=True):
        ffn.keep_neurons(torch.arange(size))


def _from_pretrained(auto: Any, path: str, **kwargs: Any) -> Any:
    try:
        return auto.from_pretrained(resolve_path(path), **kwargs)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"fm.path: found {path!r}, allowed: a hub id, a folder or package://...; {first}") from None


def _scratch_config(config: FMConfig, num_labels: int) -> PretrainedConfig:
    model_type = config.path.removeprefix(SCRATCH)
    if model_type not in FFN_LOCATIONS:
        raise ConfigError(
            f"fm.path: found {config.path!r}, allowed after {SCRATCH}: {', '.join(sorted(FFN_LOCATIONS))}"
        )
    _check_fields(AutoConfig.for_model(model_type), config.config)
    return AutoConfig.for_model(model_type, num_labels=num_labels, **config.config)


def _check_fields(known: PretrainedConfig, overrides: Mapping[str, Any]) -> None:
    for key in overrides:
        if key not in known.to_dict():
            close = difflib.get_close_matches(key, known.to_dict(), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"fm.config.{key}: unknown field of a {known.model_type} config{hint}")


def _scratch_processor(config: FMConfig, modality: Modality) -> Any:
    if modality == "text":
        raise ConfigError(
            f"fm.path: found {config.path!r}, but text needs a tokenizer: give a hub id, folder or package://"
        )
    size = _scratch_config(config, num_labels=2).image_size
    return ViTImageProcessorPil(size={"height": size, "width": size})
