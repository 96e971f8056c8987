"""Samplers against the flow maps and distributions that they must give."""

import pytest
import torch

from mfd_cli import samplers
from mfd_cli.flow import time_grid

MEAN, DEVIATION = 0.5, 0.6


def arrival(x, s, t):
    """psi_{s -> t} of N(MEAN, DEVIATION^2)."""
    spread = [((1 - time) ** 2 + time**2 * DEVIATION**2) ** 0.5 for time in (s, t)]
    return t * MEAN + spread[1] / spread[0] * (x - s * MEAN)


def average(x, s, t):
    return (arrival(x, s[:, None], t[:, None]) - x) / (t - s)[:, None]


def consistent(x, s):
    return average(x, s, torch.ones_like(s))


@pytest.fixture
def noise():
    return torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 1.0), (7, 3.0)])
def test_a_flow_map_arrives_on_any_grid(noise, steps, shift):
    found = samplers.sample("flow-map", average, noise, time_grid(steps, shift))
    torch.testing.assert_close(found, MEAN + DEVIATION * noise)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_renoising_keeps_the_distribution(noise, steps):
    fresh = [torch.randn(noise.shape, generator=torch.Generator().manual_seed(point)) for point in range(steps)]
    found = samplers.sample("renoise", consistent, noise, time_grid(steps), fresh=lambda point: fresh[point])
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(DEVIATION, abs=0.02)
    if steps > 1:  # and forgets where it began
        assert abs(torch.corrcoef(torch.stack([found[:, 0], noise[:, 0]]))[0, 1]) < 0.98


def test_renoising_up_to_a_point_is_noised_data_there(noise):
    grid = time_grid(4)
    found = samplers.renoised(consistent, noise, grid, fresh=lambda point: torch.zeros_like(noise), stop=2)
    torch.testing.assert_close(found.mean(), torch.tensor(0.5 * MEAN), atol=0.02, rtol=0)
    torch.testing.assert_close(samplers.renoised(consistent, noise, grid, stop=0), noise)


@pytest.mark.parametrize("kind", samplers.SAMPLERS)
def test_one_step_is_noise_plus_velocity(noise, kind):
    def field(x, s, t=None):
        assert bool((s == 0).all()) and (t is None or bool((t == 1).all()))
        return 2 * x + 1

    torch.testing.assert_close(samplers.sample(kind, field, noise, time_grid(1)), 3 * noise + 1)


def test_velocities_are_told_the_times_they_are_told():
    asked = []

    def field(x, t):
        asked.append(float(t[0]))
        return x

    noise = torch.zeros(2, 1)
    for kind in ("euler", "renoise"):
        samplers.sample(
            kind, field, noise, time_grid(2), told=torch.tensor([0.25, 0.5, 1.0]), fresh=lambda point: noise
        )
    assert asked == [0.25, 0.5] * 2


def test_refusals(noise):
    with pytest.raises(ValueError, match="fresh noise"):
        samplers.sample("renoise", consistent, noise, time_grid(2))
    with pytest.raises(ValueError, match="there are euler, flow-map, renoise"):
        samplers.sample("ddim", consistent, noise, time_grid(2))
