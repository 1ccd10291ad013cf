"""A model's content as a short string: equal for equal weights and architecture, wherever they were loaded from."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from fedpft.models.ffn import find_backbone
from fedpft.models.origin import origin_of

_NOT_ARCHITECTURE = frozenset(
    {
        *("_name_or_path", "transformers_version", "architectures", "dtype"),  # where it comes from, how it was saved
        *("id2label", "label2id", "problem_type"),  # the head's: its weights are in the state dict, if it has one
    }
)
"""Fields of a transformers config that do not change what the model computes."""


def model_digest(model: PreTrainedModel, ignored: Sequence[str] = ()) -> str:
    """Return 32 hex digits over the state dict (names, dtypes, shapes, bytes) and the config's architecture.

    One pass over the weights, at about a gigabyte a second.

    Args:
        model: any.
        ignored: modules, by their names in it, that do not count.

    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_ARCHITECTURE}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(tuple(f"{module}." for module in ignored)):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def backbone_digest(model: nn.Module) -> str:
    """Return the digest of a model's backbone, without what was drawn of it: that belongs to the head."""
    return model_digest(find_backbone(model), origin_of(model).new_modules)


def fm_digest(fm: PreTrainedModel) -> str:
    """Return the digest of all of a plain FM that a run never changes: the backbone, or the whole language model."""
    return model_digest(fm) if fm.get_output_embeddings() is not None else backbone_digest(fm)
