"""A tokenizer made from public texts, for a `scratch://` FM, which comes without one."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedpft.config import ConfigError

END_OF_TEXT = "<|endoftext|>"

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""A token for each byte, so that every text has tokens."""


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer (GPT-2's kind); a function of its arguments alone, in a second for a megabyte.

    Its end-of-text token pads as well; texts begin with no special token.

    Args:
        texts: to learn the merges from.
        vocab_size: tokens at most, with one for the end of a text.

    Raises:
        ConfigError: fewer tokens than there are bytes.

    """
    if vocab_size <= len(ALPHABET):
        raise ConfigError(f"fm.config.vocab_size: found {vocab_size}, allowed: more than {len(ALPHABET)}, one a byte")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=ALPHABET, show_progress=False
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )
