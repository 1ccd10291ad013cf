"""Ctrl-C and SIGTERM end a run as an exception of its own, so that everything that was started is closed on the way."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the process to end. Not a KeyboardInterrupt, which libraries catch and turn into something else.

    Args:
        signal_number: the signal's.

    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
        self.advice = ""
        """How to go on; shown to the user."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread at the first signal; the next one ends the process at once."""
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        raise Interrupted(number)

    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Put the handlers of the signals back after a library's call that installs its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: not installed by Python
            signal.signal(number, handler)
