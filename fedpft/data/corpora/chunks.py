"""A corpus of texts -> chunks of equal length, as single texts or in the form of a task on pairs of texts."""

from dataclasses import dataclass

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from fedpft.data.corpora.corpus import Corpus, text_blocks
from fedpft.data.sources.errors import fail


def chunk_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    chunk_length: int,
    max_chunks: int | None,
    rng: np.random.Generator,
    *,
    pairs: bool = False,
) -> datasets.Dataset:
    """Concatenate the texts, cut them into chunks and drop the short tail.

    Args:
        corpus: the texts.
        tokenizer: the FM's.
        chunk_length: tokens of a chunk, special tokens included.
        max_chunks: with a number, blocks of rows are read in random order until there are enough: neither time nor
            memory grows with the corpus.
        rng: draws the blocks, the chunks and where a pair is cut.
        pairs: make two texts of every chunk, as the tokenizer puts a pair: with its separators and token types. The cut
            is drawn uniformly, since nobody tells the server how long the clients' texts are.

    Returns:
        `input_ids` (, `token_type_ids`): `chunk_length` int32 tokens each.

    Raises:
        ConfigError: not even one chunk, or no room for two texts.

    """
    frame = _frame(tokenizer, pairs=pairs)
    length = chunk_length - frame.num_tokens
    if length < 1 + pairs:
        fail("public.chunk_length", chunk_length, f"at least {frame.num_tokens + 1 + pairs}: room for special tokens")
    wanted = np.inf if max_chunks is None else max_chunks * length
    pieces: list[np.ndarray] = []
    total = 0
    for texts in text_blocks(corpus, wanted, rng):
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        pieces += [np.asarray(ids, dtype=np.int32) for ids in encoded]
        total += sum(map(len, encoded))
        if total >= wanted:
            break
    num_chunks = total // length
    if num_chunks == 0:
        fail("public.chunk_length", chunk_length, f"at most the corpus's {total + frame.num_tokens} tokens")
    bodies = np.concatenate(pieces)[: num_chunks * length].reshape(num_chunks, length)
    if max_chunks is not None:
        bodies = bodies[rng.permutation(num_chunks)[:max_chunks]]
    if not pairs:
        return datasets.Dataset.from_dict({"input_ids": frame.around(bodies)})
    cuts = rng.integers(1, length, size=len(bodies))
    rows = [frame.around(body[:cut], body[cut:]) for body, cut in zip(bodies, cuts, strict=True)]
    columns = {"input_ids": np.stack(rows)}
    if frame.types is not None:
        columns["token_type_ids"] = np.stack([frame.types_around(cut, length - cut) for cut in cuts])
    return datasets.Dataset.from_dict(columns)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after one text."""
    frame = _frame(tokenizer, pairs=False)
    return frame.parts[0].tolist(), frame.parts[1].tolist()


@dataclass(frozen=True)
class _Frame:
    """What a tokenizer puts around its texts."""

    parts: tuple[np.ndarray, ...]
    """Special tokens before the first text, (between the two,) after the last: int32 each."""
    types: tuple[np.ndarray, ...] | None
    """The token types of part, text, part (, text, part), one number for a text; None: the tokenizer has none."""

    @property
    def num_tokens(self) -> int:
        """All special tokens."""
        return sum(map(len, self.parts))

    def around(self, *texts: np.ndarray) -> np.ndarray:
        """Return the texts, (tokens,) or (rows, tokens), with the special tokens around them."""
        rows = texts[0].shape[:-1]
        parts = [np.broadcast_to(part, (*rows, len(part))) for part in self.parts]
        pieces = [piece for part, text in zip(parts, texts, strict=False) for piece in (part, text)]
        return np.concatenate([*pieces, parts[-1]], axis=-1)

    def types_around(self, *lengths: int) -> np.ndarray:
        """Return the token types of texts of these lengths with the special tokens around them."""
        assert self.types is not None
        pieces = list(self.types)
        for index, length in enumerate(lengths):
            pieces[2 * index + 1] = np.repeat(self.types[2 * index + 1], length)
        return np.concatenate(pieces)


def _frame(tokenizer: PreTrainedTokenizerBase, *, pairs: bool) -> _Frame:
    texts = ("a", "a") if pairs else ("a",)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer(*texts)
    ids, types = full["input_ids"], full.get("token_type_ids") if pairs else None
    parts, part_types, start = [], [], 0
    for _ in texts:
        end = next((i for i in range(start, len(ids) + 1) if ids[i : i + len(plain)] == plain), None)
        if end is None:
            fail("public.format", "a tokenizer that changes a text when a second one follows", "text")
        parts.append(ids[start:end])
        if types is not None:
            part_types += [types[start:end], types[end : end + 1]]
        start = end + len(plain)
    parts.append(ids[start:])
    arrays = tuple(np.asarray(part, dtype=np.int32) for part in parts)
    if types is None:
        return _Frame(arrays, None)
    return _Frame(arrays, tuple(np.asarray(part, dtype=np.int32) for part in (*part_types, types[start:])))
