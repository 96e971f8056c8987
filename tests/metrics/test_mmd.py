"""MMD against its sums written out."""

import itertools
import math

import pytest
import torch

from mfd_cli.metrics.mmd import MmdTo, median_distance, mmd_squared


def _points(num, dimension, seed, shift=0.0):
    return torch.randn(num, dimension, generator=torch.Generator().manual_seed(seed)).double() + shift


def _kernel(a, b, bandwidth):
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * bandwidth**2))


def _naive(x, y, bandwidth):
    x, y = x.tolist(), y.tolist()
    within = [
        sum(_kernel(a, b, bandwidth) for a, b in itertools.permutations(points, 2)) / (len(points) * (len(points) - 1))
        for points in (x, y)
    ]
    across = sum(_kernel(a, b, bandwidth) for a in x for b in y) / (len(x) * len(y))
    return sum(within) - 2 * across


def test_mmd_is_its_sums_written_out():
    x, y = _points(13, 3, 0), _points(17, 3, 1, 0.4)
    assert mmd_squared(x, y, 0.8) == pytest.approx(_naive(x, y, 0.8), rel=1e-9)


def test_the_estimate_is_unbiased_so_it_is_negative_half_of_the_time():
    found = torch.tensor([mmd_squared(_points(30, 2, 2 * s), _points(30, 2, 2 * s + 1), 1.0) for s in range(60)])
    assert 10 < (found < 0).sum() < 50
    assert abs(found.mean().item()) < 3 * found.std().item() / 60**0.5


def test_the_bandwidth_is_the_median_distance_of_the_reference():
    y = torch.tensor([[0.0], [1.0], [3.0]])
    assert median_distance(y) == 2
    assert MmdTo(y).bandwidth == 2 and MmdTo(y, 0.5).bandwidth == 0.5
    many = _points(2500, 2, 0)
    assert median_distance(many) == pytest.approx(torch.pdist(many).median().item(), rel=0.05)


def test_the_error_is_the_jackknifes():
    x, y = _points(12, 2, 0, 0.5), _points(20, 2, 1)
    without = torch.tensor([_naive(torch.cat([x[:i], x[i + 1 :]]), y, 1.3) for i in range(12)], dtype=torch.float64)
    expected = ((11 / 12) * (without - without.mean()).square().sum()).sqrt().item()
    found = MmdTo(y, 1.3).measured(x)
    assert found.standard_error == pytest.approx(expected, rel=1e-9)
    assert not found.more_is_better


def test_the_error_is_the_spread_over_independent_sets():
    to = MmdTo(_points(300, 2, 0), 1.0)
    sets = [to.measured(_points(200, 2, 1 + seed, 0.5)) for seed in range(60)]
    spread = torch.tensor([found.value for found in sets]).std().item()
    assert sets[0].standard_error == pytest.approx(spread, rel=0.3)
