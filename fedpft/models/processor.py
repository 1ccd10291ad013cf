"""An FM's tokenizer or image processor: from where the FM is, or one made for an FM from scratch."""

from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, ViTImageProcessorPil

from fedpft.config import ConfigError, FMConfig
from fedpft.models.loading import Modality, load_fm_config
from fedpft.models.sources import from_pretrained, is_from_scratch


def load_processor(config: FMConfig, modality: Modality) -> Any:
    """Return the tokenizer (text) or image processor (image) that belongs to the FM.

    Raises:
        ConfigError: nothing to load at `fm.path`, or a tokenizer without words.

    """
    if is_from_scratch(config):
        return _scratch_processor(config, modality)
    auto = AutoTokenizer if modality == "text" else AutoImageProcessor
    processor = from_pretrained(auto, config)
    if modality == "image":
        return processor
    if len(processor) <= len(processor.all_special_tokens):  # what transformers makes of a folder without its files
        raise ConfigError(
            f"fm.path: found {config.path!r} with no tokenizer's files, allowed: a model with its tokenizer"
        )
    if processor.pad_token is None and processor.eos_token is None:
        found = f"{config.path!r} with a tokenizer that has neither a padding nor an end-of-text token"
        raise ConfigError(f"fm.path: found {found}, allowed: one that has either (in its tokenizer_config.json)")
    if processor.pad_token is None:
        processor.pad_token = processor.eos_token
    return processor


def _scratch_processor(config: FMConfig, modality: Modality) -> Any:
    if modality == "text":
        raise ConfigError(
            f"fm.path: found {config.path!r}, but text needs a tokenizer: give a hub id, folder or package://"
        )
    size = getattr(load_fm_config(config, 2), "image_size", None)
    if size is None:
        raise ConfigError(
            f"fm.path: found {config.path!r}, allowed: a model of images, because the task is one of them"
        )
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return ViTImageProcessorPil(size={"height": height, "width": width})
