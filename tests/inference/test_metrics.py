"""Metrics against closed forms and a second implementation."""

import math

import pytest
import torch

from mfd_cli.inference.metrics import (
    Moments,
    class_agreement,
    directions,
    frechet_between,
    frechet_distance,
    mode_members,
    mode_shares,
    moments,
    redrawn,
    share_error,
    sliced_wasserstein,
    sorted_projections,
    standard_error,
    symmetric_root,
)


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
    linalg = pytest.importorskip("scipy.linalg")
    x, y = _normal(200, 6, 0) @ _normal(6, 6, 1), _normal(150, 6, 2) @ _normal(6, 6, 3) + 1
    a, b = moments(x), moments(y)
    root = linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
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


def test_mode_shares_of_placed_points():
    means, deviations = torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([1.0, 0.5])
    samples = torch.tensor([[0.0, 2.9], [0.0, 3.1], [10.0, 1.4], [10.0, 1.6], [0.1, 0.0]])
    assert mode_members(samples, means, deviations).tolist() == [0, -1, 1, -1, 0]
    shares = mode_shares(samples, means, deviations)
    assert shares.shares.tolist() == pytest.approx([0.4, 0.2]) and shares.inside == pytest.approx(0.6)
    assert mode_shares(samples, means, deviations, radius=4).inside == 1


def test_a_lost_mode_has_share_zero():
    shares = mode_shares(torch.zeros(4, 2), torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, 9.0]]), torch.ones(3))
    assert shares.shares.tolist() == [1, 0, 0]


def test_class_agreement():
    assert class_agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.75
    with pytest.raises(ValueError, match="2"):
        class_agreement(torch.tensor([1, 2]), torch.tensor([1]))


def test_bootstrap_error_of_a_mean_is_its_closed_form():
    x = _normal(2000, 1, 0)[:, 0]
    found = standard_error(lambda drawn: x[drawn].mean().item(), len(x), resamples=200)
    assert found == pytest.approx(x.std().item() / math.sqrt(len(x)), rel=0.2)
    hits = (x > 0.5).double()
    found = standard_error(lambda drawn: hits[drawn].mean().item(), len(x), resamples=200)
    assert found == pytest.approx(share_error(hits.mean().item(), len(x)), rel=0.2)


def test_bootstrap_error_of_frechet_is_the_spread_over_independent_sets():
    reference = Moments(torch.zeros(4).double(), torch.eye(4).double())
    root = symmetric_root(reference.covariance)
    sets = [1.5 * _normal(500, 4, seed) + 0.5 for seed in range(60)]
    spread = torch.tensor([frechet_between(moments(x), reference, root) for x in sets]).std().item()
    found = standard_error(lambda drawn: frechet_between(moments(sets[0][drawn]), reference, root), 500, resamples=60)
    assert found == pytest.approx(spread, rel=0.35)


def test_redrawn_projections_are_those_of_the_drawn_samples():
    x, along = _normal(30, 3, 0), directions(7, 3)
    drawn = torch.randint(30, (30,), generator=torch.Generator().manual_seed(1))
    ordered = (along @ x.T).sort(dim=1)
    torch.testing.assert_close(redrawn(ordered.values, ordered.indices, drawn), sorted_projections(x[drawn], along))
