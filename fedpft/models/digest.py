"""A model's content as a short string: equal for equal weights and architecture, wherever they were loaded from."""

import hashlib
import json

import torch
from transformers import PreTrainedModel

_NOT_ARCHITECTURE = frozenset(
    {
        *("_name_or_path", "transformers_version", "architectures", "dtype"),  # where it comes from, how it was saved
        *("id2label", "label2id", "problem_type"),  # the head's: its weights are in the state dict, if it has one
    }
)
"""Fields of a transformers config that do not change what the model computes."""


def model_digest(model: PreTrainedModel) -> str:
    """Return 32 hex digits over the state dict (names, dtypes, shapes, bytes) and the config's architecture.

    One pass over the weights, at about a gigabyte a second.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_ARCHITECTURE}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
