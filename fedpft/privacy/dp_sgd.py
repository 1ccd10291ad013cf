"""PURE: DP-SGD's gradient (Abadi et al. 2016, arXiv 1607.00133): clipped examples' gradients, summed, with noise.

A step's batch is drawn by Poisson sampling, each example by itself, and the sum is divided by the number of examples
that a batch has on average, never by how many came. Noise and batches come from the run's seed, see
`fedpft.privacy.mechanism`.

Legend: `k` examples, `P` numbers of an adapter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ExampleNoise:
    """What a client does to the gradients of its examples."""

    clip: float
    """L2 norm, C, to which an example's longer gradient is scaled down."""
    noise_multiplier: float
    """z: the noise on the sum has the standard deviation z * C."""
    batch_size: int
    """How many examples a step has on average, of a client that has as many; public."""

    def num_expected(self, num_examples: int) -> int:
        """Return how many of a client's examples a step has on average: the divisor of its sum."""
        return min(self.batch_size, num_examples)

    def rate(self, num_examples: int) -> float:
        """Return the probability with which each of a client's examples is in a step's batch."""
        return self.num_expected(num_examples) / num_examples

    def num_steps(self, num_examples: int, num_epochs: int) -> int:
        """Return a client's steps in a round: as many as with batches of that size one after the other."""
        return num_epochs * math.ceil(num_examples / self.batch_size)

    def draw(self, num_examples: int, rng: np.random.Generator) -> np.ndarray:
        """Return the positions of a step's examples, ascending; perhaps none."""
        return np.flatnonzero(rng.random(num_examples) < self.rate(num_examples))

    @torch.no_grad()
    def clipped_sum(self, gradients: Tensor, segments: Sequence[slice]) -> tuple[Tensor, Tensor]:
        """Return the sum, (P,), of examples' gradients, each clipped, and how many had to be.

        One that is not finite counts as zero: it must not spoil the sum for the others, which would tell of it.

        Args:
            gradients: (k, P), changed.
            segments: columns of each tensor that is tuned: of all these a gradient has its norm.

        """
        parts = [torch.linalg.vector_norm(gradients[:, segment], dim=1, dtype=torch.float64) for segment in segments]
        norms = torch.linalg.vector_norm(torch.stack(parts, dim=1), dim=1)
        gradients.masked_fill_(~norms.isfinite()[:, None], 0)
        factors = (self.clip / norms).clamp(max=1.0).nan_to_num()
        return factors.to(gradients.dtype) @ gradients, (norms > self.clip).sum()

    def noise(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return the noise on a step's sum, (size,) float32."""
        return self.noise_multiplier * self.clip * rng.standard_normal(size, dtype=np.float32)
