"""What a method costs in parameters and bytes."""

from typing import Any

from torch import nn

from fedpft.config import ClientConfig
from fedpft.models.ffn import num_transformer_parameters
from fedpft.models.lora import get_adapter, num_base_parameters


def costs(fm: nn.Module, proxy: nn.Module, client: ClientConfig | None = None) -> dict[str, Any]:
    """Count parameters and the bytes of a client's round.

    `num_params_*` are whole models without adapters; `num_transformer_params_*` the layers alone (the paper's way), and
    `compression_ratio` is theirs. The round after a neuron-level alignment also sends the re-aligned FFNs
    down, many times an adapter: see `comm/bytes_down` of each round. A `client` that keeps a state gets it and the
    server's with every adapter, but for its first round, and sends its own.
    """
    fm_layers, proxy_layers = num_transformer_parameters(fm), num_transformer_parameters(proxy)
    adapter = get_adapter(proxy)
    states = int(client is not None and client.keeps_state)
    return {
        "num_params_fm": num_base_parameters(fm),
        "num_params_sub_fm": num_base_parameters(proxy),
        "num_params_adapter": len(adapter),
        "num_transformer_params_fm": fm_layers,
        "num_transformer_params_sub_fm": proxy_layers,
        "compression_ratio": fm_layers / proxy_layers,
        "bytes_up_per_client_round": (1 + states) * adapter.nbytes,
        "bytes_down_per_client_round": (1 + 2 * states) * adapter.nbytes,
    }
