"""The protocol of secure aggregation, party by party."""

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from scipy import stats

from fedpft.privacy.masking import PUBLIC_BYTES, SEALED_BYTES, Party, expand, unmask
from fedpft.privacy.secret_shares import SHARE_BYTES

CLIENTS, SIZE, THRESHOLD = (3, 0, 7, 12, 5), 64, 3


def parties(seed=0, round_index=1):
    return {client: Party(seed, round_index, client) for client in CLIENTS}


def agree(made, threshold=THRESHOLD):
    """Return all public keys, and what each holder got from each sender."""
    keys = {client: party.public_keys for client, party in made.items()}
    sealed = {client: party.sealed_shares(keys, threshold) for client, party in made.items()}
    return keys, {holder: {sender: sealed[sender][holder] for sender in CLIENTS} for holder in CLIENTS}


def vectors():
    return {client: np.arange(SIZE, dtype=np.uint64) * np.uint64(client + 1) - np.uint64(client) for client in CLIENTS}


@pytest.mark.parametrize("dropped", [(), (7,), (3, 5)], ids=["nobody drops", "one drops", "two drop"])
def test_the_sum_of_those_who_came_is_exact_whoever_gives_the_shares(dropped):
    made, plain = parties(), vectors()
    keys, inbox = agree(made)
    survivors = set(CLIENTS) - set(dropped)
    total = sum(made[client].mask(plain[client], keys) for client in survivors)
    shares = {client: made[client].reveal(inbox[client], keys, survivors, THRESHOLD) for client in survivors}
    expected = sum(plain[client] for client in survivors)
    for left_out in [set(), *({client} for client in survivors if len(survivors) > THRESHOLD)]:
        given = {client: share for client, share in shares.items() if client not in left_out}
        assert unmask(total, keys, survivors, given, THRESHOLD).tolist() == expected.tolist()


def test_less_shares_than_the_threshold_open_nothing():
    made = parties()
    keys, inbox = agree(made)
    survivors = set(CLIENTS)
    total = sum(made[client].mask(vector, keys) for client, vector in vectors().items())
    two = {client: made[client].reveal(inbox[client], keys, survivors, THRESHOLD) for client in (3, 0)}
    with pytest.raises(ValueError, match="2 clients gave shares, allowed: 3 or more"):
        unmask(total, keys, survivors, two, THRESHOLD)
    opened = unmask(total, keys, survivors, two, threshold=2)  # a server that tries all the same
    assert (opened != sum(vectors().values())).all()


@pytest.mark.parametrize("survivors", [{3, 0}, {0, 7, 12}, {3, 0, 99}], ids=["too few", "not me", "a stranger"])
def test_no_party_answers_a_question_that_an_honest_server_does_not_ask(survivors):
    made = parties()
    keys, inbox = agree(made)
    with pytest.raises(ValueError, match="asked to take the masks off"):
        made[3].reveal(inbox[3], keys, survivors, THRESHOLD)


def test_shares_are_for_their_holder_alone():
    made = parties()
    keys, inbox = agree(made)
    assert {len(sealed) for sealed in inbox[3].values()} == {SEALED_BYTES}
    with pytest.raises(InvalidTag):
        made[3].reveal(inbox[7], keys, set(CLIENTS), THRESHOLD)


def test_a_party_gives_one_share_of_each_and_never_both():
    made = parties()
    keys, inbox = agree(made)
    one = made[3].reveal(inbox[3], keys, {3, 0, 7}, THRESHOLD)
    other = made[3].reveal(inbox[3], keys, set(CLIENTS), THRESHOLD)
    assert {len(share) for share in one.values()} == {SHARE_BYTES}
    assert [client for client in CLIENTS if one[client] != other[client]] == [12, 5]


def test_a_masked_vector_is_noise_whatever_it_hides():
    made = parties()
    keys, _ = agree(made)
    zeros = np.zeros(20_000, dtype=np.uint64)
    masked = made[3].mask(zeros, keys)
    assert stats.kstest(masked / 2.0**64, "uniform").pvalue > 1e-3
    ones = np.unpackbits(masked.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 4 * 0.5 / np.sqrt(64 * len(zeros))
    without_one = made[3].mask(zeros, {client: key for client, key in keys.items() if client != 7})
    assert stats.kstest((masked - without_one) / 2.0**64, "uniform").pvalue > 1e-3, "each pair has its own noise"


def test_keys_are_new_in_each_round_and_each_client_and_the_same_when_asked_again():
    keys = [parties(seed, index)[client].public_keys for seed in (0, 1) for index in (1, 2) for client in CLIENTS]
    assert len({*keys}) == len(keys)
    assert {len(key) for key in keys} == {PUBLIC_BYTES}
    assert parties(1, 2)[5].public_keys == keys[-1]


def test_noise_is_chacha20s_stream():
    # RFC 8439, A.1, test vector 1: key, nonce and counter of zeros
    assert expand(bytes(32), 2).tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"
