"""The table of public corpora, and any corpus as rows with a column `text` or `image`."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import datasets

from fedpft.config import PublicConfig
from fedpft.data.columns import IMAGE, LABEL, TEXT, normalise_labels, rename_inputs, require_text
from fedpft.data.digits import digits_corpus
from fedpft.data.images import as_images
from fedpft.data.sources import fail, find_row, is_local, load_hub, load_local

MIN_WORDS = 5


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
    loader: Callable[[], datasets.Dataset] | None = None


CORPORA: dict[str, CorpusRow] = {
    "wikitext": CorpusRow(path="Salesforce/wikitext", config_name="wikitext-103-raw-v1", text_column="text"),
    "wikipedia": CorpusRow(path="wikimedia/wikipedia", config_name="20231101.en", text_column="text"),
    "bookcorpus": CorpusRow(path="rojagtap/bookcorpus", text_column="text"),
    "imagenet-1k": CorpusRow(path="ILSVRC/imagenet-1k", image_column="image"),
    "python_reference": CorpusRow(text_column="text", loader=python_reference),
    "digits_public": CorpusRow(image_column="image", loader=digits_corpus),
}


def load_corpus(config: PublicConfig, seed: int) -> datasets.Dataset:
    """Read public data: rows with `text`, or with `image` (and `label` in 0..C-1 when the images have labels).

    Every row is returned, whatever `max_examples` says: text is counted in chunks, after chunking. `seed` is there for
    corpora that draw; none of the table does.

    Raises:
        ConfigError: unknown name, unreadable source, missing column, nulls, no rows.

    """
    row = CorpusRow() if config.name == "custom" else find_row(config.name, CORPORA, "public.name")
    path = config.path or row.path
    if row.loader is not None and config.path is None:
        corpus = row.loader()
    elif not path:
        fail("public.path", config.path, "a hub id, folder or file, because public.name is custom")
    elif is_local(path):
        corpus = load_local(path, "train", "public.path")
    else:
        corpus = load_hub(path, row.config_name if path == row.path else None, row.split, "public.path")
    if len(corpus) == 0:
        fail("public.path", "0 examples", "at least 1")
    kind, column = _column(config, row, corpus)
    if kind == TEXT:
        require_text(corpus, column, "public.text_column")
        return rename_inputs(corpus, [column], [TEXT]).select_columns([TEXT])
    corpus = rename_inputs(as_images(corpus, column, "public.image_column"), [column], [IMAGE])
    if LABEL not in corpus.column_names:
        return corpus.select_columns([IMAGE])
    (labelled,), _ = normalise_labels([corpus], LABEL, None, "public.path")
    return labelled.select_columns([IMAGE, LABEL])


def _column(config: PublicConfig, row: CorpusRow, corpus: datasets.Dataset) -> tuple[str, str]:
    """Return (`text` or `image`, the column that holds it): the config's, else the row's, else the one so named."""
    present = corpus.column_names
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
