import pytest
import torch

from fedpft.align.regression import RIDGES, NormalEquations, ridge_fit

N, H = 5, 3
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, N, generator=GENERATOR) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]) + 0.3
Y = X @ torch.randn(N, H, generator=GENERATOR) + 2.0 + 0.5 * torch.randn(60, H, generator=GENERATOR)
X1 = torch.cat([X, torch.ones(60, 1)], dim=1).double()
PRIOR = torch.randn(N + 1, H, generator=GENERATOR).double()
ALL = torch.ones(N + 1, dtype=torch.bool)


def equations(rows, weights=None):
    result = NormalEquations(N, H)
    result.add(X[rows], Y[rows], None if weights is None else weights[rows])
    return result


def fit(ridges, *, free=ALL, held_out=slice(40, 60), scale=None):
    scale = torch.ones(H) if scale is None else scale
    return ridge_fit(
        equations(slice(0, 40)), equations(held_out), prior=PRIOR, free=free, target_scale=scale, ridges=ridges
    )


def test_without_a_ridge_it_is_least_squares():
    expected = torch.linalg.lstsq(X1[:40], Y[:40].double()).solution
    torch.testing.assert_close(fit((0.0,)).solution, expected, rtol=1e-4, atol=1e-5)


def test_a_ridge_solution_is_the_augmented_least_squares_pulled_to_the_prior():
    penalty = 0.1 * X[:40].double().square().sum(dim=0).mean()
    pull = penalty.sqrt() * torch.eye(N + 1, dtype=torch.float64)[:N]
    expected = torch.linalg.lstsq(torch.cat([X1[:40], pull]), torch.cat([Y[:40].double(), pull @ PRIOR])).solution
    torch.testing.assert_close(fit((0.1,)).solution, expected, rtol=1e-4, atol=1e-5)


def test_a_huge_ridge_gives_the_prior_with_the_best_bias():
    solution = fit((1e9,)).solution
    torch.testing.assert_close(solution[:N], PRIOR[:N], atol=1e-6, rtol=0)
    residual = Y[:40].double() - X1[:40, :N] @ PRIOR[:N]
    torch.testing.assert_close(solution[N], residual.mean(dim=0), atol=1e-4, rtol=0)


def test_rows_that_are_not_free_keep_the_priors_bits_and_the_others_fit_what_they_leave():
    free = torch.tensor([True, False, True, False, False, True])
    solution = fit((0.0,), free=free).solution
    assert torch.equal(solution[~free], PRIOR[~free])
    rest = Y[:40].double() - X1[:40][:, ~free] @ PRIOR[~free]
    expected = torch.linalg.lstsq(X1[:40][:, free], rest).solution
    torch.testing.assert_close(solution[free], expected, rtol=1e-4, atol=1e-5)


def test_the_ridge_with_the_smallest_error_on_the_held_out_rows_is_chosen():
    scale = torch.tensor([1.0, 10.0, 0.1])

    def error(ridge):
        residual = (X1[40:] @ fit((ridge,)).solution - Y[40:].double()) * scale
        return float(residual.square().sum() / (Y[40:].double() * scale).square().sum())

    chosen = fit(RIDGES, scale=scale)
    assert chosen.ridge == min(RIDGES, key=error)
    assert chosen.relative_error == pytest.approx(error(chosen.ridge), rel=1e-4)


def test_sums_over_batches_are_sums_over_all_rows_and_weights_count_as_repetitions():
    weights = torch.randint(0, 3, (60,), generator=GENERATOR).float()
    whole = equations(slice(0, 60), weights)
    parts, repeated = NormalEquations(N, H), NormalEquations(N, H)
    for rows in (slice(0, 7), slice(7, 33), slice(33, 60)):
        parts.add(X[rows], Y[rows], weights[rows])
    times = weights.long()
    repeated.add(X.repeat_interleave(times, dim=0), Y.repeat_interleave(times, dim=0))
    for other in (parts, repeated):
        torch.testing.assert_close(other.gram, whole.gram, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(other.cross, whole.cross, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(other.energy, whole.energy, rtol=1e-5, atol=1e-4)


def test_the_error_of_a_solution_is_that_of_its_residuals():
    found = equations(slice(0, 60)).error(PRIOR)
    torch.testing.assert_close(found, (X1 @ PRIOR - Y.double()).square().sum(dim=0), rtol=1e-4, atol=1e-3)
