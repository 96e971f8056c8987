"""Precision, recall, density and coverage against their definitions written as loops."""

import pytest
import torch

from mfd_cli.metrics.neighbours import precision_recall, radii


def _points(num, dimension, seed, shift=0.0):
    return torch.randn(num, dimension, generator=torch.Generator().manual_seed(seed)).double() + shift


def _distance(a, b):
    return (a - b).square().sum().sqrt().item()


def _naive_radii(points, k):
    return [sorted(_distance(a, b) for j, b in enumerate(points) if j != i)[k - 1] for i, a in enumerate(points)]


def _naive(real, made, k):
    of_real, of_made = _naive_radii(real, k), _naive_radii(made, k)
    balls = [[_distance(x, y) <= r for x, r in zip(real, of_real, strict=True)] for y in made]
    return {
        "precision": sum(any(row) for row in balls) / len(made),
        "recall": sum(any(_distance(x, y) <= r for y, r in zip(made, of_made, strict=True)) for x in real) / len(real),
        "density": sum(sum(row) for row in balls) / (k * len(made)),
        "coverage": sum(any(row[i] for row in balls) for i in range(len(real))) / len(real),
    }


@pytest.mark.parametrize(("k", "shift"), [(1, 0.0), (3, 1.0), (5, 0.3)])
def test_the_four_figures_are_their_definitions(k, shift):
    real, made = _points(23, 3, 0), _points(31, 3, 1, shift)
    found, expected = precision_recall(real, made, k), _naive(real, made, k)
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(expected, rel=1e-12)
    assert all(figure.more_is_better for figure in found.values())


def test_radii_leave_the_point_itself_out_even_if_it_stands_twice():
    points = torch.tensor([[0.0], [0.0], [1.0], [4.0]])
    assert radii(points, 1).tolist() == [0, 0, 1, 3]
    assert radii(points, 2).tolist() == [1, 1, 1, 4]


def test_radii_in_blocks_are_those_of_the_whole():
    points = _points(1100, 2, 3)
    whole = torch.cdist(points, points).sort(1).values[:, 4]
    torch.testing.assert_close(radii(points, 4), whole, rtol=1e-6, atol=1e-9)


def test_the_same_distribution_is_precise_and_covers_and_a_distant_one_is_not():
    real = _points(400, 2, 0)
    same, apart = precision_recall(real, _points(400, 2, 1), 5), precision_recall(real, _points(400, 2, 1, 50.0), 5)
    assert min(same[name].value for name in same) > 0.85
    assert same["density"].value == pytest.approx(1, abs=0.15)
    assert {figure.value for figure in apart.values()} == {0}


def test_errors_of_precision_and_density_are_over_generated_samples():
    real, made = _points(50, 2, 0), _points(80, 2, 1, 1.0)
    found = precision_recall(real, made, 3)
    share = found["precision"].value
    assert found["precision"].standard_error == pytest.approx((share * (1 - share) / 80) ** 0.5)
    share = found["recall"].value
    assert found["recall"].standard_error == pytest.approx((share * (1 - share) / 50) ** 0.5)
