"""Texts, or pairs of them, in the tokens that a classifier or a regressor reads."""

import warnings
from collections.abc import Sequence

import datasets
from transformers import PreTrainedTokenizerBase

from fedpft.data.sources.columns import LABEL, TEXT, TEXT_PAIR
from fedpft.data.sources.on_disk import kept

TOKENISE_BATCH = 1000


def tokenise(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str = "training",
    keep: Sequence[str] = (),
) -> datasets.Dataset:
    """Return `input_ids` (, `token_type_ids`) of at most `max_length` tokens, unpadded; `label` and `keep` stay.

    A text of which the tokenizer leaves nothing gets one token, and a warning counts such texts: no model takes less.
    """
    lone = next(token for token in _lone_tokens(tokenizer) if token is not None)
    num_empty = 0

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        nonlocal num_empty
        encoded = dict(
            tokenizer(
                batch[TEXT],
                batch.get(TEXT_PAIR),
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
        )
        empty = [row for row, ids in enumerate(encoded["input_ids"]) if not ids]
        num_empty += len(empty)
        for row in empty:
            encoded["input_ids"][row] = [lone]
            if "token_type_ids" in encoded:
                encoded["token_type_ids"][row] = [0]
        return encoded

    tokenised = kept(
        dataset.map,
        encode,
        batched=True,
        batch_size=TOKENISE_BATCH,
        remove_columns=[name for name in dataset.column_names if name not in (LABEL, *keep)],
    )
    if num_empty:
        token = tokenizer.convert_ids_to_tokens(lone)
        warnings.warn(f"{num_empty} of {len(dataset)} {split} texts have no token: each gets {token}", stacklevel=2)
    return tokenised


def _lone_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int | None]:
    """Return what may stand for an empty text, the best first: what begins texts, ends them, or is unknown."""
    names = ("bos_token_id", "cls_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    return [getattr(tokenizer, name, None) for name in names]
