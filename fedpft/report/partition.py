"""The picture of a partition: who owns which labels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

MAX_CLIENTS = 200
"""Shown at most, the first ones."""

_TOP, _BOTTOM, _LARGEST_HEIGHT, _CLIENT_HEIGHT = 10, 70, 600, 16  # pixels


def partition_figure(partition: Mapping[str, Any]) -> "Figure":
    """Return the heat map of each label's share of a client's examples, clients (0 at the top) x labels.

    Args:
        partition: `label_names`, and `label_histogram`, (clients, labels) counts, of the first clients if not of all.

    """
    from plotly.graph_objects import Figure, Heatmap

    counts = np.asarray(partition["label_histogram"])[:MAX_CLIENTS]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = Heatmap(
        x=partition["label_names"], y=list(range(len(counts))), z=shares.round(4).tolist(), customdata=counts.tolist(),
        name="share of the client's examples", colorscale="Cividis", zmin=0, zmax=1, xgap=1, ygap=1,
        colorbar={"tickformat": ".0%", "thickness": 12},
        hovertemplate="client %{y}, %{x}: %{customdata} examples, %{z:.0%}<extra></extra>",
    )  # fmt: skip
    height = min(_LARGEST_HEIGHT, _CLIENT_HEIGHT * len(counts)) + _TOP + _BOTTOM
    return Figure(picture).update_layout(
        height=height, margin={"l": 45, "r": 10, "t": _TOP, "b": _BOTTOM},
        xaxis={"title": "label", "type": "category"},
        yaxis={"title": "client", "autorange": "reversed", "dtick": max(1, len(counts) // 10)},
    )  # fmt: skip
