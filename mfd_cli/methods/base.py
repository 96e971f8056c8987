"""The contract of a distillation method: losses from velocity fields, nothing else.

A method sees fields and noise, never networks, optimizers or devices. The loop asks for `auxiliary_loss`
`aux_updates` times and then for `student_loss` once; each call is given a fresh `Batch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.seeds import Stream
from mfd_cli.solvers import integrate_grid
from teachers.guidance import VelocityField
from teachers.settings import Settings


class MethodSettings(Settings):
    """What every method accepts; a method adds its own keys by subclassing."""

    aux_updates: int = Field(
        10, ge=1, description="Auxiliary updates before each student update (the paper's 10:1); more track better."
    )


@dataclass(frozen=True)
class Batch:
    """What one loss is computed from.

    Attributes:
        random: noise and times of this update, one row per sample.
        shape: shape of one state X_t.
        grid: the student's schedule, times [N + 1] from 0 to 1.
        student: the student's velocity field, unguided, with gradient where the loop wants it.
        auxiliary: the auxiliary's velocity field, unguided.
        teacher: the teacher's velocity field, guided as the recipe says, never with gradient.
        told: times that the student is told along `grid`; `grid` itself if None.
        one_step: whether the gradient flows through one step of several instead of the whole chain.
    """

    random: Stream
    shape: tuple[int, ...]
    grid: Tensor
    student: VelocityField
    auxiliary: VelocityField
    teacher: VelocityField
    told: Tensor | None = None
    one_step: bool = False

    def generate(self) -> Tensor:
        """The student's samples X_1 = G(z) [B, *shape]: N Euler steps from fresh noise, one step being z + v(z, 0).

        With `one_step`, X_1 has the same value, but of its velocities only that of one step k carries a gradient. k is
        drawn in proportion to the steps' lengths and the gradient divided by that probability, so that in expectation
        every step is moved along its own length; how it changes the steps after it is left out.
        """
        noise = self.random.normal("z", self.shape)
        if not (self.one_step and len(self.grid) > 2 and torch.is_grad_enabled()):
            return integrate_grid(self.student, noise, self.grid, told=self.told).end
        return self._through_one_step(noise)

    def _through_one_step(self, state: Tensor) -> Tensor:
        told = (self.grid if self.told is None else self.told).to(state.device)
        lengths = self.grid.diff().to(state.device)
        drawn = self.random.shared("gradient step")  # one for the whole batch, on every process
        chosen = min(int((lengths.cumsum(0) / lengths.sum() <= drawn).sum()), len(lengths) - 1)
        carrier = state
        for step, length in enumerate(lengths):
            with torch.set_grad_enabled(step == chosen):
                velocity = self.student(state, told[step].expand(len(state)))
            state = state + length * velocity.detach()
            carrier = velocity if step == chosen else carrier
        return state + lengths.sum() * (carrier - carrier.detach())


@dataclass(frozen=True)
class Loss:
    """A loss and what is worth knowing about it.

    Attributes:
        value: scalar to descend.
        report: the scalar to show as the loss, where `value` itself means nothing; `value` if None.
        times: the times it was computed at, [B] or [B, 2], for the report of a value that is not finite.
    """

    value: Tensor
    report: Tensor | None = None
    times: Tensor | None = None

    @property
    def shown(self) -> Tensor:
        """The scalar to show."""
        return self.value if self.report is None else self.report


class Method(ABC):
    """A distillation method with its settings."""

    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def auxiliary_loss(self, batch: Batch) -> Loss:
        """Loss of the auxiliary flow; gradients may reach the auxiliary alone."""

    @abstractmethod
    def student_loss(self, batch: Batch) -> Loss:
        """Loss of the student; gradients may reach the student alone."""
