import json
import os
import shutil
import time

import pytest
from safetensors import SafetensorError

from fedpft.construct.cache import SubFMCache
from fedpft.construct.compress import compress
from fedpft.construct.store import ENTRY_FILE, TENSORS_FILE, key_of
from fedpft.models.digest import model_digest
from tests.sub_fm_builder import INGREDIENTS, KEY, PLENTY, Builder, content
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_fm

# --- an entry is what was built ---


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
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
    def full(tensors, file):
        file.touch()
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    builder = Builder(fm)
    monkeypatch.setattr("fedpft.construct.cache.save_file", full)
    with pytest.warns(UserWarning, match=r"does not take the sub-FM.*No space left"):
        made = cache.get_or_build(fm, INGREDIENTS, builder)
    assert (made.cached, builder.calls) == (False, 1)
    assert content(cache) == set()
