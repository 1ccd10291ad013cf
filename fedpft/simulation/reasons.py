"""Why something in another process failed, in one line: that process' own last error, not Ray's word for it."""

import re

from ray.exceptions import RayError, RayTaskError

from fedpft.interrupt import one_line

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OWN_ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning)(?:: .*)?")
_NOT_IMPORTED = "failed to import on the worker"


def reason(error: BaseException | str) -> str:
    """Return the error's type and the first line of its message; of an actor that could not start, its process' own.

    A text is a traceback whose error cannot be had: the last error that it names.
    """
    if isinstance(error, str):
        return _last_error(error) or "no reason is known"
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    text = _COLOUR.sub("", str(error))
    if isinstance(error, RayError) or _NOT_IMPORTED in text:
        _, _, details = text.partition("\n")
        if told := _last_error(details):
            return told
    return _COLOUR.sub("", one_line(error))


def _last_error(text: str) -> str | None:
    """Return the last line that is an error's type and message."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if _OWN_ERROR.fullmatch(line)), None)
