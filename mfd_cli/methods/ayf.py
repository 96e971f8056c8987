"""Align Your Flow (Sabour et al. 2025, arXiv 2506.14603): a flow map that agrees with the teacher's flow.

f(x, s, t) = x + (t - s) u(x, s, t)
emd   Eulerian:    f does not change while x_s moves along the teacher's trajectory      (their theorem 3.2)
g = (u - u_teacher(x_s, s)) - r (t - s) du/ds ,   du/ds along dx/ds = u_teacher
lmd   Lagrangian:  f moves with the teacher's velocity where it arrives
g = (u - u_teacher(f, t)) + r (t - s) d_t u
L = |u - sg[u - g / (|g| + c)]|^2 ,   r rises from 0: with r = 0, u learns the velocity at s
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.flow import interpolate, per_row
from mfd_cli.methods.base import Batch, Loss, MethodSettings
from mfd_cli.methods.times import draw
from mfd_cli.methods.trajectories import DerivativeSettings, TangentSettings, TrajectoryMethod, step_towards
from teachers.settings import Strict


class LengthTimes(Strict):
    """Intervals by their length: t - s = sigmoid(N(mean, std)), s uniform where that fits."""

    mean: float = Field(-0.8, description="Mean of the length's logit; lower is shorter.")
    std: float = Field(1.0, gt=0, description="Standard deviation of the length's logit.")
    whole: float = Field(0.0, ge=0, le=1, description="Share of samples whose interval is [0, 1], the one-step map's.")


class AyfSettings(MethodSettings):
    """Settings of `ayf`. Cost of an update: forward and backward, a derivative, and one teacher evaluation."""

    objective: Literal["emd", "lmd"] = Field(
        "emd", description="emd: the paper's choice for images; lmd: steadier on low-dimensional data."
    )
    times: LengthTimes = Field(default=LengthTimes(), description="How s and t are drawn.")
    tangent: TangentSettings = Field(default=TangentSettings(), description="Normalisation and warm-up.")
    derivative: DerivativeSettings = Field(default=DerivativeSettings(), description="How derivatives are computed.")


class AlignYourFlow(TrajectoryMethod):
    """The student as a flow map."""

    Settings = AyfSettings
    flow_map = True
    sampler = "flow-map"

    def student_loss(self, batch: Batch) -> Loss:
        """A step against the normalised direction g."""
        noise, (s, t) = batch.random.normal("x0", batch.shape), self.intervals(batch)
        x_s = interpolate(noise, batch.real, s)
        direct = self.eulerian if self.settings.objective == "emd" else self.lagrangian
        tangent = self.settings.tangent
        direction = direct(batch, x_s, s, t, tangent.share(batch.update))
        return step_towards(batch.student(x_s, s, t), direction, tangent.normalise, torch.stack([s, t], dim=1))

    def intervals(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end times s < t, float32 [B] each."""
        times = self.settings.times
        length = draw(batch.random, "length", "logit-normal", times.mean, times.std)
        if times.whole:
            length = torch.where(batch.random.uniform("whole") < times.whole, 1.0, length)
        start = batch.random.uniform("s") * (1 - length)
        return start, start + length

    @torch.no_grad()
    def eulerian(self, batch: Batch, x_s: Tensor, s: Tensor, t: Tensor, share: float) -> Tensor:
        """G [B, ...] of the Eulerian form, its derivative term times `share`."""
        velocity = batch.teacher(x_s, s)
        found, change = self._derivatives.along_start(batch.frozen, x_s, s, t, velocity)
        return found - velocity - share * per_row(t - s, x_s) * change

    @torch.no_grad()
    def lagrangian(self, batch: Batch, x_s: Tensor, s: Tensor, t: Tensor, share: float) -> Tensor:
        """G [B, ...] of the Lagrangian form, its derivative term times `share`."""
        found, change = self._derivatives.along_end(batch.frozen, x_s, s, t)
        length = per_row(t - s, x_s)
        return found - batch.teacher(x_s + length * found, t) + share * length * change
