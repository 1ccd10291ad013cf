import json
import os
from pathlib import Path

import pytest

from fedpft.config import ConfigError
from fedpft.construct.store import ENTRY_FILE, TENSORS_FILE, Store, cache_dir, clear_cache, key_of
from fedpft.data.sources.in_use import DATA_FOLDER
from tests.sub_fm_builder import held_elsewhere

KEYS = [digit * 32 for digit in "0123"]


@pytest.fixture
def store(tmp_path):
    """Return a store of three entries of 100, 200 and 300 bytes, used in this order."""
    store = Store(tmp_path / "cache")
    for number, key in enumerate(KEYS[:3], start=1):
        folder = store.entry_folder(key)
        folder.mkdir(parents=True)
        text = json.dumps({"number": number})
        (folder / ENTRY_FILE).write_text(text)
        (folder / TENSORS_FILE).write_bytes(bytes(100 * number - len(text)))
        os.utime(folder, (1000 * number, 1000 * number))
    return store


def keys(store):
    return [entry.key for entry in store.entries()]


def test_entries_come_last_used_first_with_their_content(store):
    found = [(entry.key, entry.num_bytes, entry.last_used, entry.content["number"]) for entry in store.entries()]
    assert found == [(KEYS[2], 300, 3000.0, 3), (KEYS[1], 200, 2000.0, 2), (KEYS[0], 100, 1000.0, 1)]
    store.touch(KEYS[0])
    assert keys(store)[0] == KEYS[0]


def test_a_folder_that_does_not_exist_has_no_entries_and_stays_so(tmp_path):
    store = Store(tmp_path / "none")
    assert store.entries() == []
    assert store.clear().num_entries == 0
    assert not store.folder.exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"'])
def test_damaged_and_unfinished_entries_are_listed_without_content(store, text):
    (store.entry_folder(KEYS[0]) / ENTRY_FILE).write_text(text)
    store.unfinished_folder(KEYS[3]).mkdir()
    (store.unfinished_folder(KEYS[3]) / TENSORS_FILE).write_bytes(bytes(50))
    found = {entry.key: entry for entry in store.entries()}
    assert found.keys() == set(KEYS)
    assert found[KEYS[0]].content == found[KEYS[3]].content == {}
    assert found[KEYS[3]].num_bytes == 50


def test_clear_removes_all_or_those_with_a_prefix(store):
    cleared = store.clear(["1", "00"])
    assert (cleared.num_entries, cleared.num_bytes, cleared.num_in_use) == (2, 300, 0)
    assert keys(store) == [KEYS[2]]
    store.unfinished_folder(KEYS[3]).mkdir()
    assert store.clear().num_entries == 2
    assert keys(store) == []


def test_a_prefix_of_nothing_is_one_line_and_nothing_is_removed(store):
    with pytest.raises(ConfigError, match=r"KEY_PREFIX: found '9', allowed: the start of a key in ") as error:
        store.clear(["1", "9"])
    assert "\n" not in str(error.value)
    assert len(keys(store)) == 3


def test_clear_leaves_what_is_in_use(store):
    with held_elsewhere(store, KEYS[1]):
        cleared = store.clear()
    assert (cleared.num_entries, cleared.num_bytes, cleared.num_in_use) == (2, 400, 1)
    assert keys(store) == [KEYS[1]]
    assert store.clear().num_entries == 1


def test_clear_touches_nothing_of_others(store):
    others = [store.folder / name for name in ("models", "0" * 31, "A" * 32, ".cache", "0" * 32 + ".tmp")]
    for path in others:
        path.mkdir()
    store.clear()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize(
    ("max_bytes", "left"), [(600, [2, 1, 0]), (599, [2, 1]), (500, [2, 1]), (499, [2]), (300, [2]), (0, [2])]
)
def test_eviction_takes_the_least_recently_used_until_the_rest_fits(store, max_bytes, left):
    store.evict(max_bytes, keep=KEYS[2])
    assert keys(store) == [KEYS[number] for number in left]


def test_eviction_passes_over_the_new_one_and_those_in_use(store):
    with held_elsewhere(store, KEYS[1]):
        store.evict(0, keep=KEYS[0])
    assert keys(store) == [KEYS[1], KEYS[0]]


def test_the_folder_is_the_configured_one_else_the_environments_else_in_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("FEDPFT_CACHE", "/somewhere")
    assert cache_dir("~/mine") == Path("/home/someone/mine")
    assert cache_dir(None) == Path("/somewhere")
    monkeypatch.delenv("FEDPFT_CACHE")
    assert cache_dir(None) == Path("/home/someone/.cache/fedpft")


def test_keys_follow_values_not_order():
    assert key_of({"a": 1, "b": {"c": (1, 2), "d": None}}) == key_of({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert len({key_of({"a": value}) for value in (1, 1.5, "1", None, True, [1], {"b": 1})}) == 7
    assert len(key_of({})) == 32


def with_data(store):
    """Put an entry of prepared data, and notes, beside a store's sub-FMs; return the store of the data."""
    data = Store(store.folder / DATA_FOLDER)
    data.entry_folder(KEYS[3]).mkdir(parents=True)
    (data.entry_folder(KEYS[3]) / "train.arrow").write_bytes(bytes(70))
    (data.unfinished_folder(KEYS[3]) / "work").mkdir(parents=True)
    (data.unfinished_folder(KEYS[3]) / "work" / "half.arrow").write_bytes(bytes(7))
    for notes in (store.folder / "images", data.folder / "digests"):
        notes.mkdir()
        (notes / "note").touch()
    return data


def test_prepared_data_are_entries_too_and_go_with_all_or_by_their_keys(store):
    data = with_data(store)
    assert [(entry.key, entry.num_bytes) for entry in data.entries()] == [(KEYS[3], 77)]
    assert keys(store) == KEYS[2::-1]
    of_sub_fms, of_data = clear_cache(store.folder, ["3"])
    assert (of_sub_fms.num_entries, of_data.num_entries, of_data.num_bytes) == (0, 1, 77)
    assert (keys(store), keys(data)) == (KEYS[2::-1], [])
    assert (store.folder / "images" / "note").exists()


def test_clearing_all_takes_the_notes_too(store):
    data = with_data(store)
    of_sub_fms, of_data = clear_cache(store.folder)
    assert (of_sub_fms.num_entries, of_data.num_entries) == (3, 1)
    assert [path.name for path in store.folder.iterdir() if path.is_dir()] == [DATA_FOLDER]
    assert [path.name for path in data.folder.iterdir() if path.is_dir()] == []


def test_a_prefix_of_neither_is_refused_before_anything_goes(store):
    data = with_data(store)
    with pytest.raises(ConfigError, match=r"KEY_PREFIX: found '9', allowed: the start of a key in "):
        clear_cache(store.folder, ["3", "9"])
    assert keys(data) == [KEYS[3]]


def test_prepared_data_that_are_being_made_are_left(store):
    data = with_data(store)
    with held_elsewhere(data, KEYS[3]):
        assert clear_cache(store.folder)[1].num_in_use == 1
    assert keys(data) == [KEYS[3]]
