"""The identities of the straight path, in float64."""

import pytest
import torch

from mfd_cli.flow import interpolate, per_row, predicted_data, predicted_noise, time_grid

B, D = 64, 3


@pytest.fixture
def path():
    generator = torch.Generator().manual_seed(0)
    noise, data = torch.randn(2, B, D, generator=generator, dtype=torch.float64)
    t = torch.rand(B, generator=generator, dtype=torch.float64)
    return noise, data, t, interpolate(noise, data, t)


def near(first, second, tolerance=1e-12):
    torch.testing.assert_close(first, second, atol=tolerance, rtol=0)


def test_ends_of_the_path(path):
    noise, data, t, _ = path
    near(interpolate(noise, data, torch.zeros_like(t)), noise)
    near(interpolate(noise, data, torch.ones_like(t)), data)


def test_the_path_moves_with_the_velocity(path):
    noise, data, t, x = path
    near(interpolate(noise, data, t + 0.1), x + 0.1 * (data - noise))


def test_one_velocity_gives_both_ends(path):
    noise, data, t, x = path
    near(predicted_data(x, data - noise, t), data)
    near(predicted_noise(x, data - noise, t), noise)


def test_identities_of_any_prediction(path):
    """u is any vector here: x = t x1hat + (1-t) x0hat and u = x1hat - x0hat hold whatever a network says."""
    _, _, t, x = path
    u = torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x1, x0, time = predicted_data(x, u, t), predicted_noise(x, u, t), t[:, None]
    near(x, time * x1 + (1 - time) * x0)
    near(u, x1 - x0)
    near(u, (x1 - x) / (1 - time), 1e-9)
    near(u, (x - x0) / time, 1e-9)
    near(-x0 / (1 - time), (time * u - x) / (1 - time), 1e-9)  # both are the score


def test_the_one_step_generator_is_the_predicted_data_of_noise():
    z, v = torch.randn(2, B, D, generator=torch.Generator().manual_seed(2))
    assert torch.equal(predicted_data(z, v, torch.zeros(B)), z + v)


@pytest.mark.parametrize("shape", [(B,), (B, D), (B, 2, 3, 4)])
def test_times_act_on_rows_of_any_shape(shape):
    x, t = torch.ones(shape), torch.arange(B, dtype=torch.float32)
    assert torch.equal((per_row(t, x) * x).reshape(B, -1)[:, 0], t)


def test_uniform_grid():
    assert time_grid(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert time_grid(1).tolist() == [0, 1]


def test_grid_of_occfm():
    expected = [0, 0.035714, 0.076923, 0.125, 0.181818, 0.25, 0.333333, 0.4375, 0.571429, 0.75, 1]
    near(time_grid(10, shift=3.0), torch.tensor(expected), 1e-6)


def test_shift_is_the_noise_level_shift_of_the_other_convention():
    """sigma' = a sigma / (1 + (a - 1) sigma) with sigma = 1 - t."""
    a, sigma = 5.0, 1 - time_grid(20).double()
    near(1 - time_grid(20, a).double(), a * sigma / (1 + (a - 1) * sigma), 1e-6)


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (-1, 1.0), (4, 0.0), (4, -2.0)])
def test_a_grid_without_steps_or_shift_is_refused(steps, shift):
    with pytest.raises(ValueError, match="steps >= 1 and shift > 0"):
        time_grid(steps, shift)
