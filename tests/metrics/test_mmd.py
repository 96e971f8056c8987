"""MMD against its sums written out."""

import itertools
import math

import pytest
import torch

from mfd_cli.metrics.mmd import MmdTo, gaussian, median_distance


def _points(num, dimension, seed, shift=0.0):
    return torch.randn(num, dimension, generator=torch.Generator().manual_seed(seed)).double() + shift


def _gaussian(a, b, bandwidth):
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * bandwidth**2))


def _product(a, b):
    return a @ b.transpose(-1, -2)


def _naive(x, y, kernel, biased=False):
    x, y = x.tolist(), y.tolist()
    pairs = (lambda points: itertools.product(points, repeat=2)) if biased else (lambda p: itertools.permutations(p, 2))
    within = [torch.tensor([kernel(a, b) for a, b in pairs(points)]).double().mean().item() for points in (x, y)]
    across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    return sum(within) - 2 * across


@pytest.mark.parametrize("biased", [False, True])
def test_mmd_is_its_sums_written_out(biased):
    x, y = _points(13, 3, 0), _points(17, 3, 1, 0.4)
    found = MmdTo(y, gaussian(0.8), biased=biased).measured(x)
    expected = _naive(x, y, lambda a, b: _gaussian(a, b, 0.8), biased)
    assert found.value == pytest.approx(expected, rel=1e-6) and not found.more_is_better


def test_the_biased_estimate_with_a_linear_kernel_is_the_squared_distance_of_means():
    x, y = _points(13, 3, 0), _points(17, 3, 1, 0.4)
    expected = (x.mean(0) - y.mean(0)).square().sum().item()
    assert MmdTo(y, _product, biased=True).measured(x).value == pytest.approx(expected, rel=1e-10)


def test_the_unbiased_estimate_with_a_linear_kernel_lacks_the_variances_of_the_means():
    x, y = _points(13, 3, 0), _points(17, 3, 1, 0.4)
    expected = (x.mean(0) - y.mean(0)).square().sum() - x.var(0).sum() / 13 - y.var(0).sum() / 17
    assert MmdTo(y, _product).measured(x).value == pytest.approx(expected.item(), rel=1e-9)


def test_the_estimate_is_unbiased_so_it_is_negative_half_of_the_time():
    pairs = [(_points(30, 2, 2 * seed), _points(30, 2, 2 * seed + 1)) for seed in range(60)]
    found = torch.tensor([MmdTo(y, gaussian(1.0)).measured(x).value for x, y in pairs])
    assert 10 < (found < 0).sum() < 50
    assert abs(found.mean().item()) < 3 * found.std().item() / 60**0.5


def test_the_median_distance_is_of_two_different_samples():
    assert median_distance(torch.tensor([[0.0], [1.0], [3.0]])) == 2
    many = _points(2500, 2, 0)
    assert median_distance(many) == pytest.approx(torch.pdist(many).median().item(), rel=0.05)


@pytest.mark.parametrize("biased", [False, True])
def test_the_error_is_the_jackknifes(biased):
    x, y = _points(12, 2, 0, 0.5), _points(20, 2, 1)
    without = torch.tensor(
        [_naive(torch.cat([x[:i], x[i + 1 :]]), y, lambda a, b: _gaussian(a, b, 1.3), biased) for i in range(12)],
        dtype=torch.float64,
    )
    expected = ((11 / 12) * (without - without.mean()).square().sum()).sqrt().item()
    assert MmdTo(y, gaussian(1.3), biased=biased).measured(x).standard_error == pytest.approx(expected, rel=1e-5)


def test_the_error_is_the_spread_over_independent_sets():
    to = MmdTo(_points(300, 2, 0), gaussian(1.0))
    sets = [to.measured(_points(200, 2, 1 + seed, 0.5)) for seed in range(60)]
    spread = torch.tensor([found.value for found in sets]).std().item()
    assert sets[0].standard_error == pytest.approx(spread, rel=0.3)
