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


class ExactMap:
    """The flow map of N(mean, deviation^2) in closed form: average velocities u(x, s, t), and what leads to data."""

    def __init__(self, mean=0.5, deviation=0.6):
        self.mean, self.deviation = mean, deviation
        self.velocity = GaussianField(mean, deviation).requires_grad_(False)

    def spread(self, t):
        return ((1 - t) ** 2 + t**2 * self.deviation**2).sqrt()

    def arrival(self, x, s, t):
        """psi_{s -> t}(x)."""
        s, t = s[:, None], t[:, None]
        return t * self.mean + self.spread(t) / self.spread(s) * (x - s * self.mean)

    def __call__(self, x, s, t):
        """(psi(x) - x) / (t - s), and the velocity where t = s."""
        wide = (t - s)[:, None]
        return torch.where(wide > 1e-6, (self.arrival(x, s, t) - x) / wide.clamp(min=1e-6), self.velocity(x, s))

    def to_data(self, x, s):
        """v(x, s) of the consistency function: x + (1 - s) v is the end of the trajectory."""
        return self(x, s, torch.ones_like(s))


class Offset(nn.Module):
    """A field plus a learned constant and a learned slope."""

    def __init__(self, field, offset=0.0, slope=0.0):
        super().__init__()
        self.field = field
        self.offset, self.slope = (nn.Parameter(torch.tensor(value)) for value in (offset, slope))

    def forward(self, x, *times):
        return self.field(x, *times) + self.offset + self.slope * x


@pytest.fixture
def exact_map():
    return ExactMap


@pytest.fixture
def map_batch():
    """A batch of real data for a student's field, its teacher the exact velocity of the same Gaussian."""

    def make(student, exact, rows, update=0):
        random = Stream(0, update, 0, rows)
        data = exact.mean + exact.deviation * random.normal("data", (1,))
        return Batch(
            random, (1,), time_grid(1), student, None, exact.velocity, data=data, frozen=student, average=student,
            update=update,
        )  # fmt: skip

    return make


@pytest.fixture
def offset():
    return Offset


@pytest.fixture
def world():
    return World


@pytest.fixture
def build():
    """A method from its class and the settings that differ from the defaults."""

    def make(kind, **settings):
        return kind(kind.Settings(type="tried", **settings))

    return make
