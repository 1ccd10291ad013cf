"""Who holds a folder, and when nobody does any more."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from fedpft.config import ConfigError
from fedpft.storage import lock
from fedpft.storage.lock import HOLDER_FILE, SILENT_SECONDS, held, tell

HOLD = (
    "import sys, time; from pathlib import Path; from fedpft.storage.lock import held\n"
    "with held(Path(sys.argv[1]), 'sweep'): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_who_comes_second_hears_who_holds_it_where_and_since_when_and_a_dead_holder_holds_nothing(tmp_path, holder):
    with pytest.raises(ConfigError) as error, held(tmp_path / "out"):
        pass
    line = str(error.value)
    assert line.startswith(f"output_dir: found {str(tmp_path / 'out')!r}, where a sweep is in progress (process ")
    assert f"process {holder.pid} on {platform.node()}, since 20" in line
    assert "\n" not in line
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / HOLDER_FILE).exists()
    with held(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / HOLDER_FILE).read_text())["pid"] == os.getpid()


def test_who_holds_it_says_what_it_is_doing_and_nobody_else_does(tmp_path):
    file = tmp_path / HOLDER_FILE
    with held(tmp_path):
        before = json.loads(file.read_text())
        tell(tmp_path, "align layers")
        assert json.loads(file.read_text()) == before | {"doing": "align layers"}
        file.write_text("cut o")
        tell(tmp_path, "")
        assert json.loads(file.read_text()) == before | {"doing": ""}, "still who it is, whatever became of the file"
    tell(tmp_path, "align layers")
    assert not file.exists()


def test_a_link_to_a_held_folder_is_held(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ConfigError, match="is in progress"), held(tmp_path / "link"):
        pass


@pytest.mark.parametrize(("silent", "refused"), [(0, True), (SILENT_SECONDS - 20, True), (SILENT_SECONDS + 20, False)])
def test_a_holder_on_another_machine_counts_while_it_gives_signs_of_life(tmp_path, silent, refused):
    record = tmp_path / HOLDER_FILE
    record.write_text(json.dumps({"what": "run", "host": "node7", "pid": 1, "since": "2026-01-02 03:04:05"}))
    os.utime(record, (time.time() - silent,) * 2)
    if refused:
        with pytest.raises(ConfigError, match=r"process 1 on node7, since 2026-01-02 03:04:05\).* sign of life"):
            held(tmp_path).__enter__()
        assert json.loads(record.read_text())["host"] == "node7"
    else:
        with held(tmp_path):
            assert json.loads(record.read_text())["host"] == platform.node()


def test_a_path_that_is_none_is_one_line(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("a\0b", "circle", "x" * 300):
        with pytest.raises(ConfigError, match=r"^output_dir: found .* allowed: a folder that can be written; [^\n]*$"):
            held(tmp_path / name).__enter__()


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with held(tmp_path):
        os.utime(tmp_path / HOLDER_FILE, (0, 0))
        deadline = time.monotonic() + 300
        while (tmp_path / HOLDER_FILE).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_it_leaves_no_trace_and_takes_nothing_away(tmp_path):
    with held(tmp_path / "a/b"), held(tmp_path / "a/b"):  # its own process may hold it twice
        assert (tmp_path / "a/b" / HOLDER_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a/b"):
        (tmp_path / "a/b/result.json").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "result.json"]


def test_where_the_file_system_has_no_locks_a_file_does(tmp_path, monkeypatch):
    def missing(self, *_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", missing)
    with held(tmp_path):
        monkeypatch.setattr(lock, "_held", {})  # as another process sees it
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            held(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_who_is_patient_gets_it_after_the_holders_end(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (holder.kill(), holder.wait()))
    with held(tmp_path / "out", patience_seconds=60):
        assert json.loads((tmp_path / "out" / HOLDER_FILE).read_text())["pid"] == os.getpid()
