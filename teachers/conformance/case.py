"""What every check works on: a loaded teacher, inputs to try it on, and how its answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from teachers import base, conditions
from teachers.base import Data, Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError

CHUNK = 64  # rows of one call
FEW = 6  # rows of the checks that compare single outputs
OWN_STEPS = 50  # Euler steps to the teacher's own samples, where there are no real ones
UNSTEADY = "not checked: two equal calls differ"


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        name: short name of the check.
        passed: None if it does not apply, or cannot be told because of another finding.
        what: what was measured.
        contract: the line of the contract that is kept or broken.
    """

    name: str
    passed: bool | None
    what: str
    contract: str


class Path(NamedTuple):
    """X_t and X_1 - X_0 of every row, and what X_1 is."""

    x: Tensor
    target: Tensor
    kind: str


class Case:
    """A teacher with the inputs that it is tried on: `samples` rows of noise, times and conditions."""

    def __init__(self, teacher: Teacher, data: Data, seed: int, samples: int) -> None:
        if teacher.network is None:
            raise TeacherError("the teacher has no network", do="load it first: `load` must set `network`")
        self.teacher, self.data, self.network, self.seed = teacher, data, teacher.network, seed
        held = next(chain(self.network.parameters(), self.network.buffers()), torch.empty(0))
        self.device = held.device
        #: largest difference, relative to the largest value, that rounding may make
        self.tolerance = 3e-2 if held.dtype in (torch.float16, torch.bfloat16) else 1e-3
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(samples, *teacher.sample_shape, generator=generator).to(self.device)
        self._source = torch.randn(samples, *teacher.sample_shape, generator=generator).to(self.device)
        self.t = torch.rand(samples, generator=generator).to(self.device)
        size = data.size
        self.items = torch.arange(samples) if size is None else torch.arange(samples) * max(1, size // samples) % size
        self.condition = conditions.to(data.condition(self.items), self.device)
        self.steady = True
        self._start: nn.Module | None = None
        self._path: Path | None = None

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        """The adapter's velocity in float32, a chunk at a time."""
        parts = [
            self.teacher.velocity(network or self.network, x[part], t[part], conditions.rows(condition, part))
            for part in (slice(first, first + CHUNK) for first in range(0, len(x), CHUNK))
        ]
        return torch.cat(parts).float()

    def few(self, rows: int = FEW) -> tuple[Tensor, Tensor, Condition]:
        """The first rows of noise, times and condition."""
        return self.noise[:rows], self.t[:rows], conditions.rows(self.condition, slice(0, rows))

    def own_samples(self, rows: int, steps: int) -> Tensor:
        """States at t = 1 by Euler steps of the unguided teacher, from noise that is used for nothing else."""
        condition = self.few(rows)[2]
        x = self._source[:rows]
        for step in range(steps):
            x = x + self.velocity(x, torch.full((len(x),), step / steps, device=self.device), condition) / steps
        return x

    def path(self) -> Path:
        """Points of the straight paths of all rows, made once."""
        if self._path is None:
            try:
                data, kind = self.data.states(self.items).to(self.device), "real samples"
            except TeacherError:
                data, kind = self.own_samples(len(self.noise), OWN_STEPS), "the teacher's own samples"
            time = self.t.reshape(-1, *(1,) * (data.dim() - 1))
            self._path = Path((1 - time) * self.noise + time * data, data - self.noise, kind)
        return self._path

    def start(self) -> nn.Module:
        """A network to train, made once."""
        if self._start is None:
            self._start = self.teacher.initial_network(self.seed)
        return self._start

    def differ(self, first: Tensor, second: Tensor) -> float:
        """Largest difference relative to the largest value, over the tolerance: above 1 is more than rounding."""
        scale = max(float(second.abs().max()), 1e-6) * self.tolerance
        return float((first - second).abs().max()) / scale


class Check(NamedTuple):
    """One check.

    Attributes:
        run: gives its findings; the first that is broken is the one to mend first.
        name: what an exception in it is reported as.
        member: of `Teacher`, whose words an exception breaks.
    """

    run: Callable[[Case], Iterator[Finding]]
    name: str
    member: str


def contract(member: str) -> str:
    """The contract's own words: the first line of a docstring of `Teacher`, or of its module's convention."""
    if member == "convention":
        return "teachers.base: t = 0 is noise, t = 1 is data, X_t = (1 - t) X_0 + t X_1, u = X_1 - X_0"
    return f"Teacher.{member}: {(getattr(base.Teacher, member).__doc__ or '').splitlines()[0]}"
