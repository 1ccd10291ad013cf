import os

import pytest

from fedpft.storage import own_folder as module
from fedpft.storage.own_folder import own_folder


@pytest.fixture
def parents(tmp_path, monkeypatch):
    """Let two folders be where temporary files may be, beside TMPDIR."""
    found = [tmp_path / "a", tmp_path / "b"]
    for folder in found:
        folder.mkdir()
    monkeypatch.setattr(module, "PARENTS", tuple(map(str, found)))
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(found[0]))
    monkeypatch.delenv("TMPDIR", raising=False)
    return found


def test_it_is_this_users_alone_and_the_same_each_time(parents):
    folder = own_folder()
    assert folder == own_folder() == parents[0] / f"fedpft-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def spoil_by_a_file(folder, monkeypatch):
    folder.write_text("")


def spoil_by_a_link(folder, monkeypatch):
    folder.symlink_to(folder.parent)


def spoil_by_another_user(folder, monkeypatch):
    folder.mkdir()
    real = os.lstat(folder)
    monkeypatch.setattr(os, "getuid", lambda: int(folder.name.split("-")[1]))
    other = os.stat_result([*real[:4], real.st_uid + 1, *real[5:]])
    lstat = type(folder).lstat
    monkeypatch.setattr(type(folder), "lstat", lambda path: other if path == folder else lstat(path))


@pytest.mark.parametrize("spoil", [spoil_by_a_file, spoil_by_a_link, spoil_by_another_user])
def test_a_place_that_is_not_this_users_is_passed_over(parents, monkeypatch, spoil):
    spoil(parents[0] / f"fedpft-{os.getuid()}", monkeypatch)
    assert own_folder().parent == parents[1]


@pytest.mark.parametrize("bad", ["{}/" + "x" * 100, "{}/file", "{}/missing", "/proc/none"])
def test_a_tmpdir_that_will_not_do_is_passed_over(parents, tmp_path, monkeypatch, bad):
    (tmp_path / "file").write_text("")
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setenv("TMPDIR", bad.format(tmp_path))
    assert own_folder(len(os.fsencode(parents[0])) + 20).parent == parents[0]


def test_without_a_place_it_says_what_is_needed(parents):
    with pytest.raises(OSError, match=r"^found no folder for .*, allowed: TMPDIR, a folder of at most 5 signs"):
        own_folder(5)
