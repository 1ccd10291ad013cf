"""The table of public corpora, and any corpus as rows with a column `text` or `image`."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import datasets

from fedpft.config import ConfigError, PublicConfig
from fedpft.data.corpora.blocks import ParquetRows, open_rows
from fedpft.data.corpora.corpus import Corpus, Mixture, StreamedText, draw_images
from fedpft.data.embedded.digits import digits_corpus
from fedpft.data.sources.columns import IMAGE, LABEL, TEXT, rename_inputs, require_text
from fedpft.data.sources.errors import fail, find_row
from fedpft.data.sources.files import FORMATS, IMAGE_FOLDER, SAVED, Files, find_hub, find_local, is_local
from fedpft.data.sources.images import Look, as_images, look_at_headers
from fedpft.data.sources.labels import label_codes
from fedpft.data.sources.memory import GivenData, is_in_memory, not_given
from fedpft.data.sources.rows import load_hub, read_images, read_whole
from fedpft.seeding import numpy_rng

MIN_WORDS = 5
MAX_WHOLE_BYTES = 512 << 20
"""Files of more bytes than that are never read whole."""


def python_reference() -> datasets.Dataset:
    """Return the reference that comes with Python (`pydoc_data.topics`), one paragraph a row, without markup."""
    from pydoc_data.topics import topics

    paragraphs = [text for name in sorted(topics) for text in _paragraphs(topics[name])]
    return datasets.Dataset.from_dict({TEXT: list(dict.fromkeys(paragraphs))})


def _paragraphs(topic: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", topic):
        if "::=" in block or ">>>" in block:  # grammar and sessions: not English
            continue
        text = re.sub(r"^\s*[*=\-~^+|]{3,}\s*$", "", block, flags=re.MULTILINE)  # underlines and table rules
        text = re.sub(r"\[\d+\]_?|``?|(?<!\w)\*{1,2}(?=\w)|(?<=\w)\*{1,2}(?!\w)", "", text)  # footnotes, code, emphasis
        text = re.sub(r":{2}(?=\s|$)", ":", text).strip()
        words = re.sub(r"^\s*(\*|\d+\.)\s+", "", text).split()
        if len(words) >= MIN_WORDS:
            yield " ".join(words)


@dataclass(frozen=True, kw_only=True)
class CorpusRow:
    """What must be known of a corpus to read it: a hub data set, or a `loader` for rows that come with Python."""

    path: str = ""
    config_name: str | None = None
    text_column: str | None = None
    image_column: str | None = None
    split: str = "train"
    gated: bool = False
    """Whether the hub asks who downloads it."""
    loader: Callable[[], datasets.Dataset] | None = None


CORPORA: dict[str, CorpusRow] = {
    "wikitext": CorpusRow(path="Salesforce/wikitext", config_name="wikitext-103-raw-v1", text_column="text"),
    "wikipedia": CorpusRow(path="wikimedia/wikipedia", config_name="20231101.en", text_column="text"),
    "bookcorpus": CorpusRow(path="rojagtap/bookcorpus", text_column="text"),
    "fineweb": CorpusRow(path="HuggingFaceFW/fineweb", config_name="sample-10BT", text_column="text"),
    "c4": CorpusRow(path="allenai/c4", config_name="en", text_column="text"),
    "imagenet-1k": CorpusRow(path="ILSVRC/imagenet-1k", image_column="image", gated=True),
    "python_reference": CorpusRow(text_column="text", loader=python_reference),
    "digits_public": CorpusRow(image_column="image", loader=digits_corpus),
}
"""Hub data sets in files that `datasets` reads without running their code."""

GATED_HINT = " (the terms of this one must be accepted on its hub page, then: hf auth login, or HF_TOKEN)"


def load_corpus(
    config: PublicConfig, seed: int, look: Look = look_at_headers, given: GivenData | None = None
) -> Corpus:
    """Open public data: texts, or rows with `image` (and `label` in 0..C-1 when the images have labels).

    What takes at most `MAX_WHOLE_BYTES` on disk is read whole and returned with every row, whatever `max_examples`
    says: text is counted in chunks, after chunking. Of more than that, text is read when blocks are taken, and
    `max_examples` images are drawn here, by `seed`. `look` says how closely images in files are looked at.
    With `path: memory://...` the rows are those `given`.

    Raises:
        ConfigError: unknown name, unreadable source, missing column, nulls, no rows; no `max_examples` although the
            corpus is too large to be read whole.

    """
    if is_in_memory(config.path):
        if given is None or given.public is None:
            not_given(config.path, "public.path")
        return _whole(given.public, config, CorpusRow(), look)
    parts = [_load_one(part, seed, look) for part in _parts(config)]
    if len(parts) == 1:
        return parts[0]
    if any(TEXT not in part.column_names for part in parts):
        fail("public.name", config.name, "a mixture of texts")
    return Mixture(tuple(parts))


def _parts(config: PublicConfig) -> list[PublicConfig]:
    """Take `a+b` apart; only then is a path with `+` two paths."""
    names = config.name.split("+")
    paths = config.path.split("+") if config.path and len(names) > 1 else [config.path] * len(names)
    return [replace(config, name=name, path=path) for name, path in zip(names, paths, strict=True)]


def _load_one(config: PublicConfig, seed: int, look: Look) -> datasets.Dataset | StreamedText:
    row = CorpusRow() if config.name == "custom" else find_row(config.name, CORPORA, "public.name")
    source = _open(config, row)
    if isinstance(source, datasets.Dataset):
        return _whole(source, config, row, look if row.loader is None or config.path else look_at_headers)
    rng = numpy_rng(seed, "public")
    if config.max_examples is None:
        size, limit = (f"{size / 1e9:.1f} GB" for size in (source.num_bytes, MAX_WHOLE_BYTES))
        fail("public.max_examples", None, f"a number, as {config.path or row.path} has {size}, more than {limit}")
    if source.builder == IMAGE_FOLDER:
        chosen = rng.permutation(len(source.paths))[: config.max_examples]
        return _whole(read_images([source.paths[index] for index in chosen], source), config, row, look)
    rows = open_rows(source, "public.path")
    kind, column = _column(config, row, rows.column_names)
    if column not in rows.column_names:
        fail(f"public.{kind}_column", column, f"a column of the data: {', '.join(rows.column_names)}")
    if kind == TEXT:
        return StreamedText(rows, column, "public.text_column")
    if not isinstance(rows, ParquetRows):
        fail("public.path", f"images in {source.builder} files", "parquet files or an image folder")
    return _whole(draw_images(rows, column, config.max_examples, rng, "public.image_column"), config, row, look)


def _open(config: PublicConfig, row: CorpusRow) -> datasets.Dataset | Files:
    """Return the rows, if they can be read whole, else the files that hold them."""
    path, key = config.path or row.path, "public.path"
    if row.loader is not None and config.path is None:
        return row.loader()
    if not path:
        fail(key, config.path, "a hub id, folder or file, because public.name is custom")
    if is_local(path):
        files = find_local(path, "train", key, any_name=True)
        is_small = files.num_bytes <= MAX_WHOLE_BYTES
        return read_whole(files, key, in_memory=is_small) if is_small or files.builder == SAVED else files
    config_name = row.config_name if path == row.path else None
    source = (path, config_name, row.split, key, GATED_HINT if row.gated else "")
    found = find_hub(*source)
    if found is None or found.num_bytes <= MAX_WHOLE_BYTES:  # of unknown size: what is in the cache of `datasets` alone
        return load_hub(*source, keep_in_memory=found is not None)
    if found.builder is None:
        fail(
            key, f"{path}, {found.num_bytes / 1e9:.1f} GB in files like {found.paths[0]}", f"files of one of {FORMATS}"
        )
    return found


def _whole(corpus: datasets.Dataset, config: PublicConfig, row: CorpusRow, look: Look) -> datasets.Dataset:
    """Check rows in memory and give their columns the usual names."""
    if len(corpus) == 0:
        fail("public.path", "0 examples", "at least 1")
    kind, column = _column(config, row, corpus.column_names)
    if kind == TEXT:
        require_text(corpus, column, "public.text_column")
        return rename_inputs(corpus, {TEXT: column}).select_columns([TEXT])
    images = rename_inputs(as_images(corpus, column, "public.image_column", look=look), {IMAGE: column}).select_columns(
        [IMAGE]
    )
    if LABEL not in corpus.column_names or column == LABEL:
        return images
    try:
        (labels,), _ = label_codes([corpus], LABEL, None, "public.path")
    except ConfigError as error:  # only pre-training would read them
        warnings.warn(f"{error}; the public images go without labels", stacklevel=2)
        return images
    return images.add_column(LABEL, labels)


def _column(config: PublicConfig, row: CorpusRow, present: Sequence[str]) -> tuple[str, str]:
    """Return (`text` or `image`, the column that holds it): the config's, else the row's, else the one so named."""
    if config.text_column or config.image_column:
        found = {TEXT: config.text_column, IMAGE: config.image_column}
    elif config.name == "custom":
        found = {kind: kind for kind in (TEXT, IMAGE) if kind in present}
    else:
        found = {TEXT: row.text_column, IMAGE: row.image_column}
    chosen = [(kind, column) for kind, column in found.items() if column is not None]
    if len(chosen) != 1:
        names = [column for _, column in chosen]
        fail("public.text_column / public.image_column", names, f"exactly one of {', '.join(present)}")
    return chosen[0]
