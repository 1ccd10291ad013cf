"""Tests that share one Ray: each file finds all places free, or fails at once and says who holds them."""

import sys
import time
from typing import Any

import pytest

SETTLE_SECONDS = 60
"""Until what another file left has gone: actors that were killed give their places back a moment later."""


@pytest.fixture(scope="module", autouse=True)
def free_places() -> None:
    """Before the first test of a file: nobody holds a place of the shared Ray, if it has started."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    give_up = time.monotonic() + SETTLE_SECONDS
    while held := held_places(ray):
        if time.monotonic() > give_up:
            pytest.fail(f"places that an earlier test left claimed: {held}")
        time.sleep(0.1)


def held_places(ray: Any) -> str:
    """Return who holds places of the cluster; nothing where all are free."""
    total, free = ray.cluster_resources(), ray.available_resources()
    if all(free.get(kind, 0) >= total[kind] for kind in ("CPU", "GPU") if kind in total):
        return ""
    from ray.util import placement_group_table
    from ray.util.state import list_actors

    groups = [group["bundles"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
    try:
        actors = [f"{actor.class_name} {actor.actor_id}" for actor in list_actors(filters=[("state", "=", "ALIVE")])]
    except Exception as error:  # the state API needs a dashboard
        actors = [f"actors unknown: {type(error).__name__}"]
    return f"{groups or 'no placement group'}, {', '.join(actors) or 'no actor'}; free {free}"
