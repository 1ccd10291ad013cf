"""Compress, align and measure models of one's own: the functions of a run, with public data of any form."""

from typing import Any

import pytest
import torch

import fedpft
from fedpft.models.ffn import find_ffns
from tests.tiny import tiny_batch, tiny_fm, tiny_lm, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(80)[0]
TEXT: dict[str, Any] = {"public": TEXTS, "tokenizer": tiny_tokenizer()}


@pytest.mark.parametrize("scorer", ["weight_norm", "random", "activation", "greedy"])
def test_compress_keeps_the_wanted_part_of_every_ffn(scorer: str) -> None:
    fm = tiny_fm("bert")
    before = {name: value.clone() for name, value in fm.state_dict().items()}
    sub_fm = fedpft.compress(fm, ratio=0.25, scorer=scorer, **TEXT)
    assert [ffn.num_neurons for ffn in find_ffns(sub_fm)] == [6, 6, 6]
    assert all(torch.equal(value, before[name]) for name, value in fm.state_dict().items())


@pytest.mark.parametrize("kind", ["closed_form", "distill", "closed_form+distill"])
def test_alignment_brings_the_sub_fm_closer(kind: str) -> None:
    fm = tiny_fm("bert")
    sub_fm = fedpft.compress(fm, 0.25)
    batch = tiny_batch("bert") | {"labels": torch.tensor([0, 1, 2, 0])}
    before = fedpft.fidelity(fm, sub_fm, batch).total.hidden_error
    config = fedpft.LayerAlignConfig(num_steps=30, batch_size=8, lr=1e-2, num_examples=64)
    report = fedpft.align(fm, sub_fm, kind=kind, config=config, **TEXT)
    after = fedpft.fidelity(fm, sub_fm, batch).total.hidden_error
    assert report.measured_after < report.measured_before
    assert before is not None
    assert after is not None
    assert after < before


def test_a_decoder_and_its_texts_fit_too() -> None:
    fm = tiny_lm("llama")
    sub_fm = fedpft.compress(fm, 0.5, scorer="greedy", **TEXT)
    config = fedpft.LayerAlignConfig(kind="closed_form", batch_size=2)
    assert fedpft.align(fm, sub_fm, config=config, **TEXT).last_loss >= 0
    with pytest.raises(fedpft.ConfigError, match="public: found '3 chunks or images'"):
        fedpft.align(fm, sub_fm, **TEXT)


def test_an_identical_model_has_no_distance_and_stays_as_it_is() -> None:
    fm = tiny_fm("bert")
    batch = tiny_batch("bert") | {"labels": torch.tensor([0, 1, 2, 0])}
    found = fedpft.fidelity(fm, fm, batch)
    assert found.total.hidden_error == 0
    assert found.total.gradient_cosine == pytest.approx(1)
    assert not any("lora" in name for name, _ in fm.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scorer": "greedy"}, "public: found None"),
        ({"scorer": "greedy", "public": TEXTS}, "tokenizer: found None"),
        ({"scorer": "greedy", "public": [{"words": "a"}], "tokenizer": 1}, "public: found 'columns words'"),
    ],
)
def test_public_data_that_are_missing_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(fedpft.ConfigError, match=message):
        fedpft.compress(tiny_fm("bert"), **arguments)


def test_bad_arguments_are_named() -> None:
    fm = tiny_fm("bert")
    with pytest.raises(fedpft.ConfigError, match=r"sub_fm: found 'FFNs of \[24, 24, 24\]"):
        fedpft.align(fm, fm, **TEXT)
    with pytest.raises(fedpft.ConfigError, match="kind: found 'none'"):
        fedpft.align(fm, fedpft.compress(fm, 0.5), kind="none", **TEXT)
    with pytest.raises(fedpft.ConfigError, match=r"scorer: found 'best', allowed: .*greedy"):
        fedpft.compress(fm, scorer="best")
    with pytest.raises(fedpft.ConfigError, match="model: found 'bert-base-uncased', allowed: a model"):
        fedpft.compress("bert-base-uncased")  # type: ignore[arg-type]
    with pytest.raises(fedpft.ConfigError, match="sub_fm: found 'sub_fm', allowed: a model"):
        fedpft.align(fm, "sub_fm", **TEXT)  # type: ignore[arg-type]
    with pytest.raises(fedpft.ConfigError, match="batch: found 'list', allowed: names -> tensors"):
        fedpft.fidelity(fm, fm, TEXTS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "name"), [(tiny_fm, "bert"), (tiny_fm, "vit"), (tiny_lm, "llama"), (tiny_lm, "gpt2")])
@pytest.mark.parametrize("uncompressed", [(), (0,)])
def test_a_saved_sub_fm_opens_without_saying_what_it_is(
    tmp_path: Any, make: Any, name: str, uncompressed: tuple[int, ...]
) -> None:
    sub_fm = fedpft.compress(make(name), 0.5, uncompressed_layers=uncompressed)
    sub_fm.save_pretrained(tmp_path)
    opened = fedpft.load_sub_fm(tmp_path)
    assert type(opened) is type(sub_fm)
    assert all(torch.equal(value, opened.state_dict()[key]) for key, value in sub_fm.state_dict().items())


def test_a_folder_without_a_model_is_one_line(tmp_path: Any) -> None:
    with pytest.raises(fedpft.ConfigError, match="sub_fm: found"):
        fedpft.load_sub_fm(tmp_path)
