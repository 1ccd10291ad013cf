import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fedpft.construct.cache import SubFMCache
from fedpft.construct.store import TENSORS_FILE, key_of
from fedpft.models.digest import model_digest
from tests.sub_fm_builder import INGREDIENTS, KEY, PLENTY, Builder, content, held_elsewhere
from tests.tiny import tiny_fm

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
    with held_elsewhere(tight.store, key_of({"fm": "tiny", "seed": 0})):
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


def test_who_waits_says_so_once_and_then_reads(cache, fm):
    cache.get_or_build(fm, INGREDIENTS, Builder(fm))
    stages, read, waits = [], [], threading.Event()

    def stage(title):
        stages.append(title)
        waits.set()

    waiter = threading.Thread(target=lambda: read.append(cache.get_or_build(fm, INGREDIENTS, Builder(fm), stage)))
    with held_elsewhere(cache.store, KEY):
        waiter.start()
        assert waits.wait(300)
        time.sleep(0.2)
        assert stages == ["wait for the sub-FM that another run builds"]
    waiter.join(300)
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
    context.set_forkserver_preload(["tests.sub_fm_builder", "tests.tiny"])
    return context


def test_of_several_processes_one_builds_and_all_get_the_same_bits(processes, tmp_path):
    log = tmp_path / "log"
    with processes.Pool(3) as pool:
        found = pool.starmap(ask, 3 * [(tmp_path / "cache", log, 1.0)], chunksize=1)
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
    give_up = time.monotonic() + 300
    while not log.exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert log.exists(), "it got as far as that"
    os.kill(process.pid, signal.SIGKILL)
    process.join(300)
    assert content(cache) == ({f".{KEY}"} if moment == "renaming" else set()), "no half entry"
    builder = Builder(fm)
    made = cache.get_or_build(fm, INGREDIENTS, builder)
    assert (made.cached, builder.calls) == (False, 1)
    assert content(cache) == {KEY}
    assert cache.get_or_build(fm, INGREDIENTS, builder).cached
