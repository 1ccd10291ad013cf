"""How long a text and how many tokens an FM knows: from its config alone, before any weights are read."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from fedpft.config import Config, ConfigError

LEARNED_POSITIONS = frozenset(
    {
        *("bert", "camembert", "deberta-v2", "distilbert", "electra", "gpt2", "mpnet", "opt"),
        *("roberta", "xlm-roberta"),
    }
)
"""Families with one embedding for each position; a new family without a row here has no limit (rotary positions)."""

POSITIONS_FIELD = {"deberta-v2": "position_biased_input"}
"""Those that have them only where this field of the config is true, and no limit elsewhere."""

POSITIONS_AFTER_PADDING: dict[str, int | None] = dict.fromkeys(["camembert", "roberta", "xlm-roberta"]) | {"mpnet": 1}
"""Those that count positions from the id after the padding token's, and that id where no config changes it."""


def max_positions(fm: PretrainedConfig) -> int | None:
    """Return the longest text in tokens, special tokens included, or None: positions are computed for any length."""
    field = POSITIONS_FIELD.get(fm.model_type)
    if fm.model_type not in LEARNED_POSITIONS or (field is not None and not getattr(fm, field)):
        return None
    reserved = 0
    if fm.model_type in POSITIONS_AFTER_PADDING:
        fixed = POSITIONS_AFTER_PADDING[fm.model_type]
        reserved = 1 + (fixed if fixed is not None else fm.pad_token_id or 0)
    return fm.max_position_embeddings - reserved


def check_texts_fit(config: Config, fm: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the FM has an embedding for every position and token of the texts that will be made for it.

    Raises:
        ConfigError: `fm.max_length` or `public.chunk_length` above the FM's positions, a tokenizer of another model, or
            a model of images.

    """
    if not hasattr(fm, "vocab_size"):
        found = f"{config.fm.path!r} of model type {fm.model_type!r}"
        raise ConfigError(f"fm.path: found {found}, allowed: a model of texts, because the task is one of texts")
    limit = max_positions(fm)
    lengths = {"fm.max_length": config.fm.max_length, "public.chunk_length": config.public.chunk_length}
    for key, length in lengths.items():
        if limit is not None and length > limit:
            raise ConfigError(f"{key}: found {length}, allowed: at most {limit}, the positions of this {fm.model_type}")
    if len(tokenizer) > fm.vocab_size:
        found = f"a tokenizer of {len(tokenizer)} tokens for {fm.vocab_size} token embeddings"
        raise ConfigError(
            f"fm.path: found {found} in {config.fm.path!r}, allowed: the tokenizer that belongs to the FM"
        )


def fit_inputs(fm: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer give what the FM takes, in place: always a mask, and types of tokens if it embeds them all.

    GPT-2 would add the embedding of a token to each; others fail, or have an embedding for the first type alone.
    """
    types = tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"]
    known = getattr(fm, "type_vocab_size", 0)
    dropped = {"token_type_ids"} if max([*types, tokenizer.pad_token_type_id]) >= known else set()
    names = [name for name in tokenizer.model_input_names if name not in dropped]
    tokenizer.model_input_names = names if "attention_mask" in names else [*names, "attention_mask"]
