import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from fedpft.construct.cache import BuiltSubFM, SubFMCache
from fedpft.construct.compress import compress, sub_fm_tensors
from fedpft.construct.store import ENTRY_FILE, TENSORS_FILE, key_of
from fedpft.models.digest import model_digest
from fedpft.models.ffn import find_ffns
from tests.tiny import FAMILIES, tiny_fm

INGREDIENTS = {"fm": "tiny", "seed": 0}
KEY = key_of(INGREDIENTS)
PLENTY = 10**9


class Builder:
    """Builds a sub-FM whose FFNs are not the FM's, and counts."""

    def __init__(self, fm, *, retained_ratio=0.5, seed=0):
        self.fm, self.retained_ratio, self.seed, self.calls = fm, retained_ratio, seed, 0

    def __call__(self):
        self.calls += 1
        sub_fm, neuron_map = compress(self.fm, retained_ratio=self.retained_ratio)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for ffn in find_ffns(sub_fm):
                for parameter in ffn.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
        return BuiltSubFM(tensors=sub_fm_tensors(sub_fm, neuron_map), report={"loss": 0.1})


@pytest.fixture
def fm():
    return tiny_fm("bert")


@pytest.fixture
def cache(tmp_path):
    return SubFMCache(tmp_path / "cache", PLENTY)


def content(cache):
    return {path.name for path in cache.store.folder.iterdir() if not path.name.endswith(".lock")}


# --- an entry is what was built ---


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_second_run_reads_what_the_first_built_bit_for_bit(cache, model_type):
    fm = tiny_fm(model_type)
    builder = Builder(fm)
    built, read = (cache.get_or_build(fm, INGREDIENTS, builder) for _ in range(2))
    assert builder.calls == 1
    assert (built.cached, read.cached) == (False, True)
    assert built.key == read.key == KEY
    assert model_digest(read.sub_fm) == model_digest(built.sub_fm) != model_digest(compress(fm, retained_ratio=0.5)[0])
    assert read.neuron_map.compressed_layers == built.neuron_map.compressed_layers == (0, 1, 2)
    assert read.report == built.report == {"loss": 0.1}
    assert content(cache) == {KEY}


def test_other_ingredients_are_another_entry_and_their_order_is_none(cache, fm):
    builder = Builder(fm)
    for ingredients in (INGREDIENTS, {"fm": "tiny", "seed": 1}, {"seed": 0, "fm": "tiny"}, {"fm": "tiny", "seed": "0"}):
        cache.get_or_build(fm, ingredients, builder)
    assert builder.calls == len(content(cache)) == 3


def test_a_sub_fm_without_a_compressed_layer_is_an_entry_too(cache, fm):
    for cached in (False, True):
        made = cache.get_or_build(fm, INGREDIENTS, Builder(fm, retained_ratio=1.0))
        assert made.cached == cached
        assert made.neuron_map.compressed_layers == ()
        assert model_digest(made.sub_fm) == model_digest(fm)


def test_an_entry_tells_what_it_is(cache, fm):
    cache.get_or_build(fm, INGREDIENTS, Builder(fm))
    (entry,) = cache.store.entries()
    folder = cache.store.entry_folder(KEY)
    assert entry.content["ingredients"] == INGREDIENTS
    assert entry.content["num_bytes"] == (folder / TENSORS_FILE).stat().st_size
    assert entry.num_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert abs(entry.content["created"] - time.time()) < 60
    assert entry.content["build_seconds"] > 0


