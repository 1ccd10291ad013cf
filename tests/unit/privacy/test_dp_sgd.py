"""A step's gradient under DP of examples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpft.privacy.dp_sgd import ExampleNoise

NOISE = ExampleNoise(clip=1.0, noise_multiplier=2.0, batch_size=8)
WHOLE = [slice(0, 4)]


def test_each_gradient_is_clipped_by_its_own_norm_before_the_sum():
    total, num_clipped = NOISE.clipped_sum(torch.tensor([[3.0, 0, 0, 4], [0.5, 0, 0, 0]]), WHOLE)
    assert total.tolist() == pytest.approx([1.1, 0, 0, 0.8])
    assert int(num_clipped) == 1


def test_a_norm_is_that_of_what_is_tuned():
    gradients = torch.tensor([[3.0, 100, 0, 4]])
    total, _ = NOISE.clipped_sum(gradients, [slice(0, 1), slice(3, 4)])
    assert total[[0, 3]].tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_example_more_moves_the_sum_by_at_most_the_clip_even_if_it_is_not_finite(bad):
    others = torch.ones(3, 4) / 4
    alone, _ = NOISE.clipped_sum(others.clone(), WHOLE)
    for extra in ([bad, 1, 1, 1], [1e30, 1e30, 0, 0], [0.0] * 4):
        total, _ = NOISE.clipped_sum(torch.cat([others, torch.tensor([extra])]), WHOLE)
        assert float((total - alone).norm()) <= 1 + 1e-6


def test_of_no_examples_the_sum_is_zero():
    total, num_clipped = NOISE.clipped_sum(torch.zeros(0, 4), WHOLE)
    assert (total.tolist(), int(num_clipped)) == ([0.0] * 4, 0)


def test_noise_is_normal_with_the_multiplier_times_the_clip_as_its_standard_deviation():
    draws = replace(NOISE, clip=0.5).noise(200_000, np.random.default_rng(0))
    assert draws.dtype == np.float32
    assert draws.std() == pytest.approx(1.0, rel=0.01)  # 6 standard errors
    assert abs(draws.mean()) < 0.01
    assert np.mean(np.abs(draws) < 1.0) == pytest.approx(0.6827, abs=0.006)


def test_examples_come_independently_at_the_rate():
    rng = np.random.default_rng(0)
    batches = [NOISE.draw(20, rng) for _ in range(5000)]
    came = np.array([[i in batch for i in range(20)] for batch in batches])
    assert came.mean(axis=0) == pytest.approx(np.full(20, 8 / 20), abs=0.035)
    sizes = came.sum(axis=1)
    assert sizes.var() == pytest.approx(20 * 0.4 * 0.6, rel=0.1), "a binomial's: not of a fixed size"
    assert np.corrcoef(came[:, 0], came[:, 1])[0, 1] == pytest.approx(0, abs=0.06)


def test_a_client_with_fewer_examples_than_a_batch_has_all_of_them_in_every_step():
    assert (NOISE.rate(5), NOISE.num_expected(5), NOISE.num_steps(5, 3)) == (1.0, 5, 3)
    assert NOISE.draw(5, np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]
    assert (NOISE.rate(32), NOISE.num_expected(32), NOISE.num_steps(33, 2)) == (0.25, 8, 10)
