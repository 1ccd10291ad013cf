"""What ends a run early, as exceptions, so that everything that was started is closed on the way.

Ctrl-C, SIGTERM and a terminal that closes raise :class:`Interrupted`, a run in which nothing is learned any more
:class:`RunStoppedError`, one at whose end nothing counts :class:`NotCountedError`.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RunStoppedError(RuntimeError):
    """Going on makes no sense; the message is one line that says why."""


class NotCountedError(RunStoppedError):
    """A run got to its end, but its numbers do not count; another attempt gives the same."""


class Interrupted(BaseException):
    """A signal asked the process to end. Not a KeyboardInterrupt, which libraries catch and turn into something else.

    Args:
        signal_number: the signal's.

    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def lack_of_memory(error: BaseException) -> str | None:
    """Return what to say of an error of Python's or torch's that a block of memory is not to be had; None: another."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or "allocate memory" in line or "out of memory" in line:
        return f"not enough memory for these settings ({line.strip() or type(error).__name__})"
    return None


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread at the first signal; the next one ends the process at once."""
    before = _heeded()

    def interrupt(number: int, frame: FrameType | None) -> None:
        _stop_listening(before, number)
        raise Interrupted(number)

    for number in before:
        signal.signal(number, interrupt)
    try:
        with unmasked():
            yield
    finally:
        _restore(before)


@contextmanager
def unmasked() -> Iterator[None]:
    """Raise the :class:`Interrupted` itself where a signal came during a call of Ray, which makes it a SystemError."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, Interrupted):
            raise error.__cause__ from None
        raise


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Put the handlers of the signals back after a library's call that installs its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _restore(before)


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Yield a function that raises :class:`Interrupted` if a signal came meanwhile; the next one ends the process.

    For libraries that turn an exception out of nowhere into one of their own.
    """
    before = _heeded()
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        _stop_listening(before, number)
        came.append(number)

    def check() -> None:
        if came:
            raise Interrupted(came[0])

    if threading.current_thread() is threading.main_thread():
        for number in before:
            signal.signal(number, hold)
    try:
        yield check
    finally:
        if threading.current_thread() is threading.main_thread():
            _restore(before)


def _heeded() -> dict[signal.Signals, Any]:
    """Return the handlers of the signals, but for one that is to be ignored, as `nohup` says of a closing terminal."""
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}


def _stop_listening(before: Mapping[signal.Signals, Any], number: int) -> None:
    """Let the next signal end the process at once; after SIGHUP there is no terminal to write to any more."""
    for other in before:
        signal.signal(other, signal.SIG_DFL)
    if number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            if os.isatty(stream):
                os.dup2(nowhere, stream)
        os.close(nowhere)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: not installed by Python
            signal.signal(number, handler)


def one_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
