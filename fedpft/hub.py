"""Whether there is a hub: asked once, before its clients ask again and again."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

SECONDS = 10.0
"""A hub that has not answered by then is none."""

_answered: set[str] = set()


@contextmanager
def hub_or_cache(path: str, kind: Literal["model", "dataset"]) -> Iterator[None]:
    """Let nothing within wait for a hub that does not answer, which would take from half a minute to a whole one.

    Then what was downloaded before is read as it is, and everything else is an error at once.

    Args:
        path: an id on the hub; for any other one nothing is asked.
        kind: of what should be there.

    """
    is_id = "://" not in path and not Path(path).expanduser().exists()
    if not is_id or constants.HF_HUB_OFFLINE or _answers(path, kind):
        yield
        return
    loaded = sys.modules.get("datasets.config")
    switches: list[Any] = [constants] if loaded is None else [constants, loaded]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def _answers(path: str, kind: str) -> bool:
    if path in _answered:
        return True
    try:
        HfApi().repo_info(path, repo_type=kind, timeout=SECONDS)
    except (HfHubHTTPError, ValueError):  # no such one, not for this user, no id: what loads it says so
        pass
    except Exception:  # of its HTTP client, which is another one from version to version
        return False
    _answered.add(path)
    return True