# --- damage ---


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def rewrite(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def to_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


def to_folder(file):
    file.unlink()
    file.mkdir()


DAMAGE = {
    "tensors truncated": lambda entry: os.truncate(entry / TENSORS_FILE, 3000),
    "tensors empty": lambda entry: os.truncate(entry / TENSORS_FILE, 0),
    "tensors gone": lambda entry: (entry / TENSORS_FILE).unlink(),
    "tensors a folder": lambda entry: to_folder(entry / TENSORS_FILE),
    "a bit of the header flipped": lambda entry: flip(entry / TENSORS_FILE, 20),
    "a bit of a weight flipped": lambda entry: flip(entry / TENSORS_FILE, -5),
    "a byte appended": lambda entry: (entry / TENSORS_FILE).open("ab").write(b"\0"),
    "json gone": lambda entry: (entry / ENTRY_FILE).unlink(),
    "json empty": lambda entry: os.truncate(entry / ENTRY_FILE, 0),
    "json truncated": lambda entry: os.truncate(entry / ENTRY_FILE, 50),
    "json a list": lambda entry: (entry / ENTRY_FILE).write_text("[1]"),
    "json not text": lambda entry: (entry / ENTRY_FILE).write_bytes(b"\xff\x00"),
    "another loss": lambda entry: rewrite(entry / ENTRY_FILE, lambda content: content["report"].update(loss=0.2)),
    "no checksum": lambda entry: rewrite(entry / ENTRY_FILE, lambda content: content.pop("checksum")),
    "the folder is empty": lambda entry: [file.unlink() for file in entry.iterdir()],
    "the folder is a file": to_file,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_rebuilt_with_one_line_of_warning(cache, fm, damage):
    builder = Builder(fm)
    original = cache.get_or_build(fm, INGREDIENTS, builder)
    damage(cache.store.entry_folder(KEY))
    with pytest.warns(UserWarning, match=f"entry {KEY[:12]} is damaged and built again: ") as warned:
        rebuilt = cache.get_or_build(fm, INGREDIENTS, builder)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert (rebuilt.cached, builder.calls) == (False, 2)
    read = cache.get_or_build(fm, INGREDIENTS, builder)
    assert (read.cached, builder.calls) == (True, 2)
    assert model_digest(read.sub_fm) == model_digest(rebuilt.sub_fm) == model_digest(original.sub_fm)
    assert content(cache) == {KEY}


def test_an_entry_under_another_ones_key_is_rebuilt(cache, fm):
    other = {"fm": "tiny", "seed": 1}
    cache.get_or_build(fm, other, Builder(fm, seed=1))
    cache.store.entry_folder(key_of(other)).rename(cache.store.entry_folder(KEY))
    with pytest.warns(UserWarning, match="the ingredients are another entry's"):
        made = cache.get_or_build(fm, INGREDIENTS, Builder(fm))
    assert not made.cached


@pytest.mark.parametrize("overrides", [{"intermediate_size": 12}, {"hidden_size": 8}, {"num_hidden_layers": 2}])
def test_an_intact_entry_that_does_not_fit_the_fm_is_rebuilt(cache, fm, overrides):
    cache.get_or_build(fm, INGREDIENTS, Builder(fm))
    other = tiny_fm("bert", **overrides)
    with pytest.warns(UserWarning, match="damaged"):
        made = cache.get_or_build(other, INGREDIENTS, Builder(other))
    assert not made.cached
    assert cache.get_or_build(other, INGREDIENTS, Builder(other)).cached


# --- the run goes on ---


def test_an_error_of_the_builder_is_the_callers_and_leaves_nothing(cache, fm):
    def fail():
        raise OSError("the FM's file went away")

    with pytest.raises(OSError, match="the FM's file went away"):
        cache.get_or_build(fm, INGREDIENTS, fail)
    assert content(cache) == set()
    assert not cache.get_or_build(fm, INGREDIENTS, Builder(fm)).cached, "the lock is free"


def test_a_folder_that_cannot_be_used_costs_a_warning(tmp_path, fm):
    (tmp_path / "file").write_text("")
    builder = Builder(fm)
    with pytest.warns(UserWarning, match="cannot be used, the sub-FM is built without it") as warned:
        made = SubFMCache(tmp_path / "file" / "cache", PLENTY).get_or_build(fm, INGREDIENTS, builder)
    assert len(warned) == 1
    assert (made.cached, made.key, builder.calls) == (False, KEY, 1)


def test_a_full_disk_costs_a_warning_and_leaves_nothing(cache, fm, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    builder = Builder(fm)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match=r"does not take the sub-FM.*No space left"):
        made = cache.get_or_build(fm, INGREDIENTS, builder)
    assert (made.cached, builder.calls) == (False, 1)
    assert content(cache) == set()


# --- the bound ---


def fill(cache, fm, seed, *, used_seconds_ago=None):
    """Ask for an entry; return whether it was there."""
    ingredients = {"fm": "tiny", "seed": seed}
    made = cache.get_or_build(fm, ingredients, Builder(fm, seed=seed))
    if used_seconds_ago is not None:
        then = time.time() - used_seconds_ago
        os.utime(cache.store.entry_folder(key_of(ingredients)), (then, then))
    return made.cached


def kept(cache):
    """Return the seeds of the entries, the last used first."""
    return [entry.content["ingredients"]["seed"] for entry in cache.store.entries()]


def size_of_an_entry(cache, fm):
    fill(cache, fm, 0)
    return cache.store.entries()[0].num_bytes


def test_the_least_recently_used_goes_when_the_bound_is_reached(cache, fm):
    bounded = SubFMCache(cache.store.folder, 3 * size_of_an_entry(cache, fm) + 100)
    for seed, seconds in ((0, 300), (1, 200), (2, 100)):
        fill(bounded, fm, seed, used_seconds_ago=seconds)
    assert kept(bounded) == [2, 1, 0]
    assert fill(bounded, fm, 0), "a hit is a use"
    assert kept(bounded) == [0, 2, 1]
    fill(bounded, fm, 3)
    assert kept(bounded) == [3, 0, 2]


def test_an_entry_above_the_bound_stays_alone(cache, fm):
    tight = SubFMCache(cache.store.folder, 10)
    for seed in (0, 1, 2):
        assert not fill(tight, fm, seed)
        assert kept(tight) == [seed]
    assert fill(tight, fm, 2)


def test_an_entry_in_use_is_not_evicted(cache, fm):
    tight = SubFMCache(cache.store.folder, 10)
    fill(tight, fm, 0, used_seconds_ago=300)
    with locked_elsewhere(tight.store, key_of({"fm": "tiny", "seed": 0})):
        fill(tight, fm, 1)
        assert kept(tight) == [1, 0]


def test_what_a_killed_builder_left_is_evicted_too(cache, fm):
    bounded = SubFMCache(cache.store.folder, 2 * size_of_an_entry(cache, fm) + 100)
    left = bounded.store.unfinished_folder("0" * 32)
    left.mkdir()
    (left / TENSORS_FILE).write_bytes(bytes(5000))
    os.utime(left, (1, 1))
    fill(bounded, fm, 1)
    assert kept(bounded) == [1, 0]
    assert not left.exists()


# --- several at once ---


class locked_elsewhere:  # noqa: N801 - used like a function
    """Hold a key's lock in another thread."""

    def __init__(self, store, key):
        self._held, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(store, key))

    def _hold(self, store, key):
        with store.lock(key):
            self._held.set()
            self._done.wait(60)

    def __enter__(self):
        self._thread.start()
        assert self._held.wait(60)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join(60)


def test_who_waits_says_so_once_and_then_reads(cache, fm):
    cache.get_or_build(fm, INGREDIENTS, Builder(fm))
    stages, read, waits = [], [], threading.Event()

    def stage(title):
        stages.append(title)
        waits.set()

    waiter = threading.Thread(target=lambda: read.append(cache.get_or_build(fm, INGREDIENTS, Builder(fm), stage)))
    with locked_elsewhere(cache.store, KEY):
        waiter.start()
        assert waits.wait(60)
        time.sleep(0.2)
        assert stages == ["wait for the sub-FM that another run builds"]
    waiter.join(60)
    assert stages[1:] == ["sub-FM from cache"]
    assert read[0].cached


def ask(folder, log, seconds):
    """Ask for the sub-FM with a builder that logs its process; return what came."""
    fm = tiny_fm("bert")

    def build():
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return Builder(fm)()

    made = SubFMCache(folder, PLENTY).get_or_build(fm, INGREDIENTS, build)
    return os.getpid(), made.cached, model_digest(made.sub_fm)


def stall_when_renaming(folder, log):
    """Ask for the sub-FM and stop for good when all is written but nothing renamed."""

    def stall(path, target):
        log.write_text("renaming")
        time.sleep(600)

    Path.rename = stall
    ask(folder, log.with_suffix(".builder"), 0)


@pytest.fixture(scope="module")
def processes():
    """Return a way to start processes that have loaded torch once and share nothing with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedpft.construct.cache", "tests.tiny"])
    return context


def test_of_several_processes_one_builds_and_all_get_the_same_bits(processes, tmp_path):
    log = tmp_path / "log"
    with processes.Pool(4) as pool:
        found = pool.starmap(ask, 4 * [(tmp_path / "cache", log, 1.0)], chunksize=1)
    (builder,) = log.read_text().split()
    assert {pid: cached for pid, cached, _ in found} == {pid: pid != int(builder) for pid, _, _ in found}
    assert len({digest for *_, digest in found}) == 1
    assert content(SubFMCache(tmp_path / "cache", PLENTY)) == {KEY}


@pytest.mark.parametrize("moment", ["building", "renaming"])
def test_after_a_builder_was_killed_the_next_one_builds(processes, tmp_path, fm, moment):
    cache, log = SubFMCache(tmp_path / "cache", PLENTY), tmp_path / "log"
    target, arguments = (ask, (600,)) if moment == "building" else (stall_when_renaming, ())
    process = processes.Process(target=target, args=(cache.store.folder, log, *arguments), daemon=True)
    process.start()
    give_up = time.monotonic() + 60
    while not log.exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert log.exists(), "it got as far as that"
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert content(cache) == ({f".{KEY}"} if moment == "renaming" else set()), "no half entry"
    builder = Builder(fm)
    made = cache.get_or_build(fm, INGREDIENTS, builder)
    assert (made.cached, builder.calls) == (False, 1)
    assert content(cache) == {KEY}
    assert cache.get_or_build(fm, INGREDIENTS, builder).cached
