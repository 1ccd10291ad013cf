"""What a method costs in parameters and bytes."""

from typing import Any

from torch import nn

from fedpft.models.ffn import num_transformer_parameters
from fedpft.models.lora import adapter_parameters, num_base_parameters


def costs(fm: nn.Module, proxy: nn.Module) -> dict[str, Any]:
    """Count parameters.

    `num_params_*` are whole models without adapters; `num_transformer_params_*` the layers alone (the paper's way), and
    `compression_ratio` is theirs.
    """
    fm_layers, proxy_layers = num_transformer_parameters(fm), num_transformer_parameters(proxy)
    adapter = adapter_parameters(proxy).values()
    return {
        "num_params_fm": num_base_parameters(fm),
        "num_params_sub_fm": num_base_parameters(proxy),
        "num_params_adapter": sum(parameter.numel() for parameter in adapter),
        "num_transformer_params_fm": fm_layers,
        "num_transformer_params_sub_fm": proxy_layers,
        "compression_ratio": fm_layers / proxy_layers,
    }
