import json
import os
import resource
import warnings
from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
import torch

from fedpft.storage.checkpoint import Checkpoints, RunCheckpoint, load_newest

SERVER = {"pending_bytes": 12, "last_evaluation": {"fm": 0.1 + 0.2}, "best": {"round": 1, "fm": 0.5}}
TENSOR_FIELDS = {"adapter", "proxy", "arrays"}


def checkpoint(rounds_done=1, version=0, **changes):
    def proxy():
        asked.append(rounds_done)
        return {"0.up.weight": torch.full((2, 3), 1 / 3 + version), "0.retained": torch.arange(3)}

    values = {
        "server": {"rounds_done": rounds_done, "proxy_version": version, **SERVER},
        "adapter": np.linspace(0, rounds_done, 5, dtype=np.float32),
        "proxy": proxy,
        "untuned": {"fm": 0.25},
        "run_id": "a1b2",
        "align_steps": 7,
        "seconds": 1.5,
        "config": {"seed": 1, "tracking": {"tags": ["x"]}},
        "environment": {"torch": "2"},
        "extra": {"cache": "key"},
    }
    return RunCheckpoint(**values | changes)


asked: list[int] = []


@pytest.fixture(autouse=True)
def _nobody_asked():
    asked.clear()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def filled(folder, *rounds, version=0, interval=1):
    made = Checkpoints(folder, interval)
    for rounds_done in rounds:
        made.save(checkpoint(rounds_done, version))
    return made


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    saved = checkpoint(3, version=2)
    Checkpoints(tmp_path, 1).save(saved)
    loaded = load_newest(tmp_path)
    for field in fields(RunCheckpoint):
        if field.name not in TENSOR_FIELDS:
            assert getattr(loaded, field.name) == getattr(saved, field.name), field.name
    assert loaded.adapter.dtype == np.float32
    assert loaded.adapter.tobytes() == saved.adapter.tobytes()
    for name, tensor in saved.proxy().items():
        assert torch.equal(loaded.proxy()[name], tensor)
        assert loaded.proxy()[name].dtype == tensor.dtype
    assert (loaded.rounds_done, loaded.proxy_version) == (3, 2)


def test_arrays_of_the_server_come_back_bit_for_bit_and_raise_the_format_of_what_holds_them(tmp_path):
    arrays = {"server/m": np.linspace(0, 1 / 3, 5), "server/v": np.full(5, 1e-6)}
    made = Checkpoints(tmp_path, 1)
    made.save(checkpoint(1))
    made.save(checkpoint(2, arrays=arrays))
    loaded = load_newest(tmp_path).arrays
    assert {name: value.tobytes() for name, value in loaded.items()} == {n: a.tobytes() for n, a in arrays.items()}
    formats = [json.loads((tmp_path / name / "state.json").read_text())["format"] for name in names(tmp_path)]
    assert formats == [1, 2], "a version without a server optimiser reads what has none, and nothing else"
    (tmp_path / "round-0002/arrays.safetensors").unlink()
    with pytest.warns(UserWarning, match="round-0002: unusable checkpoint skipped"):
        assert load_newest(tmp_path).rounds_done == 1


def test_only_safetensors_and_json_are_written(tmp_path):
    filled(tmp_path, 0)
    assert names(tmp_path / "round-0000") == ["adapter.safetensors", "proxy.safetensors", "state.json"]


def test_the_newest_two_stay_and_the_newest_is_loaded(tmp_path):
    filled(tmp_path, *range(12))
    assert names(tmp_path) == ["round-0010", "round-0011"]
    assert load_newest(tmp_path).rounds_done == 11


def test_rounds_are_ordered_as_numbers(tmp_path):
    filled(tmp_path, 9_999, 10_000, 10_001)
    assert load_newest(tmp_path).rounds_done == 10_001


def test_a_proxy_is_asked_for_and_written_once_per_version(tmp_path):
    made = Checkpoints(tmp_path, 1)
    for rounds_done, version in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]:
        made.save(checkpoint(rounds_done, version))
    assert asked == [0, 2]
    inodes = {os.stat(tmp_path / name / "proxy.safetensors").st_ino for name in names(tmp_path)}
    assert len(inodes) == 1
    assert torch.equal(load_newest(tmp_path).proxy()["0.up.weight"], torch.full((2, 3), 1 / 3 + 1))


def test_without_hard_links_the_proxy_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    filled(tmp_path, 1, 2)
    assert asked == [1]
    assert load_newest(tmp_path).rounds_done == 2
    assert torch.equal(load_newest(tmp_path).proxy()["0.up.weight"], torch.full((2, 3), 1 / 3))


