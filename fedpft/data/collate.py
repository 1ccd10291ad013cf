"""Rows -> the tensors that transformers' models take, for text and images behind one signature.

Legend: `B` batch, `T` tokens of the longest row.
"""

import io
import json
from collections.abc import Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL.Image import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from fedpft.attention_mask import KnownMask
from fedpft.config import ConfigError
from fedpft.data.sources.columns import IMAGE, LABEL, PIXELS, PROMPT_LENGTH
from fedpft.metrics.tokens import IGNORED

KEPT_IMAGE_BYTES = 256 * 2**20
"""Of the tensors of images, in each process."""

MODEL_INPUTS = ("input_ids", "token_type_ids", LABEL)


class Collator(Protocol):
    """Picklable: it travels to the actors beside the rows."""

    def settings(self) -> dict[str, Any]:
        """Return all that a batch depends on besides its rows, as JSON."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch that a transformers model accepts as keyword arguments, `labels` only if rows have `label`."""


class TextCollator:
    """Tokenised rows -> `input_ids`, `attention_mask` (, `token_type_ids`): (B, T) int64; `labels`: (B,) int64.

    Padding is on the right, whatever the tokenizer does by itself: positions count from the beginning of a text, so
    that with padding on the left its logits would depend on the texts beside it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """`tokenizer` must have a padding token."""
        assert tokenizer.pad_token is not None
        self._tokenizer = tokenizer

    def settings(self) -> dict[str, Any]:
        """How it pads."""
        names = ("pad_token_id", "pad_token_type_id", "model_input_names")
        return {"padding_side": "right"} | {name: getattr(self._tokenizer, name) for name in names}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad to the longest row of this batch."""
        inputs = [{name: row[name] for name in MODEL_INPUTS if name in row} for row in rows]
        pad = pad_without_fast_tokenizer_warning
        batch = dict(pad(self._tokenizer, inputs, padding_side="right", return_tensors="pt"))
        if LABEL in batch:
            batch["labels"] = batch.pop(LABEL)
        if "attention_mask" in batch:
            batch["attention_mask"] = KnownMask.of(batch["attention_mask"])
        return batch


class CausalCollator:
    """Tokenised rows -> `input_ids`, `attention_mask` and, if rows have `prompt_length`, `labels`: (B, T) int64.

    Padding is on the right and known by the mask alone, so that the padding token may be the end-of-text token. Labels
    are the inputs, -100 at prompts and padding; models shift them themselves.
    """

    def __init__(self, pad_token_id: int) -> None:
        """`pad_token_id`: any token; no model reads it."""
        self._pad_token_id = pad_token_id

    def settings(self) -> dict[str, Any]:
        """How it pads."""
        return {"padding_side": "right", "pad_token_id": self._pad_token_id}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad to the longest row of this batch."""
        texts = [torch.tensor(row["input_ids"]) for row in rows]
        batch = {
            "input_ids": pad_sequence(texts, batch_first=True, padding_value=self._pad_token_id),
            "attention_mask": KnownMask.of(pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)),
        }
        if PROMPT_LENGTH in rows[0]:
            targets = [
                torch.where(torch.arange(len(text)) < row[PROMPT_LENGTH], IGNORED, text)
                for text, row in zip(texts, rows, strict=True)
            ]
            batch["labels"] = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return batch


class ImageCollator:
    """Image rows -> `pixel_values`: (B, channels, height, width) float32; `labels`: (B,) int64.

    An image may be one as it was decoded, or the tensor that :meth:`prepared` made of it once. What was made stays in
    this process, up to `KEPT_IMAGE_BYTES`; what does not fit is decoded and resized again in every pass. Rows may also
    come with `pixels`, made before the run.
    """

    def __init__(self, processor: BaseImageProcessor) -> None:
        """`processor` is the FM's own: it resizes and normalises."""
        self._processor = processor
        self._kept: dict[tuple[str, int], dict[str, Any]] = {}
        self._room = KEPT_IMAGE_BYTES

    def __getstate__(self) -> dict[str, Any]:
        """Travel without images."""
        return vars(self) | {"_kept": {}, "_room": KEPT_IMAGE_BYTES}

    def settings(self) -> dict[str, Any]:
        """The processor's."""
        return json.loads(self._processor.to_json_string())

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Decode, convert to RGB (grey and palette images occur everywhere) and apply the FM's processor."""
        if PIXELS in rows[0]:
            rows = [row | {IMAGE: torch.from_numpy(np.load(io.BytesIO(row[PIXELS])))} for row in rows]
        decoded = [row[IMAGE] for row in rows if not isinstance(row[IMAGE], torch.Tensor)]
        if len(decoded) == len(rows):
            batch = {"pixel_values": self._pixels(decoded)}
        else:
            made = iter(self._pixels(decoded) if decoded else ())
            pixels = [row[IMAGE] if isinstance(row[IMAGE], torch.Tensor) else next(made) for row in rows]
            batch = {"pixel_values": torch.stack(pixels)}
        if LABEL in rows[0]:
            batch["labels"] = torch.tensor([row[LABEL] for row in rows])
        return batch

    def prepared(self, dataset: datasets.Dataset, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Return :func:`rows`, with the image's tensor in place of each image that there is room for."""
        if PIXELS in dataset.column_names:
            return rows(dataset, indices)
        keys = [(dataset._fingerprint, int(index)) for index in indices]
        missing = [key for key in keys if key not in self._kept]
        read = dict(zip(missing, rows(dataset, [index for _, index in missing]), strict=True))
        for key, row in read.items():
            if self._room > 0:
                read[key] = self._kept[key] = row | {IMAGE: self._pixels([row[IMAGE]])[0]}
                self._room -= self._kept[key][IMAGE].nbytes
        return [self._kept[key] if key in self._kept else read[key] for key in keys]

    def _pixels(self, images: Sequence[Image]) -> torch.Tensor:
        return self._processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]


def prepared_rows(dataset: datasets.Dataset, indices: Sequence[int] | np.ndarray, collate: Any) -> list[dict[str, Any]]:
    """Return the rows at `indices` for a collator that is asked for them again and again; its batches are the same.

    What it can make of a row alone, of an image, it makes once and keeps.
    """
    prepared = getattr(collate, "prepared", None)
    return rows(dataset, indices) if prepared is None else prepared(dataset, indices)


def rows(dataset: datasets.Dataset, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Return the rows at `indices`, in that order, with one Arrow take; what a :class:`Collator` takes.

    Raises:
        ConfigError: an image that cannot be decoded.

    """
    wanted = [int(index) for index in indices]
    try:
        return dataset.__getitems__(wanted) if wanted else []
    except Exception as error:  # every format of Pillow has errors of its own for what follows a good header
        if not any(isinstance(feature, datasets.Image) for feature in dataset.features.values()):
            raise
        reason, among = " ".join(str(error).split())[:100], ", ".join(map(str, wanted[:8]))
        message = (
            f"task.path / public.path: found a broken image among rows {among}{', ...' if len(wanted) > 8 else ''}"
        )
        raise ConfigError(f"{message} ({reason}), allowed: images that can be decoded") from error


def text_lengths(dataset: datasets.Dataset) -> np.ndarray | None:
    """Return (rows,) how many tokens each row has, counted by Arrow without reading them; None: rows of images."""
    if "input_ids" not in dataset.column_names:
        return None
    return pc.list_value_length(dataset.with_format("arrow")["input_ids"][:]).to_numpy()
