"""Tells a web address of a run's end, and of alarms on the way, by a JSON object in a POST.

    {"event": "finished", "text": "...", "name": "...", "output_dir": "...", "host": "...", "time": "...", "rounds": 20,
     "metric": "accuracy", "fm": 0.8, "sub_fm": 0.7, "untuned_fm": 0.1, "wall_seconds": 61.5}

`event`: `finished`, `failed`, `interrupted` (Ctrl-C, SIGTERM), `alarm`; the last three have a `reason`. `text` is one
line for people. A post is tried three times and ends after some seconds; one that fails is a warning, without the
address.
"""

import json
import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from fedpft.config import Config, ConfigError
from fedpft.config.tracking import is_web_address
from fedpft.storage.ending import why_ended
from fedpft.tracking.trackers import Tracker

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

WAITS_SECONDS = (1.0, 3.0)
"""Before the second and the third try."""
TRY_SECONDS = 5.0
"""For one try."""
END_SECONDS = 15.0
"""For all that is not sent yet when the run ends."""
OF_RESULT = ("metric", "fm", "sub_fm", "untuned_fm", "wall_seconds")
"""What is told of a result."""


@contextmanager
def notifying(config: Config, output_dir: Path) -> Iterator[Sequence[Tracker]]:
    """Tell `tracking.notify` how what happens within ends; yield the tracker that makes it hear, or none.

    Raises:
        ConfigError: the environment variable that should have the address has none.

    """
    if config.tracking.notify is None:
        yield ()
        return
    about = {"name": config.name, "output_dir": str(output_dir), "host": platform.node()}
    notifier = Notifier(address(config.tracking.notify), about)
    try:
        yield (notifier,)
    except BaseException as error:
        why = why_ended(error, strict=config.privacy.strict)
        notifier.end(why["kind"], reason=why["reason"])
        raise
    notifier.end("finished", **notifier.result)


def address(notify: str) -> str:
    """Return the address that a setting means.

    Raises:
        ConfigError: it names a variable that has none.

    """
    if not notify.startswith("$"):
        return notify
    found = os.environ.get(notify[1:], "")
    if not is_web_address(found):
        what = "is no web address" if found else "is not set"
        raise ConfigError(f"tracking.notify: found {notify!r}, which {what}, allowed: a variable with http(s)://...")
    return found


class Notifier:
    """A `Tracker` that tells of alarms; :func:`notifying` tells of the end.

    Args:
        url: the web address.
        about: what every post has.

    """

    locations: Mapping[str, str] = {}

    def __init__(self, url: str, about: Mapping[str, Any]) -> None:
        self._url, self._about, self._rounds = url, dict(about), 0
        self._posts: list[threading.Thread] = []
        self._failure: str | None = None
        self.result: dict[str, Any] = {}
        """What the end tells of the result."""

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Send what the round gives alarm of."""
        self._rounds = record["round"]
        for line in record.get("memory/alarms", ()):
            self._send("alarm", {"reason": line})

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ignore."""

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Ignore."""

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Ignore."""

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Remember the result."""
        self.result = {key: result[key] for key in OF_RESULT if key in result}

    def fail(self) -> None:
        """Ignore: the end has the reason."""

    def end(self, event: str, **more: Any) -> None:
        """Send the last post and wait for all of them, some seconds at most; one warning if one failed."""
        self._send(event, more)
        give_up = time.monotonic() + END_SECONDS
        for post in self._posts:
            post.join(max(0.0, give_up - time.monotonic()))
        if any(post.is_alive() for post in self._posts):
            self._failure = self._failure or f"no answer in {END_SECONDS:g} s"
        if self._failure:
            warnings.warn(f"tracking.notify failed, nobody may have heard: {self._failure}", stacklevel=3)

    def _send(self, event: str, more: Mapping[str, Any]) -> None:
        content = {"event": event, "text": "", **self._about, "rounds": self._rounds}
        content |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        content |= {key: _plain(value) for key, value in more.items()}
        told = more.get("reason") or ", ".join(f"{key} {content[key]}" for key in OF_RESULT[:2] if key in content)
        content["text"] = f"{content['name']} {event} after round {self._rounds}: {told}"
        thread = threading.Thread(target=self._post, args=(json.dumps(content).encode(),), daemon=True)
        self._posts.append(thread)
        thread.start()

    def _post(self, body: bytes) -> None:
        request = Request(self._url, body, {"Content-Type": "application/json", "User-Agent": "fedpft"}, method="POST")
        for wait in (*WAITS_SECONDS, None):
            try:
                with urlopen(request, timeout=TRY_SECONDS):
                    return
            except HTTPError as error:
                error.close()
                reason, is_final = f"the server answers {error.code}", error.code < 500 and error.code != 429
            except URLError as error:
                reason, is_final = str(error.reason), False
            except Exception as error:  # an answer that is no HTTP, an address that is none after all
                reason, is_final = type(error).__name__, False
            if is_final or wait is None:
                self._failure = reason
                return
            time.sleep(wait)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, which knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
