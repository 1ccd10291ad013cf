"""A public corpus in memory or in files, as one thing: texts in blocks of neighbours, in an order that the seed draws.

Text is counted in tokens: whoever cuts it into chunks takes blocks until there are enough. Images are drawn at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from fedpft.data.corpora.blocks import Block, ParquetRows, RowFiles
from fedpft.data.sources.columns import LABEL, TEXT
from fedpft.data.sources.errors import fail
from fedpft.data.sources.images import as_images

BLOCK_ROWS = 64
"""Rows of a corpus in memory that stay neighbours when only part of it is read: enough for continuous text, few enough
to mix."""
BYTES_PER_TOKEN = 5
"""Of text, about; only the size of blocks depends on it."""
MIN_IMAGE_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class StreamedText:
    """Texts in files that are read as far as they are drawn."""

    rows: RowFiles
    column: str
    key: str
    """Config key that errors name."""
    column_names = (TEXT,)

    def blocks(self, num_tokens: float, rng: np.random.Generator) -> Iterator[list[str]]:
        """Yield blocks of texts in a random order, until the corpus ends.

        Raises:
            ConfigError: a file that cannot be read, a null, or no strings.

        """
        for block in self.rows.blocks([self.column], num_tokens * BYTES_PER_TOKEN, rng):
            yield _texts(block, self.column, self.key)


@dataclass(frozen=True)
class Mixture:
    """Several corpora, in equal parts as long as they last."""

    parts: tuple["Corpus", ...]
    column_names = (TEXT,)

    def blocks(self, num_tokens: float, rng: np.random.Generator) -> Iterator[list[str]]:
        """Yield blocks of the part of which there have been the fewest characters so far."""
        streams = [text_blocks(part, num_tokens / len(self.parts), rng) for part in self.parts]
        num_characters = [0] * len(streams)
        while streams:
            least = num_characters.index(min(num_characters))
            if (texts := next(streams[least], None)) is None:
                del streams[least], num_characters[least]
                continue
            num_characters[least] += sum(map(len, texts))
            yield texts


Corpus: TypeAlias = datasets.Dataset | StreamedText | Mixture
"""In memory: rows with `text`."""


def text_blocks(corpus: Corpus, num_tokens: float, rng: np.random.Generator) -> Iterator[list[str]]:
    """Yield blocks of texts, in an order that `rng` draws, until the corpus ends or no more are taken.

    `num_tokens` is about what will be taken. Infinity: all, in the order of a corpus in memory.
    """
    if not isinstance(corpus, datasets.Dataset):
        yield from corpus.blocks(num_tokens, rng)
        return
    starts = np.arange(0, len(corpus), BLOCK_ROWS)
    for start in starts if num_tokens == np.inf else rng.permutation(starts):
        yield corpus[int(start) : int(start) + BLOCK_ROWS][TEXT]


def sample_texts(corpus: Corpus, num_tokens: int, rng: np.random.Generator) -> list[str]:
    """Return texts of about so many tokens, in blocks that `rng` draws; a corpus in memory whole, in its order."""
    if isinstance(corpus, datasets.Dataset):
        return corpus[TEXT][:]
    texts: list[str] = []
    num_characters = 0
    for block in text_blocks(corpus, num_tokens, rng):
        texts += block
        num_characters += sum(map(len, block))
        if num_characters >= num_tokens * BYTES_PER_TOKEN:
            break
    return texts


def draw_images(
    rows: ParquetRows, column: str, num_images: int, rng: np.random.Generator, key: str
) -> datasets.Dataset:
    """Read that many images, or all if there are fewer, with their `label` where there is one.

    Raises:
        ConfigError: a file that cannot be read, a null or an image that cannot be opened, named by file and row.

    """
    columns = [column, *({LABEL} & set(rows.column_names))]
    features = datasets.Features.from_arrow_schema(rows.schema)
    features = datasets.Features({name: features[name] for name in columns})
    tables: list[pa.Table] = []
    num_bytes = num_images * rows.row_bytes
    for block in rows.blocks(columns, num_bytes, rng, MIN_IMAGE_BLOCK_BYTES):
        missing = num_images - sum(table.num_rows for table in tables)
        if missing <= 0:
            break
        _require_no_nulls(block, column, key)
        table = block.rows.slice(0, missing)
        as_images(_dataset([table], features), column, key, block.origin)
        tables.append(table)
    return _dataset(tables, features)


def _dataset(tables: Sequence[pa.Table], features: datasets.Features) -> datasets.Dataset:
    table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    return datasets.Dataset(table.cast(features.arrow_schema))


def _texts(block: Block, column: str, key: str) -> list[str]:
    _require_no_nulls(block, column, key)
    values = block.rows.column(column)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        fail(key, f"column {column} of type {values.type} in {block.file}", "a column of strings")
    return values.to_pylist()


def _require_no_nulls(block: Block, column: str, key: str) -> None:
    values = block.rows.column(column)
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        fail(key, f"a null in {block.origin(row)} of column {column}", "no nulls")
