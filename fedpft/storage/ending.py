"""Why a run ended without a result, in a file of its folder: whoever looks on later knows, although the screen is gone.

The file is there from the moment the run ends until somebody goes on with it. A process that was killed leaves none.
"""

import re
import time
from contextlib import suppress
from pathlib import Path

from fedpft.config import Config, ConfigError
from fedpft.interrupt import Interrupted, RunStoppedError, one_line
from fedpft.storage.output import ENDED_FILE, write_json
from fedpft.storage.whole import full_disk

MAX_LENGTH = 300
"""Signs of a reason."""

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")


def why_ended(error: BaseException, *, strict: bool = False) -> dict[str, str]:
    """Return the file's content: `kind`, `reason` in one line.

    Args:
        error: what ended the run.
        strict: only say what kind of error it was: a message may quote data, or tell of clients one by one.

    """
    if not isinstance(error, Exception):  # a signal, the end of the process, a scheduler
        by = error if isinstance(error, Interrupted) else type(error).__name__
        return {"kind": "interrupted", "reason": f"interrupted ({by})"}
    if (full := full_disk(error)) is not None:
        return {"kind": "failed", "reason": str(full.strerror)}
    if strict:
        return {"kind": "failed", "reason": type(error).__name__}
    has_own_line = isinstance(error, ConfigError | RunStoppedError)
    line = str(error) if has_own_line else one_line(error)
    line = " ".join(_CREDENTIALS.sub("", line).split())
    return {"kind": "failed", "reason": line if len(line) <= MAX_LENGTH else f"{line[: MAX_LENGTH - 3]}..."}


def note_ending(output_dir: Path, config: Config, error: BaseException) -> None:
    """Write the file, whole or not at all; where it cannot be written, the run's own error is all there is."""
    why = why_ended(error, strict=config.privacy.strict)
    with suppress(OSError):
        write_json(output_dir / ENDED_FILE, {**why, "time": time.strftime("%FT%T%z")})


def forget_ending(output_dir: Path) -> None:
    """Remove the file: the run goes on."""
    (output_dir / ENDED_FILE).unlink(missing_ok=True)
