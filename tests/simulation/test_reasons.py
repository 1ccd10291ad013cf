"""One line for what went wrong in another process: that process' own last error."""

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
from ray.exceptions import RayError, RayTaskError

from fedpft.simulation.reasons import reason

NOT_IMPORTED = """The actor died because of an error raised in its creation, \x1b[36mray::A.__init__()\x1b[39m (pid=7)
RuntimeError: The actor with name A failed to import on the worker. This may be because needed libraries are missing:

\x1b[36mray::A.__init__()\x1b[39m (pid=7)
                  ^^^^^^^^^^^^^
ModuleNotFoundError: No module named 'datasets.load'"""
KILLED = "The actor died unexpectedly before finishing this task.\n\tclass_name: C\nThe actor never ran."
REASONS = {
    "of a task": (RayTaskError("f", "a traceback", ValueError("bad luck\nmore")), "ValueError: bad luck"),
    "of an import": (RayError(NOT_IMPORTED), "ModuleNotFoundError: No module named 'datasets.load'"),
    "of an import in Tune": (RuntimeError(NOT_IMPORTED), "ModuleNotFoundError: No module named 'datasets.load'"),
    "of a kill": (RayError(KILLED), "RayError: The actor died unexpectedly before finishing this task."),
    "of the user": (RuntimeError("a line\nValueError: another"), "RuntimeError: a line"),
    "a text": ("Traceback (most recent call last):\n  f()\nmine.OddError: odd\n", "mine.OddError: odd"),
    "nothing": ("", "no reason is known"),
}


@pytest.mark.parametrize(("error", "expected"), REASONS.values(), ids=REASONS)
def test_the_reason_is_the_last_error_of_the_process_itself(error, expected):
    assert reason(error) == expected
