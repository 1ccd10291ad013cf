import errno
import json
import signal

import pytest

from fedpft.config import Config, ConfigError
from fedpft.interrupt import Interrupted, RunStoppedError
from fedpft.storage.ending import MAX_LENGTH, forget_ending, note_ending, why_ended


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (Interrupted(signal.SIGTERM), "interrupted", "interrupted (SIGTERM)"),
        (KeyboardInterrupt(), "interrupted", "interrupted (KeyboardInterrupt)"),
        (RunStoppedError("no client gave an update"), "failed", "no client gave an update"),
        (ConfigError("task.path: found 'x'"), "failed", "task.path: found 'x'"),
        (ValueError("a value\nof\nmany lines"), "failed", "ValueError: a value"),
        (OSError(errno.ENOSPC, "No space left on device"), "failed", "No space left on device"),
        (RuntimeError(), "failed", "RuntimeError"),
        (OSError("cannot reach https://me:secret@host/x"), "failed", "OSError: cannot reach https://host/x"),
    ],
)
def test_a_reason_is_one_line(error, kind, reason):
    assert why_ended(error) == {"kind": kind, "reason": reason}


def test_a_strict_run_tells_the_kind_of_error_and_nothing_that_a_message_may_quote():
    for error in (ValueError("row 7: 'Jane Doe'"), RunStoppedError("client 3: no update")):
        assert why_ended(error, strict=True) == {"kind": "failed", "reason": type(error).__name__}


def test_a_long_reason_is_cut():
    assert len(why_ended(ValueError("x" * 1000))["reason"]) == MAX_LENGTH


def test_the_file_is_whole_is_removed_when_a_run_goes_on_and_cannot_hide_the_error(tmp_path):
    note_ending(tmp_path, Config(), ValueError("this"))
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()).keys() == {"kind", "reason", "time"}
    for _ in range(2):
        forget_ending(tmp_path)
    assert not file.exists()
    note_ending(tmp_path / "gone", Config(), ValueError("this"))
