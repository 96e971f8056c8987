"""Students of several steps: what is sampled, and where its gradient goes."""

import pytest
import torch

from mfd_cli.flow import time_grid, told_times
from mfd_cli.methods.base import Batch
from mfd_cli.seeds import Stream


class Field:
    """v(x, t) = w_k at the k-th time of the grid, plus c x."""

    def __init__(self, told, slope=0.0):
        self.told, self.slope, self.asked = told, slope, []
        self.weights = torch.linspace(0.5, 2, len(told) - 1).requires_grad_(True)

    def __call__(self, x, t):
        step = int((self.told[:-1] - t[0]).abs().argmin())
        self.asked.append((float(t[0]), torch.is_grad_enabled()))
        return self.weights[step] + self.slope * x

    def rows(self, index):
        return self


def batch(field, grid, update=0, told=None, **more):
    return Batch(Stream(0, update, 0, 3), (2,), grid, field, None, None, told=told, **more)


def test_one_step_samples_what_the_chain_samples():
    grid = time_grid(4, 3.0)
    chain, one = (batch(Field(grid, 0.3), grid, one_step=each).generate() for each in (False, True))
    torch.testing.assert_close(one, chain)


def test_the_chains_gradient_reaches_every_step():
    grid = time_grid(4, 3.0)
    field = Field(grid)
    batch(field, grid).generate().mean().backward()
    torch.testing.assert_close(field.weights.grad, grid.diff())
    assert [grad for _, grad in field.asked] == [True] * 4


def test_one_step_evaluates_each_once_and_one_with_gradient():
    grid = time_grid(4, 3.0)
    field = Field(grid, 0.3)
    batch(field, grid, one_step=True).generate().mean().backward()
    assert len(field.asked) == 4 and sum(grad for _, grad in field.asked) == 1
    assert int((field.weights.grad != 0).sum()) == 1
    torch.testing.assert_close(field.weights.grad.sum(), torch.tensor(1.0))


def test_one_step_is_the_chain_in_expectation_where_steps_do_not_touch_each_other():
    grid, draws = time_grid(3, 2.0), 2000
    total = torch.zeros(3)
    for update in range(draws):
        field = Field(grid)
        batch(field, grid, update, one_step=True).generate().mean().backward()
        total += field.weights.grad
    # a share of draws: four standard errors of a binomial at most
    torch.testing.assert_close(total / draws, grid.diff(), atol=4 * 0.5 / draws**0.5, rtol=0)


def test_the_step_is_the_same_in_every_part_and_process():
    grid = time_grid(4)
    chosen = []
    for first in (0, 8, 64):
        field = Field(grid)
        part = Batch(Stream(0, 5, first, 3), (2,), grid, field, None, None, one_step=True)
        part.generate().mean().backward()
        chosen.append(int(field.weights.grad.argmax()))
    assert len(set(chosen)) == 1


@pytest.mark.parametrize("one_step", [False, True])
def test_the_network_is_told_its_own_times(one_step):
    grid = time_grid(4)
    told = told_times(grid, 0.001)
    field = Field(told)
    batch(field, grid, told=told, one_step=one_step).generate()
    assert [t for t, _ in field.asked] == pytest.approx([0.001, 0.25075, 0.5005, 0.75025])
