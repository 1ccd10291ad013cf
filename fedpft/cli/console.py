"""The screen, whatever signs its terminal knows."""

import codecs
import sys
from collections.abc import Callable
from functools import partial

from rich.console import Console

PLAIN = {
    **{"░": ".", "▒": ":", "▓": "*", "█": "#", "·": ".", "✓": "v", "→": "->", "±": "+-", "×": "x", "…": "..."},
    **{"─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "•": "*"},
}
"""Sign -> what stands for it where it cannot be shown."""


def plain_signs(error: UnicodeError) -> tuple[str, int]:
    """Stand in for signs that an encoding does not have; letters become their code point, as Python writes it."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    plain = (PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs)
    return "".join(plain), error.end


def take_any_text() -> None:
    """Let `print` and the console write any text, on a terminal of any encoding."""
    codecs.register_error("plain_signs", plain_signs)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a test puts in its place
            stream.reconfigure(errors="plain_signs")


def say_on(console: Console) -> Callable[[str], None]:
    """Return a function that prints a line as it is."""
    return partial(console.print, markup=False, highlight=False, soft_wrap=True)
