"""Consistency distillation (Song et al. 2023, arXiv 2303.01469), for flows.

f(x, s) = x + (1 - s) v(x, s)          the student predicts where the teacher's trajectory ends; f(x, 1) = x
discrete     E lambda |f(X_s, s) - sg f(X_s', s')|^2 ,   X_s' one step of the teacher from X_s, s < s' neighbours
continuous   s' -> s (Lu and Song 2024, arXiv 2410.11081): df/ds = 0 along the teacher's trajectory
g = (v - u_teacher) - r (1 - s) dv/ds ,   L = |v - sg[v - g / (|g| + c)]|^2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.flow import interpolate, per_row, predicted_data, time_grid
from mfd_cli.methods.base import Batch, Loss, MethodSettings
from mfd_cli.methods.times import draw
from mfd_cli.methods.trajectories import DerivativeSettings, TangentSettings, TrajectoryMethod, step_towards
from teachers.settings import Strict


class NeighbourTimes(Strict):
    """The grid whose neighbours the discrete form compares."""

    intervals: int = Field(
        48, ge=2, description="Intervals from 0 to 1: few bias the result, many spread the end's truth slowly."
    )
    shift: float = Field(5.0, gt=0, description="Time shift of the grid; above 1 moves points towards noise.")


class ContinuousTimes(Strict):
    """How the time of the continuous form is drawn."""

    type: Literal["uniform", "logit-normal"] = Field("logit-normal", description="uniform, or sigmoid(N(mean, std)).")
    mean: float = Field(0.8, description="Mean of the logit (logit-normal); above 0 is nearer to data.")
    std: float = Field(1.6, gt=0, description="Standard deviation of the logit (logit-normal).")


class ConsistencySettings(MethodSettings):
    """Settings of `cd`. Cost of an update: forward and backward, one more forward (discrete) or a derivative
    (continuous), and one teacher evaluation (heun: two).
    """

    form: Literal["discrete", "continuous"] = Field("discrete", description="Neighbours on a grid, or a derivative.")
    grid: NeighbourTimes = Field(default=NeighbourTimes(), description="The grid (discrete).")
    solver: Literal["euler", "heun"] = Field("euler", description="The teacher's step between neighbours (discrete).")
    target: Literal["student", "average"] = Field(
        "student", description="Whose prediction is copied (discrete): the student's own, or its average's (train.ema)."
    )
    weight: Literal["uniform", "interval"] = Field(
        "uniform", description="lambda (discrete): 1, or 1 / (s' - s), which counts narrow intervals more."
    )
    huber: float | None = Field(
        None, gt=0, description="c of sqrt(|d|^2 + c^2) - c instead of the square (discrete); null: the square."
    )
    times: ContinuousTimes = Field(default=ContinuousTimes(), description="Times (continuous).")
    tangent: TangentSettings = Field(
        default=TangentSettings(final=1.0), description="Normalisation and warm-up (continuous)."
    )
    derivative: DerivativeSettings = Field(default=DerivativeSettings(), description="How dv/ds is computed.")


class ConsistencyDistillation(TrajectoryMethod):
    """The student as a consistency function."""

    Settings = ConsistencySettings
    sampler = "renoise"

    def student_loss(self, batch: Batch) -> Loss:
        """The discrete or the continuous form."""
        noise = batch.random.normal("x0", batch.shape)
        return (self._discrete if self.settings.form == "discrete" else self._continuous)(batch, noise)

    def _discrete(self, batch: Batch, noise: Tensor) -> Loss:
        s, later = self.neighbours(batch)
        x_s = interpolate(noise, batch.real, s)
        with torch.no_grad():
            moved = self.teacher_step(batch, x_s, s, later)
            target = batch.average if self.settings.target == "average" else batch.frozen
            wanted = predicted_data(moved, target(moved, later), later)
        found = predicted_data(x_s, batch.student(x_s, s), s)
        squared = (found - wanted).square().flatten(1)
        c = self.settings.huber
        distance = squared.mean(dim=1) if c is None else (squared.sum(dim=1) + c**2).sqrt() - c
        if self.settings.weight == "interval":
            distance = distance / (later - s)
        return Loss(distance.mean(), squared.detach().mean(), torch.stack([s, later], dim=1))

    def neighbours(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Neighbouring times s < s' of the grid, one pair for each sample, float32 [B] each."""
        grid, count = self.settings.grid, self.settings.grid.intervals
        times = time_grid(count, grid.shift).to(batch.real.device)
        index = (batch.random.uniform("s") * count).long().clamp(max=count - 1)
        return times[index], times[index + 1]

    @torch.no_grad()
    def teacher_step(self, batch: Batch, x_s: Tensor, s: Tensor, later: Tensor) -> Tensor:
        """X_s' from X_s [B, ...] along the teacher."""
        length = per_row(later - s, x_s)
        velocity = batch.teacher(x_s, s)
        if self.settings.solver == "euler":
            return x_s + length * velocity
        return x_s + length * 0.5 * (velocity + batch.teacher(x_s + length * velocity, later))

    def _continuous(self, batch: Batch, noise: Tensor) -> Loss:
        times, tangent = self.settings.times, self.settings.tangent
        s = draw(batch.random, "s", times.type, times.mean, times.std)
        x_s = interpolate(noise, batch.real, s)
        direction = self.direction(batch, x_s, s, tangent.share(batch.update))
        return step_towards(batch.student(x_s, s), direction, tangent.normalise, s)

    @torch.no_grad()
    def direction(self, batch: Batch, x_s: Tensor, s: Tensor, share: float) -> Tensor:
        """G [B, ...] of the continuous form, its derivative term times `share`."""
        velocity = batch.teacher(x_s, s)
        end = torch.ones_like(s)
        found, change = self._derivatives.along_start(_ToTheEnd(batch.frozen), x_s, s, end, velocity)
        return found - velocity - share * per_row(1 - s, x_s) * change

    def differentiated(self, batch: Batch) -> Callable[..., Tensor] | None:
        """The student as a field of (x, s, t), in the continuous form."""
        return _ToTheEnd(batch.frozen) if self.settings.form == "continuous" else None


class _ToTheEnd:
    """A field of (x, s) as one of (x, s, t) that is told no end."""

    def __init__(self, field: Any) -> None:
        self._field, self.evaluations = field, getattr(field, "evaluations", None)

    def __call__(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self._field(x, s)
