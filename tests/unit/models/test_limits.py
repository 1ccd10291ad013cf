import pytest
import torch
from transformers import AutoConfig

from fedpft.config import Config, ConfigError, FMConfig, PublicConfig
from fedpft.models.limits import LEARNED_POSITIONS, POSITIONS_FIELD, check_texts_fit, max_positions
from tests.tiny import TEXT_FAMILIES, TINY_CONFIGS, tiny_fm, tiny_tokenizer


def ids(length):
    return torch.full((1, length), 5)


@pytest.mark.parametrize("model_type", sorted(LEARNED_POSITIONS))
def test_the_longest_text_runs_and_one_token_more_does_not(model_type):
    fm = tiny_fm(model_type, **({POSITIONS_FIELD[model_type]: True} if model_type in POSITIONS_FIELD else {}))
    limit = max_positions(fm.config)
    with torch.no_grad():
        assert fm(input_ids=ids(limit)).logits.isfinite().all()
        with pytest.raises((RuntimeError, IndexError)):
            fm(input_ids=ids(limit + 1))


@pytest.mark.parametrize("model_type", sorted(set(TEXT_FAMILIES) - LEARNED_POSITIONS | {"deberta-v2"}))
def test_rotary_and_relative_positions_go_on(model_type):
    fm = tiny_fm(model_type, max_position_embeddings=8)
    assert max_positions(fm.config) is None
    with torch.no_grad():
        assert fm(input_ids=ids(12)).logits.isfinite().all()


def check(model_type="roberta", fields=None, **lengths):
    fm = AutoConfig.for_model(model_type, **(TINY_CONFIGS[model_type] | (fields or {})))
    values = {"max_length": 8, "chunk_length": 8} | lengths
    config = Config(
        fm=FMConfig(path="x", max_length=values["max_length"]), public=PublicConfig(chunk_length=values["chunk_length"])
    )
    check_texts_fit(config, fm, tiny_tokenizer())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_length": 40}, "fm.max_length: found 40, allowed: at most 39, the positions of this roberta"),
        ({"chunk_length": 40}, "public.chunk_length: found 40, allowed: at most 39, the positions of this roberta"),
        (
            {"fields": {"vocab_size": 39}},
            "fm.path: found a tokenizer of 40 tokens for 39 token embeddings in 'x', allowed: the",
        ),
        ({"model_type": "vit"}, "fm.path: found 'x' of model type 'vit', allowed: a model of texts, because the task"),
    ],
)
def test_what_the_fm_has_no_embedding_for_is_refused(arguments, expected):
    with pytest.raises(ConfigError) as error:
        check(**arguments)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_what_fits_exactly_is_taken():
    check(max_length=39, chunk_length=39)
    check("llama", max_length=1000, chunk_length=1000)
