"""PURE: LoRA's rank by client (FlexLoRA): weak clients tune the first rows of A and columns of B.

The server's factors come from an SVD, so that the first of them are the best approximation of their rank. What a client
of a lower rank does not have is zero in its adapter, all the way: of a zero row of A and column of B no gradient is
other than zero. So the server may take the mean of products as of any clients. Its product is scaled as all others',
by `lora_alpha / rank` with the adapter's rank.
"""

from collections.abc import Mapping

from fedpft.config import Config
from fedpft.models.lora import AdapterLayout, rank_mask
from fedpft.seeding import numpy_rng


def client_ranks(config: Config, num_clients: int) -> dict[int, int]:
    """Return each client's rank by its id: the list is dealt out in turn, in an order that is drawn; {} without one."""
    ranks = config.lora.ranks
    if not ranks:
        return {}
    order = numpy_rng(config.client_seed, "ranks").permutation(num_clients).tolist()
    return dict(sorted((client, ranks[place % len(ranks)]) for place, client in enumerate(order)))


def bytes_left_out(ranks: Mapping[int, int], layout: AdapterLayout) -> dict[int, int]:
    """Return by how many bytes each client's adapter is smaller than the whole one."""
    of_rank = {rank: 4 * int((~rank_mask(layout, rank)).sum()) for rank in set(ranks.values())}
    return {client: of_rank[rank] for client, rank in ranks.items()}
