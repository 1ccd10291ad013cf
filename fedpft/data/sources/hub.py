"""Whether there is a hub: asked once, before its clients ask again and again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

SECONDS = 10.0
"""A hub that has not answered by then is none."""


@contextmanager
def hub_or_cache(path: str) -> Iterator[None]:
    """Let nothing within wait for a hub that does not answer, which would take half a minute.

    Then a data set that was downloaded before is read as it is, and every other one is an error at once.
    """
    if constants.HF_HUB_OFFLINE or Path(path).exists() or _answers(path):
        yield
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers(path: str) -> bool:
    try:
        HfApi().repo_info(path, repo_type="dataset", timeout=SECONDS)
    except (HfHubHTTPError, ValueError):  # no such data set, not for this user, no id: what loads it says so
        return True
    except Exception:  # of its HTTP client, which is another one from version to version
        return False
    return True
