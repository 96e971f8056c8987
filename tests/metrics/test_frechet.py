"""Fréchet distance against closed forms and the general matrix root."""

import math

import pytest
import scipy.linalg
import torch

from mfd_cli.metrics.frechet import Moments, frechet_between, frechet_distance, moments, symmetric_root
from mfd_cli.metrics.uncertainty import standard_error


def _normal(num: int, dimension: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _with_moments(num: int, mean: torch.Tensor, covariance: torch.Tensor, seed: int) -> torch.Tensor:
    """Samples whose sample mean and covariance are exactly the given ones."""
    raw = _normal(num, len(mean), seed)
    raw = raw - raw.mean(0)
    whitened = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / (num - 1))).T
    return mean + whitened @ torch.linalg.cholesky(covariance).T


def test_frechet_of_commuting_covariances_is_the_closed_form():
    first, second = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    x = _with_moments(50, torch.zeros(3).double(), torch.diag(first), 0)
    y = _with_moments(70, shift, torch.diag(second), 1)
    expected = shift.square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_equals_the_general_matrix_root():
    x, y = _normal(200, 6, 0) @ _normal(6, 6, 1), _normal(150, 6, 2) @ _normal(6, 6, 3) + 1
    a, b = moments(x), moments(y)
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    naive = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * root.trace()
    assert frechet_distance(x, y) == pytest.approx(naive.item(), rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(naive.item(), rel=1e-9)


def test_frechet_is_zero_for_equal_sets_and_finite_for_a_singular_covariance():
    x = _normal(5, 10, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(frechet_distance(x, _normal(8, 10, 1)))


def test_moments_divide_by_one_less_than_the_number():
    found = moments(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert found.covariance.tolist() == [[2, 4], [4, 8]] and found.mean.tolist() == [1, 2]
    with pytest.raises(ValueError, match="at least 2"):
        moments(torch.zeros(1, 3))


def test_symmetric_root_squares_back():
    covariance = moments(_normal(30, 5, 4)).covariance
    root = symmetric_root(covariance)
    torch.testing.assert_close(root @ root, covariance)


def test_bootstrap_error_of_frechet_is_the_spread_over_independent_sets():
    reference = Moments(torch.zeros(4).double(), torch.eye(4).double())
    root = symmetric_root(reference.covariance)
    sets = [1.5 * _normal(500, 4, seed) + 0.5 for seed in range(60)]
    spread = torch.tensor([frechet_between(moments(x), reference, root) for x in sets]).std().item()
    found = standard_error(lambda drawn: frechet_between(moments(sets[0][drawn]), reference, root), 500, resamples=60)
    assert found == pytest.approx(spread, rel=0.35)
