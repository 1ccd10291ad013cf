import itertools

from hypothesis import given
from hypothesis import strategies as st

from fedpft.privacy.secret_shares import PRIME, combine, split, weights_at_zero


def test_shares_are_those_of_the_worked_example_that_everybody_knows():
    # Wikipedia, "Shamir's secret sharing": secret 1234, 3 of 6, modulo 1613
    shares = split(1234, [166, 94], range(6), prime=1613)
    assert list(shares.values()) == [1494, 329, 965, 176, 1188, 775]
    for holders in itertools.combinations(range(6), 3):
        assert combine(shares, weights_at_zero(holders, prime=1613), prime=1613) == 1234


@given(st.integers(0, 2**256 - 1), st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=6), st.randoms())
def test_as_many_as_the_threshold_give_the_secret_back_and_one_less_fits_any_secret(secret, coefficients, random):
    holders = random.sample(range(1000), 9)
    shares, threshold = split(secret, coefficients, holders), len(coefficients) + 1
    some = random.sample(holders, threshold)
    assert combine(shares, weights_at_zero(some)) == secret
    # any other secret goes with the same shares of one holder less: the last one's share would just be another one
    weights, other = weights_at_zero(some), (secret + 1) % 2**256
    last = (other - combine(shares, weights) + weights[some[-1]] * shares[some[-1]]) * pow(weights[some[-1]], -1, PRIME)
    assert combine({**shares, some[-1]: last % PRIME}, weights) == other


def test_the_fields_modulus_is_prime():
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller and Rabin
        powers = [pow(base, odd * 2**i, PRIME) for i in range(twos)]
        assert powers[0] == 1 or PRIME - 1 in powers
