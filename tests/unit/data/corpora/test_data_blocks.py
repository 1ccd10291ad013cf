"""Blocks drawn from files: all rows once, the same for the same seed, and no more read than is taken."""

import json
from itertools import chain, islice
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedpft.config import ConfigError
from fedpft.data.corpora import blocks
from fedpft.data.corpora.blocks import BUFFERED_BLOCKS, SEQUENTIAL_BLOCK_ROWS, ParquetRows, SequentialRows
from fedpft.data.sources.files import find_local

KEY = "public.path"
ROW_BYTES = 100


def texts(start: int, count: int) -> list[str]:
    return [f"{row} ".ljust(ROW_BYTES, "x") for row in range(start, start + count)]


def number(text: str) -> int:
    return int(text.split()[0])


def write_shards(folder, shard_rows=(230, 70, 400), row_group_size=50) -> list[str]:
    paths, start = [], 0
    for shard, count in enumerate(shard_rows):
        paths.append(str(folder / f"train-{shard:05d}-of-{len(shard_rows):05d}.parquet"))
        table = pa.table({"text": texts(start, count), "other": range(count)})
        pq.write_table(table, paths[-1], row_group_size=row_group_size, use_dictionary=False)
        start += count
    return paths


def drawn(rows, num_bytes=2000.0, seed=0, **arguments):
    """Return the row numbers of all blocks."""
    found = rows.blocks(["text"], num_bytes, np.random.default_rng(seed), **arguments)
    return [[number(text) for text in block.rows["text"].to_pylist()] for block in found]


@pytest.mark.parametrize("min_block_bytes", [1, 900, 10**9])
@pytest.mark.parametrize("row_group_size", [7, 50, 1000])
def test_every_row_of_parquet_shards_is_drawn_once_beside_its_neighbours(tmp_path, row_group_size, min_block_bytes):
    found = drawn(
        ParquetRows(write_shards(tmp_path, row_group_size=row_group_size), KEY), 10, 0, min_block_bytes=min_block_bytes
    )
    assert sorted(chain.from_iterable(found)) == list(range(700))
    assert all(block == list(range(block[0], block[0] + len(block))) for block in found)
    assert found != sorted(found)


def test_large_row_groups_are_decoded_piece_by_piece_into_the_same_blocks(tmp_path, monkeypatch):
    rows = ParquetRows(write_shards(tmp_path, row_group_size=1000), KEY)
    whole = drawn(rows, min_block_bytes=500)
    monkeypatch.setattr(blocks, "BYTES_DECODED", 1200)
    assert drawn(rows, min_block_bytes=500) == whole


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path, monkeypatch):
    paths = write_shards(tmp_path)
    first = drawn(ParquetRows(paths, KEY), min_block_bytes=500)
    memory = fsspec.filesystem("memory")
    for path in paths:
        memory.pipe(path, Path(path).read_bytes())
    assert drawn(ParquetRows([f"memory://{path}" for path in paths], KEY), min_block_bytes=500) == first
    monkeypatch.setattr(blocks, "BYTES_READ_AHEAD", 3000)
    assert drawn(ParquetRows(paths, KEY), min_block_bytes=500) == first
    assert drawn(ParquetRows(paths, KEY), seed=1, min_block_bytes=500) != first


def test_blocks_know_their_file_and_row(tmp_path):
    paths = write_shards(tmp_path)
    firsts = dict(zip(paths, (0, 230, 300), strict=True))
    for block in ParquetRows(paths, KEY).blocks(["text"], 10, np.random.default_rng(0), 700):
        assert number(block.rows["text"][0].as_py()) == firsts[block.file] + block.first_row
        assert block.origin(2) == f"{block.file}, row {block.first_row + 2}"


@pytest.fixture
def decoded(monkeypatch):
    """Collect (file, row group, rows decoded) of all that is read from parquet files."""
    log = []

    class Counting(pq.ParquetFile):
        def __init__(self, source, **arguments):
            super().__init__(source, **arguments)
            self.source_name = source

        def iter_batches(self, batch_size, row_groups, columns):
            for batch in super().iter_batches(batch_size, row_groups, columns):
                log.append((self.source_name, *row_groups, batch.num_rows))
                yield batch

    monkeypatch.setattr(blocks.pq, "ParquetFile", Counting)
    return log


@pytest.mark.parametrize("num_shards", [4, 12])
def test_what_a_draw_reads_does_not_grow_with_the_corpus(tmp_path, decoded, num_shards):
    rows = ParquetRows(write_shards(tmp_path, [500] * num_shards), KEY)
    assert decoded == []
    found = list(islice(rows.blocks(["text"], 20 * 1000, np.random.default_rng(0), 1000), 20))
    assert 100 < sum(block.rows.num_rows for block in found) <= 200
    assert len({(file, group) for file, group, _ in decoded}) <= 21
    assert len({file for file, *_ in decoded}) >= min(num_shards, 8), "from all over the corpus"


