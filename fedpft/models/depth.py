"""How many layers a model has, as its config says: all fields that name one layer each."""

from collections.abc import Sequence

from transformers import PretrainedConfig

PER_LAYER_FIELDS = ("layer_types", "no_rope_layers")
"""Fields that hold one value for each layer."""


def keep_layers(config: PretrainedConfig, kept: Sequence[int]) -> None:
    """Make a config say, in place, that a model has these layers of it; another number could not be saved and opened.

    Args:
        config: of a model with more layers, or as many.
        kept: numbers of its layers, ascending.

    """
    config.num_hidden_layers = len(kept)
    for field in PER_LAYER_FIELDS:
        values = getattr(config, field, None)
        if values is not None and len(values) > kept[-1]:
            setattr(config, field, [values[index] for index in kept])
    if hasattr(config, "stage_names"):  # of what transformers calls a backbone: DINOv2
        config.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(kept) + 1))]
        config.set_output_features_output_indices(out_features=None, out_indices=None)
