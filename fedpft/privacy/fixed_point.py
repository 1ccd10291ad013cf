"""PURE: numbers as integers modulo 2^64, whose sums are exact in any order and cannot overflow."""

import math
from dataclasses import dataclass

import numpy as np

from fedpft.config.checks import ConfigError

MODULUS_BITS = 64
MOST_BITS_OF_VALUE = 52
"""Of a scaled number: a float64 holds it exactly."""
LEAST_BITS_OF_FRACTION = 16
MOST_BITS_OF_FRACTION = 40


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How a client's update becomes integers, the same for all clients of a round."""

    bound: float
    """The largest absolute value that a number may have."""
    fraction_bits: int
    """A number is rounded towards zero to a multiple of 2^-fraction_bits, which makes no vector longer."""
    most_weight: int
    """The largest whole weight that a client may have."""

    @classmethod
    def of(cls, *, bound: float, most_weight: int, num_parties: int) -> "FixedPoint":
        """Return the finest with which the sum over all parties is within (-2^63, 2^63), whatever they send.

        Raises:
            ConfigError: it would be too coarse to tell updates apart.

        """
        for bits in range(MOST_BITS_OF_FRACTION, LEAST_BITS_OF_FRACTION - 1, -1):
            largest = math.floor(bound * 2**bits)
            if largest < 2**MOST_BITS_OF_VALUE and num_parties * most_weight * largest < 2 ** (MODULUS_BITS - 1):
                return cls(bound=bound, fraction_bits=bits, most_weight=most_weight)
        allowed = f"less: {num_parties} clients that weigh up to {most_weight} leave too few bits for fractions"
        raise ConfigError(f"privacy.secure_bound: found {bound!r}, allowed: {allowed}")

    @property
    def resolution(self) -> float:
        """The step between neighbouring numbers; the error of one is smaller, and so is that of a mean."""
        return 2.0**-self.fraction_bits

    def encode(self, update: np.ndarray, weight: int = 1) -> np.ndarray:
        """Return weight * update as integers modulo 2^64, uint64, of the same shape.

        Raises:
            ValueError: a number that is not finite or above the bound, or a weight out of its range; one line.

        """
        wide = np.asarray(update, dtype=np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("the adapter has NaN or infinite values; try a lower federated.lr")
        largest = float(np.abs(wide).max(initial=0.0))
        if largest > self.bound:
            allowed = f"at most privacy.secure_bound = {self.bound:g}, beyond which a sum could overflow"
            raise ValueError(f"the update has a number of size {largest:.4g}, allowed: {allowed}")
        if not 1 <= weight <= self.most_weight:
            raise ValueError(f"a weight of {weight}, allowed: 1 to {self.most_weight}")
        return (np.trunc(np.ldexp(wide, self.fraction_bits)).astype(np.int64) * weight).view(np.uint64)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """Return the numbers, float64, that a sum of such integers stands for."""
        return np.ldexp(total.view(np.int64).astype(np.float64), -self.fraction_bits)
