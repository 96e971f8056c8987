"""A one-dimensional world whose fields are exact, and batches made from it."""

import pytest
import torch
from torch import nn

from mfd_cli.flow import time_grid
from mfd_cli.methods.base import Batch
from mfd_cli.seeds import Stream


class Generator(nn.Module):
    """A student's field whose one Euler step from noise is G(z) = mean + deviation z."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.deviation = nn.Parameter(torch.tensor(deviation))

    def forward(self, x, t):
        return self.mean + (self.deviation - 1) * x


class GaussianField(nn.Module):
    """The exact velocity of N(mean, deviation^2)."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.deviation = nn.Parameter(torch.tensor(deviation))

    def forward(self, x, t):
        time = t[:, None]
        variance = self.deviation**2
        factor = (time * variance - (1 - time)) / ((1 - time) ** 2 + time**2 * variance)
        return self.mean + factor * (x - time * self.mean)


class World:
    """P = N(mean, deviation^2) is the student's distribution, Q = N(0, target^2) the teacher's."""

    def __init__(self, mean=1.0, deviation=0.5, target=1.0):
        self.student = Generator(mean, deviation)
        self.auxiliary, self.teacher = GaussianField(mean, deviation), GaussianField(0.0, target)

    def batch(self, rows, first=0, update=0, steps=1):
        random = Stream(0, update, first, rows)
        return Batch(random, (1,), time_grid(steps), self.student, self.auxiliary, self.teacher)

    def gradients(self):
        """Names of the parameters that have a gradient."""
        return {
            f"{role}.{name}"
            for role in ("student", "auxiliary", "teacher")
            for name, value in getattr(self, role).named_parameters()
            if value.grad is not None
        }


@pytest.fixture
def world():
    return World


@pytest.fixture
def build():
    """A method from its class and the settings that differ from the defaults."""

    def make(kind, **settings):
        return kind(kind.Settings(type="tried", **settings))

    return make
