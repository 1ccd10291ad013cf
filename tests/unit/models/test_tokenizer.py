import pickle

import pytest

from fedpft.config import ConfigError
from fedpft.data.corpora.public import python_reference
from fedpft.models.tokenizer import END_OF_TEXT, train_tokenizer

TEXTS = python_reference()["text"][:60]


def test_it_is_a_function_of_the_texts():
    first, second = (train_tokenizer(TEXTS, 400).backend_tokenizer.to_str() for _ in range(2))
    assert first == second != train_tokenizer(TEXTS[:30], 400).backend_tokenizer.to_str()


def test_every_text_has_tokens_and_comes_back():
    tokenizer = train_tokenizer(TEXTS, 400)
    assert len(tokenizer) == 400
    for text in (TEXTS[0], "naïve → 統計\n\ttabs", " two  spaces"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(TEXTS[0])["input_ids"]) < 0.6 * len(TEXTS[0].encode()), "it learned merges"


def test_texts_end_and_are_padded_with_one_token_that_no_text_has():
    tokenizer = pickle.loads(pickle.dumps(train_tokenizer(TEXTS, 300)))
    assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert all(tokenizer.eos_token_id not in tokenizer(text)["input_ids"] for text in TEXTS)


def test_a_vocabulary_has_room_for_all_bytes():
    with pytest.raises(ConfigError, match=r"fm\.config\.vocab_size: found 256, allowed: more than 256"):
        train_tokenizer(TEXTS, 256)
