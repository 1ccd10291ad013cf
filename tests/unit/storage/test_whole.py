"""What is written is there whole or not at all, also when a library has its own words for a full disk."""

import errno
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpft.storage.output import write_json, write_text
from fedpft.storage.whole import full_disk, written_whole


@pytest.fixture
def small_disk():
    """Let no file grow beyond 1 kB, which the system refuses as it refuses a file on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def write_safetensors(path):
    with written_whole(path) as temporary:
        save_file({"a": torch.zeros(10_000)}, temporary)


def write_folder(path):
    with written_whole(path) as temporary:
        temporary.mkdir()
        (temporary / "small").write_text("")
        save_file({"a": torch.zeros(10_000)}, temporary / "large")


WRITERS = {
    "safetensors": write_safetensors,
    "a folder": write_folder,
    "json": lambda path: write_json(path, {"a": "x" * 10_000}),
    "text": lambda path: write_text(path, "x" * 10_000),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_on_a_full_disk_the_old_stays_and_nothing_else(tmp_path, request, write):
    (tmp_path / "new").write_text("old")
    request.getfixturevalue("small_disk")
    with pytest.raises(OSError, match="File too large") as error:
        write(tmp_path / "new")
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "new"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_is_whole_takes_the_place_of_the_old(tmp_path):
    for name in ("folder/old", "file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    write_safetensors(tmp_path / "file")
    write_folder(tmp_path / "folder")
    assert load_file(tmp_path / "file")["a"].numel() == 10_000
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["large", "small"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_whatever_else_stops_it_is_raised_as_it_is(tmp_path, error):
    def stop():
        with written_whole(tmp_path / "new") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        stop()
    assert list(tmp_path.iterdir()) == []


def raised(error, cause=None):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (raised(RuntimeError("generation failed"), OSError(errno.EDQUOT, "quota")), errno.EDQUOT),
        (raised(ValueError("x"), RuntimeError("Read-only file system")), errno.EROFS),
        (OSError(errno.ECONNREFUSED, "refused"), None),
        (ValueError("x"), None),
    ],
)
def test_a_full_disk_is_known_by_whatever_a_library_makes_of_it(error, number):
    found = full_disk(error)
    assert (found and found.errno) == number
