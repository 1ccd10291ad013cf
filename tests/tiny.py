"""Tiny random models of every family, for tests that take milliseconds."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

_COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _COMMON | {"max_position_embeddings": 40},
    "roberta": _COMMON | _SPECIAL | {"max_position_embeddings": 40},
    "distilbert": {
        "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40, "max_position_embeddings": 40,
    },
    "vit": {k: v for k, v in _COMMON.items() if k != "vocab_size"} | {"image_size": 8, "patch_size": 4},
    "gpt2": _SPECIAL | {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24, "vocab_size": 40, "n_positions": 40},
    "llama": _COMMON | _SPECIAL | {"num_key_value_heads": 2},
    "qwen2": _COMMON | _SPECIAL | {"num_key_value_heads": 2},
}  # fmt: skip
FAMILIES = sorted(TINY_CONFIGS)


def tiny_fm(model_type: str, *, num_labels: int = 3, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a random model in eval mode whose every parameter, biases and norms included, is non-trivial."""
    config = AutoConfig.for_model(model_type, num_labels=num_labels, **(TINY_CONFIGS[model_type] | overrides))
    auto = AutoModelForImageClassification if model_type == "vit" else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_batch(model_type: str, *, batch_size: int = 4, num_tokens: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return inputs of `tiny_fm(model_type)`; texts are right-padded to different lengths."""
    generator = torch.Generator().manual_seed(seed)
    if model_type == "vit":
        return {"pixel_values": torch.randn(batch_size, 3, 8, 8, generator=generator)}
    lengths = torch.randint(3, num_tokens + 1, (batch_size, 1), generator=generator)
    lengths[0] = num_tokens
    mask = (torch.arange(num_tokens) < lengths).long()
    ids = torch.randint(3, 40, (batch_size, num_tokens), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}
