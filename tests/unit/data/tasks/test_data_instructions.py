import datasets
import numpy as np
import pytest
import torch

from fedpft.config import ConfigError
from fedpft.data.collate import CausalCollator
from fedpft.data.corpora.chunks import chunk_corpus, special_tokens
from fedpft.data.tasks.instructions import as_instructions, tokenise_instructions
from fedpft.data.tasks.prompts import PromptTemplate
from tests.tiny import tiny_causal_tokenizer

TOKENIZER = tiny_causal_tokenizer()
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
CHAT = (
    "{% for m in messages %}<s> {{ m['role'] == 'user' and 'w30' or 'w31' }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> w31 {% endif %}"
)


def pairs(*texts, **columns):
    prompts, responses = zip(*texts, strict=True)
    return datasets.Dataset.from_dict({"prompt": prompts, "response": responses, **columns})


def tokenise(dataset, max_length=16, tokenizer=TOKENIZER, **changed):
    settings = {"prefix": special_tokens(tokenizer)[0], "chat": False, "split": "training"} | changed
    return tokenise_instructions(dataset, tokenizer, max_length, **settings)


def ids(words):
    return TOKENIZER(words, add_special_tokens=False)["input_ids"]


def chat_tokenizer(template=CHAT):
    tokenizer = tiny_causal_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_rows_get_prompt_and_response_and_keep_the_rest():
    rows = datasets.Dataset.from_dict({"q": ["a", "b"], "response": ["x", ""], "answer": ["1", "2"], "who": [3, 4]})
    made = as_instructions(rows, PromptTemplate("Q {q}:"), "answer")
    assert made["prompt"][:] == ["Q a:", "Q b:"]
    assert made["response"][:] == ["1", "2"], "the column of that name was another"
    assert made["who"][:] == [3, 4]
    assert as_instructions(rows, None, "answer")["prompt"][:] == ["", ""]


@pytest.mark.parametrize(
    ("template", "response", "expected"),
    [
        ("{q}", "reply", r"task\.response_column: found 'reply', allowed: a column of the data: q, answer, who"),
        ("{q}", "who", r"task\.response_column: found 'column who of type int64'"),
        ("{question}", "answer", r"task\.prompt_template: found 'question', allowed: a column of the data: q, "),
        ("{q} {who}", "answer", r"task\.prompt_template: found 'column who of type int64'"),
    ],
)
def test_columns_that_are_missing_or_no_text_are_named(template, response, expected):
    rows = datasets.Dataset.from_dict({"q": ["a"], "answer": ["x"], "who": [3]})
    with pytest.raises(ConfigError, match=expected):
        as_instructions(rows, PromptTemplate(template), response)


def test_a_row_is_prompt_response_and_end():
    row = tokenise(pairs(("w1 w2", "w3"), who=["x"]))[0]
    assert row == {"input_ids": [BOS, *ids("w1 w2 w3"), EOS], "prompt_length": 3, "who": "x"}


def test_without_a_prompt_all_of_the_text_is_target():
    row = tokenise(pairs(("", "w1 w2 w3")))[0]
    assert row == {"input_ids": [BOS, *ids("w1 w2 w3"), EOS], "prompt_length": 1}


@pytest.mark.parametrize(("max_length", "left"), [(6, "w3 w4"), (5, "w3 w4"), (4, "w3")])
def test_truncation_keeps_the_beginning_of_the_response_and_ends_only_a_whole_one(max_length, left):
    row = tokenise(pairs(("w1 w2", "w3 w4")), max_length)[0]
    end = [EOS] if max_length == 6 else []
    assert row == {"input_ids": [BOS, *ids(f"w1 w2 {left}"), *end], "prompt_length": 3}


def test_examples_without_room_for_their_response_are_dropped_and_counted():
    rows = pairs(("w1 w2 w3", "w4"), ("w1", "w2"), ("w1 w2 w3 w5", "w4"), ("", ""), who=[0, 1, 2, 3])
    with pytest.warns(UserWarning, match=r"dropped 2 of 4 training examples without a token .* in 4 tokens"):
        kept = tokenise(rows, 4)
    assert kept["who"][:] == [1, 3], "an empty response still has its end to learn"


def test_no_example_with_a_target_is_an_error():
    with pytest.raises(ConfigError, match=r"fm\.max_length: found '1 of 1 evaluation examples without a token of"):
        tokenise(pairs(("w1 w2 w3", "w4")), 4, split="evaluation")
    with pytest.raises(ConfigError, match=r"fm\.max_length: found '1 of 1 "):
        tokenise(pairs(("", "")), prefix=[])  # a lone end-of-text token has nothing before it


def test_a_tokenizer_must_be_able_to_end_a_response():
    tokenizer = tiny_causal_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"fm\.path: found 'a tokenizer without end-of-text token'"):
        tokenise(pairs(("w1", "w2")), tokenizer=tokenizer)


def test_a_chat_template_says_how_prompt_and_response_begin_and_end():
    row = tokenise(pairs(("w1 w2", "w3")), tokenizer=chat_tokenizer(), chat=True)[0]
    assert row["input_ids"] == ids("<s> w30 w1 w2 </s> <s> w31 w3 </s>")
    assert row["prompt_length"] == 7


@pytest.mark.parametrize("template", [None, "{{ messages[-1]['content'] }}"])
def test_a_chat_template_that_does_not_serve_is_an_error(template):
    with pytest.raises(ConfigError, match=r"task\.chat_template: found True, allowed: false, because "):
        tokenise(pairs(("w1", "w2")), tokenizer=chat_tokenizer(template), chat=True)


def test_batches_are_padded_on_the_right_and_only_responses_are_targets():
    rows = [{"input_ids": [1, 5, 6, 2], "prompt_length": 2}, {"input_ids": [1, 2], "prompt_length": 1}]
    batch = CausalCollator(pad_token_id=2)(rows)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 2], [1, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]], "an end-of-text token is no padding"
    assert batch["labels"].tolist() == [[-100, -100, 6, 2], [-100, 2, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_public_rows_have_no_labels():
    assert set(CausalCollator(0)([{"input_ids": [3, 4]}])) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("has_bos", [True, False])
def test_public_text_is_chunked_as_the_tokenizer_begins_texts(has_bos):
    tokenizer = tiny_causal_tokenizer(has_bos=has_bos)
    assert special_tokens(tokenizer) == ([BOS] if has_bos else [], [])
    corpus = datasets.Dataset.from_dict({"text": ["w1 w2 w3 w4 w5"] * 8})
    chunks = np.array(chunk_corpus(corpus, tokenizer, 8, None, np.random.default_rng(0))["input_ids"][:])
    body = 8 - has_bos
    assert chunks.shape == (40 // body, 8)
    assert (chunks[:, 0] == BOS).all() == has_bos
    assert chunks[:, has_bos:].ravel().tolist() == (ids("w1 w2 w3 w4 w5") * 8)[: chunks.shape[0] * body]
