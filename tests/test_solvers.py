"""Solvers against closed forms: order, average velocity, intervals of each row, exact counts of evaluations."""

import math
from itertools import pairwise

import pytest
import torch

from mfd_cli.flow import time_grid
from mfd_cli.solvers import EVALUATIONS_PER_STEP, RULES, integrate, integrate_grid, steps_for
from teachers.gmm import MixtureField

ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2}
MEAN, DEVIATION = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.5


def gaussian():
    return MixtureField(MEAN[None], torch.tensor([DEVIATION], dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def spread(t):
    return ((1 - t) ** 2 + t**2 * DEVIATION**2).sqrt()[:, None]


def flow_map(x, s, t):
    """psi_{s->t}(x) = t mu + tau(t)/tau(s) (x - s mu)."""
    s, t = s.double(), t.double()
    return t[:, None] * MEAN + spread(t) / spread(s) * (x - s[:, None] * MEAN)


def ring():
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    return MixtureField(means, torch.full((8,), 0.6, dtype=torch.float64), torch.full((8,), 0.125, dtype=torch.float64))


def points(rows, seed=0):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(*values):
    return torch.tensor(values, dtype=torch.float32)


class Counting:
    """A field that counts the rows it is asked for, and whose every row has a rate of its own: du/dx = rate."""

    def __init__(self, rate, log=None):
        self.rate, self.log = rate, [] if log is None else log

    def __call__(self, x, t):
        assert len(x) == len(t) == len(self.rate), "condition, times and states have to stay together"
        self.log.append(len(x))
        return self.rate[:, None] * x

    def rows(self, index):
        return Counting(self.rate[index], self.log)


def slope(errors):
    return min(math.log2(coarse / fine) for coarse, fine in pairwise(errors))


@pytest.mark.parametrize("rule", RULES)
def test_order_of_convergence_on_the_gaussian_flow_map(rule):
    x, s, t = points(16), times(*[0.125] * 16), times(*[0.875] * 16)  # times and steps are exact in float32
    exact = flow_map(x, s, t)
    errors = [float((integrate(gaussian(), x, s, t, rule=rule, steps=n).end - exact).norm()) for n in (16, 32, 64)]
    assert ORDER[rule] - 0.25 < slope(errors) < ORDER[rule] + 1.2
    assert errors[-1] < {1: 0.1, 2: 5e-3, 4: 1e-6}[ORDER[rule]]


@pytest.mark.parametrize("rule", RULES)
def test_order_of_convergence_on_a_mixture(rule):
    x, s, t = points(16), times(*[0.125] * 16), times(*[0.625] * 16)
    exact = integrate(ring(), x, s, t, rule="rk4", steps=512).end
    errors = [float((integrate(ring(), x, s, t, rule=rule, steps=n).end - exact).norm()) for n in (32, 64, 128)]
    assert slope(errors) > ORDER[rule] - 0.3


@pytest.mark.parametrize("rule", RULES)
def test_average_velocity_against_the_closed_form(rule):
    x = points(4)
    s, t = times(0.0, 0.2, 0.5, 0.3), times(1.0, 0.9, 0.6, 0.3001)
    result = integrate(gaussian(), x, s, t, rule=rule, steps=200)
    exact = (flow_map(x, s, t) - x) / (t.double() - s.double())[:, None]
    torch.testing.assert_close(result.average_velocity, exact, atol={1: 0.05}.get(ORDER[rule], 2e-3), rtol=0)
    span = (t - s).double()[:, None]
    torch.testing.assert_close(x + span * result.average_velocity, result.end, atol=1e-7, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", [{"step_size": 0.07}, {"steps": 3}])
def test_rows_of_a_batch_are_those_computed_one_by_one(rule, how):
    generator = torch.Generator().manual_seed(3)
    pair = torch.rand(12, 2, generator=generator).sort(dim=1).values
    s, t, x, rate = pair[:, 0], pair[:, 1], points(12), torch.linspace(-2, 2, 12, dtype=torch.float64)
    t[4] = s[4]
    batch = integrate(Counting(rate), x, s, t, rule=rule, **how)
    for row in range(12):
        one = slice(row, row + 1)
        single = integrate(Counting(rate[one]), x[one], s[one], t[one], rule=rule, **how)
        torch.testing.assert_close(batch.end[one], single.end, atol=1e-12, rtol=0)
        torch.testing.assert_close(batch.average_velocity[one], single.average_velocity, atol=1e-12, rtol=0)
        assert int(batch.evaluations[row]) == int(single.evaluations)


@pytest.mark.parametrize("rule", RULES)
def test_evaluations_are_counted_exactly_and_finished_rows_cost_nothing(rule):
    s, t = times(0.0, 0.5, 0.25, 0.9), times(0.1, 0.5, 0.75, 1.0)
    field = Counting(torch.ones(4, dtype=torch.float64))
    result = integrate(field, points(4), s, t, rule=rule, step_size=0.1)
    assert result.evaluations.tolist() == [steps * EVALUATIONS_PER_STEP[rule] for steps in (1, 1, 5, 1)]
    assert sum(field.log) == int(result.evaluations.sum())
    assert field.log == [4] * EVALUATIONS_PER_STEP[rule] + [1] * 4 * EVALUATIONS_PER_STEP[rule]


@pytest.mark.parametrize(
    ("length", "size", "steps"),
    [(0.2, 0.02, 10), (1.0, 0.02, 50), (0.06, 0.02, 3), (0.0601, 0.02, 4), (0.0, 0.02, 1), (1e-6, 0.02, 1), (1, 1, 1)],
)
def test_number_of_steps(length, size, steps):
    for start in (0.0, 0.1, 0.37):
        if start + length <= 1:
            assert steps_for(times(start), times(start + length), size).tolist() == [steps]


def test_mean_number_of_steps_at_sorted_uniform_times():
    pair = torch.rand(20000, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    counts = steps_for(pair[:, 0], pair[:, 1], 0.02).double()
    assert abs(float(counts.mean()) - 17.2) < 0.3
    assert abs(float((counts == 1).double().mean()) - 0.039) < 0.006


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_interval_gives_the_field_itself(rule):
    x, s = points(8).float(), torch.full((8,), 0.3)
    result = integrate(ring(), x, s, s, rule=rule, step_size=0.02)
    torch.testing.assert_close(result.average_velocity, ring()(x, s), atol=1e-5, rtol=1e-5)
    assert torch.equal(result.end, x)


@pytest.mark.parametrize("rule", RULES)
def test_a_tiny_interval_does_not_cancel_in_float32(rule):
    x, s = points(64).float(), torch.full((64,), 0.3)
    result = integrate(gaussian(), x, s, s + 1e-6, rule=rule, steps=4)
    assert float((result.average_velocity - gaussian()(x, s)).abs().max()) < 1e-4


def test_states_are_kept_in_float32_when_the_input_is_half():
    x, s = points(4).to(torch.bfloat16), torch.zeros(4)
    result = integrate(lambda x, t: torch.ones_like(x), x, s, s + 1, steps=2)
    assert result.end.dtype == result.average_velocity.dtype == torch.float32


def test_a_grid_takes_its_own_steps():
    grid, x = time_grid(10, shift=3.0), points(5)
    result = integrate_grid(gaussian(), x, grid)
    state = x
    for now, after in pairwise(grid):
        state = state + (after - now) * gaussian()(state, now.expand(5))
    torch.testing.assert_close(result.end, state, atol=1e-6, rtol=0)
    assert result.evaluations.tolist() == [10] * 5
    torch.testing.assert_close(result.average_velocity, result.end - x, atol=1e-6, rtol=0)


def test_one_step_is_noise_plus_velocity():
    z = points(5).float()
    v = gaussian()(z, torch.zeros(5))
    torch.testing.assert_close(integrate_grid(gaussian(), z, time_grid(1)).end, z + v)


@pytest.mark.parametrize("rule", ["euler", "midpoint", "heun", "ab2"])
def test_order_on_a_grid_of_unequal_steps(rule):
    """Two-step Adams and Bashforth keep their order only if the ratio of steps is used."""
    x = points(16)
    exact = x * math.exp(math.sin(2) / 2)

    def field(x, t):
        return torch.cos(2 * t.double())[:, None] * x

    def uneven(n):
        """Steps of lengths 1 and 3 in turn: on a smooth grid neighbours are alike and hide a missing ratio."""
        lengths = torch.tensor([1.0, 3.0]).repeat(n // 2)
        return torch.cat([torch.zeros(1), lengths.cumsum(0)]) / lengths.sum()

    errors = [float((integrate_grid(field, x, uneven(n), rule=rule).end - exact).norm()) for n in (32, 64, 128)]
    assert slope(errors) > ORDER[rule] - 0.3


def test_gradients_flow_through_a_chain_of_steps():
    x = points(3).requires_grad_(True)
    integrate_grid(Counting(torch.ones(3, dtype=torch.float64)), x, time_grid(4)).end.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1.25**4))


def test_an_empty_batch():
    result = integrate(gaussian(), points(0), torch.zeros(0), torch.ones(0), step_size=0.1)
    assert result.end.shape == (0, 2) and result.evaluations.shape == (0,)


@pytest.mark.parametrize(
    "how", [{}, {"steps": 2, "step_size": 0.1}, {"steps": 0}, {"steps": -1}, {"step_size": 0.0}, {"step_size": -0.1}]
)
def test_bad_arguments_are_refused(how):
    with pytest.raises(ValueError, match="steps or step_size"):
        integrate(gaussian(), points(2), torch.zeros(2), torch.ones(2), **how)
