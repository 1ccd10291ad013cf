import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpft.config import ConfigError
from fedpft.privacy.fixed_point import FixedPoint


@given(st.integers(2, 10_000), st.integers(0, 20), st.floats(1e-3, 1e3))
def test_the_sum_of_the_largest_numbers_of_all_clients_does_not_overflow(num_parties, exponent, bound):
    try:
        fixed = FixedPoint.of(bound=bound, most_weight=2**exponent, num_parties=num_parties)
    except ConfigError:
        assert num_parties * 2**exponent * bound * 2**16 > 2**62
        return
    largest = [int(fixed.encode(np.array([sign * bound]), 2**exponent).view(np.int64)[0]) for sign in (1, -1)]
    assert all(abs(number) * num_parties < 2**63 for number in largest)
    total = np.array([number * num_parties for number in largest]).view(np.uint64)
    assert fixed.decode(total) == pytest.approx(
        [bound * num_parties * 2**exponent, -bound * num_parties * 2**exponent],
        abs=num_parties * 2**exponent * fixed.resolution,
    )


def test_no_number_moves_by_a_step_and_no_vector_becomes_longer():
    values = np.random.default_rng(0).standard_normal(1000)
    fixed = FixedPoint.of(bound=8.0, most_weight=4096, num_parties=2**26 - 1)
    decoded = fixed.decode(fixed.encode(values))
    assert fixed.resolution == 2.0**-22, "63 bits less 26 of clients, 12 of weights, 3 of the bound"
    assert np.abs(decoded - values).max() < fixed.resolution
    assert (np.abs(decoded) <= np.abs(values)).all()


@pytest.mark.parametrize(
    ("value", "weight", "message"),
    [
        (np.nan, 1, "the adapter has NaN or infinite values; try a lower federated.lr"),
        (1.5, 1, r"a number of size 1.5, allowed: at most privacy.secure_bound = 1, beyond which a sum could overflow"),
        (0.5, 9, "a weight of 9, allowed: 1 to 8"),
        (0.5, 0, "a weight of 0, allowed: 1 to 8"),
    ],
)
def test_what_would_spoil_the_sum_is_an_error_in_one_line(value, weight, message):
    fixed = FixedPoint.of(bound=1.0, most_weight=8, num_parties=4)
    with pytest.raises(ValueError, match=message):
        fixed.encode(np.array([0.0, value]), weight)


def test_too_few_bits_for_fractions_are_refused():
    with pytest.raises(ConfigError, match=r"privacy.secure_bound: found 1000000000.0, allowed: less: 1000 clients"):
        FixedPoint.of(bound=1e9, most_weight=4096, num_parties=1000)