def test_a_large_draw_takes_its_rows_from_a_bounded_number_of_places(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(blocks, "NUM_PLACES", 8)
    rows = ParquetRows(write_shards(tmp_path, [500] * 6, row_group_size=100), KEY)
    assert len(drawn(rows, 8 * 10 * rows.row_bytes, min_block_bytes=1)[0]) == 10
    decoded.clear()
    list(islice(rows.blocks(["text"], 8 * 10 * rows.row_bytes, np.random.default_rng(0), 1), 8))
    assert len(decoded) <= 9


def test_rows_after_the_last_wanted_one_are_not_decoded(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(blocks, "BYTES_DECODED", 10 * ROW_BYTES)
    rows = ParquetRows(write_shards(tmp_path, [2000], row_group_size=2000), KEY)
    block = next(rows.blocks(["text"], 1, np.random.default_rng(3), 500))
    assert sum(count for *_, count in decoded) <= block.first_row + 20 < 1500


def test_of_large_row_groups_the_heads_are_drawn_first(tmp_path, monkeypatch):
    rows = ParquetRows(write_shards(tmp_path, [1000, 1000], row_group_size=1000), KEY)
    monkeypatch.setattr(blocks, "HEAD_BYTES", 200 * rows.row_bytes)
    found = drawn(rows, min_block_bytes=20 * rows.row_bytes)
    assert sorted(chain.from_iterable(found)) == list(range(2000))
    assert {block[0] % 1000 for block in found[:20]} == set(range(0, 200, 20))
    assert {block[0] // 1000 for block in found[:20]} == {0, 1}


def refusal(action):
    with pytest.raises(ConfigError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_shard_that_is_no_parquet_is_named(tmp_path):
    paths = write_shards(tmp_path)
    (tmp_path / "train-00001-of-00003.parquet").write_bytes(b"not parquet")
    message = refusal(lambda: ParquetRows(paths, KEY))
    assert message.startswith(f"public.path: found '{paths[1]} (")
    assert message.endswith("allowed: readable parquet files")


def test_a_shard_whose_pages_are_damaged_is_named_when_it_is_met(tmp_path):
    paths = write_shards(tmp_path)
    damaged = bytearray(Path(paths[2]).read_bytes())
    end = pq.read_metadata(paths[2]).row_group(0).column(0).total_compressed_size
    damaged[4:end] = bytes(end - 4)
    Path(paths[2]).write_bytes(damaged)
    rows = ParquetRows(paths, KEY)
    assert f"{paths[2]} (" in refusal(lambda: drawn(rows))


def test_a_shard_without_the_columns_is_named(tmp_path):
    paths = write_shards(tmp_path)
    pq.write_table(pa.table({"body": ["a"], "other": [1]}), paths[1])
    expected = f"public.path: found 'no column text in {paths[1]}', allowed: the columns of {paths[0]}"
    assert refusal(lambda: ParquetRows(paths, KEY)) == expected


def write_jsonl(folder, shard_rows=(200, 150)):
    start = 0
    for shard, count in enumerate(shard_rows):
        lines = [json.dumps({"text": text, "n": 1}) for text in texts(start, count)]
        (folder / f"train-{shard}.jsonl").write_text("\n".join(lines) + "\n")
        start += count
    return find_local(str(folder), "train", KEY)


def test_every_row_of_json_lines_is_drawn_once_in_an_order_of_the_seed(tmp_path):
    files = write_jsonl(tmp_path)
    first, again, other = (drawn(SequentialRows(files, KEY), seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(chain.from_iterable(first)) == list(range(350))
    assert all(block == list(range(block[0], block[0] + len(block))) for block in first)


def test_of_a_stream_no_more_is_read_than_is_taken_and_the_buffer(tmp_path, monkeypatch):
    taken = []

    def endless(path, builder, key, size):
        for start in range(0, 10**9, size):
            taken.append(start)
            yield pa.table({"text": texts(start, size)})

    files = write_jsonl(tmp_path)
    monkeypatch.setattr(blocks, "file_tables", endless)
    rows = SequentialRows(files, KEY)
    taken.clear()
    found = list(islice(rows.blocks(["text"], 1, np.random.default_rng(0)), 30))
    assert len(taken) == BUFFERED_BLOCKS + 30
    assert len({block.first_row for block in found}) == 30
    assert max(block.first_row for block in found) > 100 * SEQUENTIAL_BLOCK_ROWS, "mixed"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "a"}\n{"text": ', "train-1.jsonl ("),
        ('{"body": "a"}\n', "no column text in "),
    ],
)
def test_a_bad_file_of_a_stream_is_named_when_it_is_met(tmp_path, content, expected):
    files = write_jsonl(tmp_path)
    (tmp_path / "train-1.jsonl").write_text(content)
    message = refusal(lambda: drawn(SequentialRows(files, KEY)))
    assert expected in message
    assert str(tmp_path / "train-1.jsonl") in message