def test_the_interval_counts_rounds_and_a_changed_proxy_is_never_put_off(tmp_path):
    made, written = Checkpoints(tmp_path, 5), []
    for rounds_done in range(12):
        made.save(checkpoint(rounds_done, version=int(rounds_done >= 7)))
        newest = load_newest(tmp_path).rounds_done
        if newest not in written:
            written.append(newest)
    assert written == [0, 5, 7, 10]


def test_flush_writes_the_newest_state_that_the_interval_put_off(tmp_path):
    made = filled(tmp_path, 0, 1, 2, 3, interval=100)
    assert load_newest(tmp_path).rounds_done == 0
    made.flush()
    assert load_newest(tmp_path).rounds_done == 3
    assert asked == [0], "the proxy may be half-way through an alignment"
    made.flush()
    assert names(tmp_path) == ["round-0000", "round-0003"]


def test_interval_0_writes_nothing(tmp_path):
    filled(tmp_path, 0, 1, interval=0).flush()
    assert names(tmp_path) == []


def test_discard_leaves_nothing(tmp_path):
    filled(tmp_path / "checkpoints", 0, 1).discard()
    assert names(tmp_path) == []


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path):
    assert load_newest(tmp_path / "nowhere") is None
    assert load_newest(tmp_path) is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def change_a_number(path):
    path.write_text(path.read_text().replace('"pending_bytes": 12', '"pending_bytes": 13'))


SPOILED = [
    (file, spoil)
    for file in ("adapter.safetensors", "proxy.safetensors", "state.json")
    for spoil in (truncate, flip, os.remove)
]


@pytest.mark.parametrize(("file", "spoil"), [*SPOILED, ("state.json", change_a_number)])
def test_a_torn_newest_is_skipped_with_one_line_that_names_it(tmp_path, file, spoil):
    made = filled(tmp_path, 1)
    made.save(checkpoint(2, version=1))
    spoil(tmp_path / "round-0002" / file)
    with pytest.warns(UserWarning, match="round-0002: unusable checkpoint skipped: ") as caught:
        assert load_newest(tmp_path).rounds_done == 1
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_another_format_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("fedpft.storage.checkpoint.FORMATS", {False: 3})
    filled(tmp_path, 1)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="format 3, this version reads 2 and older"):
        assert load_newest(tmp_path) is None


def test_a_write_that_was_killed_is_no_checkpoint(tmp_path):
    filled(tmp_path, 1)
    (tmp_path / "round-0001").rename(tmp_path / "round-0002.tmp")
    assert load_newest(tmp_path) is None


def test_going_on_replaces_what_could_not_be_read(tmp_path):
    filled(tmp_path, 1, 2, 3)
    truncate(tmp_path / "round-0003/state.json")
    made = Checkpoints(tmp_path, 2)
    made.save(checkpoint(2))
    assert names(tmp_path) == ["round-0002"]
    made.save(checkpoint(4))
    assert names(tmp_path) == ["round-0002", "round-0004"]


@contextmanager
def full_disk():
    """Let no file grow beyond 600 bytes: the adapter fits, the state does not."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limit[1]))
    try:
        yield
    finally:  # within the test: pytest's own report may go to a file
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_full_disk_costs_one_warning_and_keeps_the_older_ones(tmp_path):
    made = filled(tmp_path, 1)
    with full_disk(), pytest.warns(UserWarning, match="the run goes on") as caught:
        made.save(checkpoint(2))
    made.flush()
    assert len(caught) == 1
    assert "newest: round-0001" in str(caught[0].message)
    assert "\n" not in str(caught[0].message)
    assert names(tmp_path) == ["round-0001"]
    assert load_newest(tmp_path).rounds_done == 1


def test_after_a_failed_write_the_next_one_stands_on_its_own(tmp_path, monkeypatch):
    made = filled(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match="No space left on device"):
        made.save(checkpoint(2, version=1))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.save(checkpoint(3, version=1))
    assert load_newest(tmp_path).proxy_version == 1


def test_what_is_not_json_is_our_own_mistake(tmp_path):
    with pytest.raises(TypeError):
        Checkpoints(tmp_path, 1).save(checkpoint(extra={"x": object()}))
    assert load_newest(tmp_path) is None


def test_the_state_is_readable(tmp_path):
    filled(tmp_path, 1)
    content = json.loads((tmp_path / "round-0001/state.json").read_text())
    assert content["format"] == 1
    assert content["state"]["server"]["best"] == {"round": 1, "fm": 0.5}
    assert set(content["files"]) == {"adapter.safetensors", "proxy.safetensors"}
