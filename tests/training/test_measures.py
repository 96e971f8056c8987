"""What guards measure, against closed forms and naive second computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfd_cli.training.measures import duplicates, fingerprint, gaussian_loss, variances


def samples(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(seed)) * 2 + 100


def test_variances_are_those_of_the_batch() -> None:
    batch = samples(50)
    expected = batch.double().flatten(1).var(dim=0)
    found = variances(batch)
    assert found is not None and found.shape == (6,)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert variances(batch[:1]) is None


def test_variances_over_processes_are_those_of_all_samples() -> None:
    mine, other = samples(20), samples(20, seed=1)
    flat = other.double().flatten(1)
    theirs = torch.cat([torch.tensor([20.0], dtype=torch.float64), flat.sum(0), flat.square().sum(0)])
    found = variances(mine, lambda value: value + theirs)
    assert found is not None
    torch.testing.assert_close(found, torch.cat([mine, other]).double().flatten(1).var(dim=0), rtol=1e-9, atol=0)


def test_one_sample_in_each_process_is_enough() -> None:
    one = torch.tensor([[1.0]])
    found = variances(one, lambda value: value + torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64))
    assert found is not None and float(found) == pytest.approx(2.0)  # of 1 and 3


@pytest.mark.parametrize("variance", [0.01, 0.25, 1.0, 9.0])
def test_the_gaussian_loss_over_uniform_times_is_half_pi_times_the_deviation(variance: float) -> None:
    times = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    loss = float(gaussian_loss(torch.tensor([variance], dtype=torch.float64), times))
    assert loss == pytest.approx(math.pi / 2 * math.sqrt(variance), rel=1e-4)


def test_the_gaussian_loss_is_that_of_a_least_squares_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    data = 3 + 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    for t in (0.1, 0.6, 0.9):
        point, wanted = (1 - t) * noise + t * data, data - noise
        design = torch.stack([point, torch.ones_like(point)], dim=1)
        fit = torch.linalg.lstsq(design, wanted[:, None]).solution
        left = float((design @ fit - wanted[:, None]).square().mean())
        assert float(gaussian_loss(torch.tensor([0.25]), torch.tensor([t]))) == pytest.approx(left, rel=0.02)


def test_samples_that_do_not_vary_leave_nothing_to_know() -> None:
    assert float(gaussian_loss(torch.zeros(2), torch.tensor([0.0, 0.5, 1.0]))) == 0


def test_duplicates_are_counted_whatever_the_scale() -> None:
    batch = samples(40)
    batch[1], batch[2] = batch[0], batch[3]
    for scale in (1.0, 1e-4):
        scaled = (batch - 100) * scale
        assert float(duplicates(scaled, scaled.double().flatten(1).var(dim=0))) == pytest.approx(4 / 40)
    constant = torch.full((5, 2), 7.0)
    assert float(duplicates(constant, torch.zeros(2))) == 1


def test_a_fingerprint_changes_with_any_weight() -> None:
    layer = torch.nn.Linear(4, 3)
    before = fingerprint(list(layer.parameters()))
    assert fingerprint(list(layer.parameters())) == before
    with torch.no_grad():
        layer.bias[0] += 1e-6
        layer.weight[0, 0] -= 1e-6
    assert fingerprint(list(layer.parameters())) != before
