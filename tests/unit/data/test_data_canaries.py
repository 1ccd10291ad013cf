"""Canaries among the clients' examples: who has them, what they are, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import ConfigError, load_config
from fedpft.data.planting import with_canaries
from fedpft.run.inputs import load_data
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_causal_run, tiny_text_run

DP = [
    "privacy={kind: client, noise_multiplier: 1.0, canaries: 3}",
    "federated={sampling: poisson, aggregation: uniform}",
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_text_run(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(settings):
    return load_data(load_config(None, settings), SilentProgress())


def planted(plain, settings, *more):
    return with_canaries(plain, load_config(None, [*settings, *more]))


def shards(data):
    return [data.partition.shard(client).tolist() for client in range(data.partition.num_clients)]


def test_without_canaries_nothing_changes(plain, settings):
    assert planted(plain, settings) is plain
    assert plain.canaries is None


def test_those_whose_coin_says_so_are_one_more_example_of_their_owner_and_the_others_nobodys(plain, settings):
    data = planted(plain, settings, "privacy.canaries=40")
    canaries = data.canaries
    assert 5 < canaries.planted.sum() < 35
    assert canaries.first_row == len(plain.train)
    assert data.train[: len(plain.train)] == plain.train[:]
    assert data.train[len(plain.train) :] == canaries.examples[:]
    for client, (before, after) in enumerate(zip(shards(plain), shards(data), strict=True)):
        own = np.flatnonzero(canaries.planted & (canaries.owners == client)) + canaries.first_row
        assert after == before + own.tolist()
    assert canaries.clients == canaries.absent == frozenset()


def test_with_dp_of_clients_a_canary_is_a_whole_client_there_or_absent(plain, settings):
    data = planted(plain, settings, *DP)
    canaries = data.canaries
    assert len(canaries.clients) == 3
    assert canaries.absent == {c for c, is_in in zip(canaries.owners, canaries.planted, strict=True) if not is_in}
    for client, (before, after) in enumerate(zip(shards(plain), shards(data), strict=True)):
        number = np.flatnonzero(canaries.owners == client)
        same = [canaries.first_row + int(number[0])] * len(before) if len(number) else before
        assert after == same


def test_a_canary_is_random_tokens_in_an_examples_frame_with_a_label_and_the_same_every_time(plain, settings):
    data = planted(plain, settings, "privacy.canaries=40")
    again = planted(plain, settings, "privacy.canaries=40")
    assert data.canaries.examples[:] == again.canaries.examples[:]
    assert (data.canaries.planted == again.canaries.planted).all()
    special, known = set(data.tokenizer.all_special_ids), {tuple(ids) for ids in plain.train["input_ids"]}
    for row in data.canaries.examples:
        first, *words, last = row["input_ids"]
        assert {first, last} <= special
        assert words
        assert not special & set(words)
        assert tuple(row["input_ids"]) not in known
    assert set(data.canaries.examples["label"]) == set(range(len(data.label_names)))
    other = planted(plain, settings, "privacy.canaries=40", "seed=1")
    assert other.canaries.examples["input_ids"] != data.canaries.examples["input_ids"]


def test_a_language_models_canary_has_no_label(tmp_path):
    config = load_config(None, [*tiny_causal_run(tmp_path), "privacy.canaries=4"])
    data = load_data(config, SilentProgress())
    assert data.canaries.examples.column_names == data.train.column_names
    assert len(data.collate([data.canaries.examples[0]])["labels"]) == 1


@pytest.mark.parametrize(
    ("more", "spoilt", "allowed"),
    [
        ([], {"modality": "image"}, "0 for image data of kind classification"),
        ([], {"kind": "regression"}, "0 for text data of kind regression"),
        ([], {"shared": object()}, "0 with task.data = shared"),
        ([*DP, "privacy.canaries=4"], {}, "fewer than the 4 clients"),
    ],
)
def test_data_that_cannot_have_canaries_are_refused_in_one_line(plain, settings, more, spoilt, allowed):
    with pytest.raises(ConfigError, match=rf"^privacy.canaries: found \d, allowed: {allowed}.*$"):
        planted(replace(plain, **spoilt), settings, "privacy.canaries=3", *more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["privacy.canaries=-1"], r"privacy.canaries: found -1, allowed: .*>= 0"),
        (
            [*DP, "privacy.noise_cohort_size=100"],
            "privacy.canaries: found 3, allowed: 0 with privacy.noise_cohort_size",
        ),
    ],
)
def test_settings_that_cannot_be_with_canaries_are_refused(settings, more, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*settings, *more])
