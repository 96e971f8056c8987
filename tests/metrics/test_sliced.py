"""Sliced Wasserstein distance against closed forms and a second implementation."""

import math

import pytest
import torch

from mfd_cli.metrics.sliced import directions, redrawn, sliced_wasserstein, sorted_projections


def _normal(num: int, dimension: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sliced_wasserstein_of_a_shifted_set_is_the_mean_projected_shift():
    x, shift = _normal(400, 3, 0), torch.tensor([1.0, -2.0, 0.5]).double()
    along = directions(64, 3, seed=5)
    expected = (along @ shift).square().mean().sqrt().item()
    assert sliced_wasserstein(x, x + shift, count=64, seed=5) == pytest.approx(expected, rel=1e-10)


def test_sliced_wasserstein_is_near_its_expectation_over_directions():
    x = _normal(10, 2, 0)
    found = sliced_wasserstein(x, x + torch.tensor([3.0, 0.0]), count=4096)
    assert found == pytest.approx(3 / math.sqrt(2), rel=0.03)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_unequal_sizes_equal_the_sets_repeated_to_a_common_size(p):
    x, y = _normal(6, 4, 0), _normal(10, 4, 1)
    repeated = sliced_wasserstein(x.repeat(5, 1), y.repeat(3, 1), count=40, p=p)
    assert sliced_wasserstein(x, y, count=40, p=p) == pytest.approx(repeated, rel=1e-12)


def test_sliced_wasserstein_by_hand_for_two_against_three_points():
    # quantile functions differ by 0, 1, 1 and 2 on [0, 1/3], [1/3, 1/2], [1/2, 2/3], [2/3, 1]; |direction| is 1
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0], [4.0]])
    expected = math.sqrt(0 / 3 + 1 / 6 + 1 / 6 + 4 / 3)
    assert sliced_wasserstein(x, y, count=8) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_in_parts_of_directions_is_the_whole():
    x, y = _normal(20, 3, 0), _normal(20, 3, 1)
    along = directions(70, 3)
    naive = ((along @ x.T).sort(1).values - (along @ y.T).sort(1).values).square().mean().sqrt().item()
    assert sliced_wasserstein(x, y, count=70) == pytest.approx(naive, rel=1e-12)


def test_directions_are_unit_vectors_named_by_the_seed():
    torch.testing.assert_close(directions(9, 5).norm(dim=1), torch.ones(9).double())
    assert torch.equal(directions(9, 5, 1), directions(9, 5, 1))
    assert not torch.equal(directions(9, 5, 1), directions(9, 5, 2))


def test_redrawn_projections_are_those_of_the_drawn_samples():
    x, along = _normal(30, 3, 0), directions(7, 3)
    drawn = torch.randint(30, (30,), generator=torch.Generator().manual_seed(1))
    ordered = (along @ x.T).sort(dim=1)
    torch.testing.assert_close(redrawn(ordered.values, ordered.indices, drawn), sorted_projections(x[drawn], along))
