"""Mapped files of rows: no page that was read stays with the process, and the rows stay what they are."""

import gc
import mmap
import pickle
import re
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from fedpft.data.sources import mapped
from fedpft.data.sources.mapped import let_go, mapped_table, remapped
from fedpft.data.sources.on_disk import held, kept, rows_on_disk
from fedpft.data.sources.rows import load_hub, load_local

SMAPS = Path("/proc/self/smaps")
linux = pytest.mark.skipif(not SMAPS.exists(), reason="another system: it does not say which pages a process holds")


def pages_of(folder: Path) -> int:
    """Return how many kB of a folder's files this process holds in memory."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.M)
    return sum(int(re.search(r"^Rss: +(\d+)", part, re.M)[1]) for part in parts if f" {folder}/" in part)


def read(table: pa.Table) -> int:
    """Touch every byte."""
    return sum(hash(batch.serialize().to_pybytes()) for batch in table.combine_chunks().to_batches())


@pytest.fixture
def file(tmp_path):
    """Return a file of 4 MB in 8 batches."""
    rng, file = np.random.default_rng(0), tmp_path / "rows" / "rows.arrow"
    file.parent.mkdir()
    table = pa.table({"number": rng.integers(0, 1 << 60, 500_000)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=62_500)
    return file


@linux
def test_pages_that_were_read_are_let_go_of_and_the_rows_are_still_there(file):
    theirs = datasets.Dataset.from_file(str(file))
    expected = read(theirs.data.table)
    assert pages_of(file.parent) >= 3900, "what is mapped otherwise stays"
    ours = remapped(theirs)
    table = mapped_table(file)
    gc.collect()
    assert read(ours.data.table) == read(table) == expected
    let_go()
    assert pages_of(file.parent) == 0
    assert read(ours.data.table) == read(table) == expected


@linux
def test_nobody_has_to_ask_for_it(file):
    table = mapped_table(file)
    read(table)
    end = time.monotonic() + 60
    while pages_of(file.parent) and time.monotonic() < end:
        time.sleep(0.01)
    assert pages_of(file.parent) == 0
    assert any(thread.name == "let-go-of-pages" for thread in threading.enumerate())


def make_kept(folder):
    rows = datasets.Dataset.from_dict({"text": ["word " * 200] * 4000})
    return kept(rows.map, lambda batch: {"text": [text + "!" for text in batch["text"]]}, batched=True)


def make_held(folder):
    (table,) = held(pa.table({"text": ["word " * 200] * 1000}) for _ in range(4))
    return datasets.Dataset(table)


def make_saved(folder):
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["word " * 200] * 4000})).save_to_disk(folder)
    return load_local(str(folder), "train", "task.path")


def make_hub(folder):
    """A folder is to the library what a repository is."""
    (folder / "set").mkdir()
    datasets.Dataset.from_dict({"text": ["word " * 200] * 4000}).to_parquet(folder / "set" / "train.parquet")
    return load_hub(str(folder / "set"), None, "train", "task.path")


@linux
@pytest.mark.parametrize("make", [make_kept, make_held, make_saved, make_hub])
def test_all_that_is_kept_on_disk_is_let_go_of(make, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    with rows_on_disk(tmp_path):
        dataset = make(tmp_path)
        assert sum(map(len, dataset["text"][:])) >= 4_000_000
        let_go()
        assert pages_of(tmp_path) == 0


def test_data_sets_of_several_files_stay_what_they_are(file, tmp_path):
    first = datasets.Dataset.from_file(str(file)).rename_column("number", "n").select(range(3, 400_000))
    both = datasets.concatenate_datasets([first, datasets.Dataset.from_dict({"n": [1, 2]})])
    expected, names = both[:], [*map(str, both.cache_files)]
    ours = remapped(both)
    assert ours[:] == expected
    assert pickle.loads(pickle.dumps(ours))[:] == expected
    assert [*map(str, ours.cache_files)] == names


def test_a_system_that_cannot_be_told_maps_all_the_same(file, monkeypatch):
    monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    before = len(mapped._maps)
    assert mapped_table(file).num_rows == 500_000
    assert len(mapped._maps) == before
