"""MeanFlow (Geng et al. 2025, arXiv 2505.13447): the student's average velocity obeys the identity that defines it.

    U(x_s, s, t) = v + (t - s) dU/ds ,   dU/ds along dx/ds = v          (their equation 6 in this convention, so plus)
    L = E w |u(x_s, s, t) - sg[v + (t - s) du/ds]|^2 ,   w = sg[(|.|^2 + c)^-p]

v is the teacher's velocity (distillation), or X_1 - X_0 of the data (the paper's own, which needs no teacher).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mfd_cli.flow import interpolate, per_row
from mfd_cli.methods.base import Batch, Loss, MethodSettings
from mfd_cli.methods.times import Times, intervals
from mfd_cli.methods.trajectories import DerivativeSettings, TrajectoryMethod


class MeanFlowTimes(Times):
    """How s and t are drawn; where t = s the student learns the velocity itself. The defaults are ImageNet's."""

    type: Literal["uniform", "logit-normal"] = Field(
        "logit-normal", description="Two numbers, sorted: of sigmoid(N(mean, std)), or uniform."
    )
    interval_share: float = Field(
        0.25, ge=0, le=1, description="Share of samples with s < t; the others have t = s (CIFAR: 0.75)."
    )


class MeanFlowSettings(MethodSettings):
    """Settings of `meanflow`. Cost of an update: forward and backward, a derivative, and one teacher evaluation."""

    velocity: Literal["teacher", "data"] = Field(
        "teacher", description="teacher: its (guided) velocity at X_s; data: X_1 - X_0, which costs no evaluation."
    )
    times: MeanFlowTimes = Field(default=MeanFlowTimes(), description="How intervals are drawn.")
    power: float = Field(1.0, ge=0, le=2, description="p of the weight: 0 is none, 1 makes large errors count less.")
    constant: float = Field(1e-3, gt=0, description="c of the weight.")
    derivative: DerivativeSettings = Field(default=DerivativeSettings(), description="How du/ds is computed.")


class MeanFlow(TrajectoryMethod):
    """The student as an average velocity."""

    Settings = MeanFlowSettings
    flow_map = True
    sampler = "flow-map"
    teacherless = True

    @property
    def needs_teacher(self) -> bool:
        """For its velocity."""
        return self.settings.velocity == "teacher"

    def student_loss(self, batch: Batch) -> Loss:
        """Weighted squared error of the identity; reported without the weight, per element."""
        data, noise = batch.real, batch.random.normal("x0", batch.shape)
        s, t = intervals(batch.random, self.settings.times)
        x_s = interpolate(noise, data, s)
        with torch.no_grad():
            velocity = batch.teacher(x_s, s) if self.settings.velocity == "teacher" else data - noise
            _, change = self._derivatives.along_start(batch.frozen, x_s, s, t, velocity)
            wanted = velocity + per_row(t - s, x_s) * change
        error = (batch.student(x_s, s, t) - wanted).square()
        total = error.flatten(1).sum(dim=1)
        weight = (total.detach() + self.settings.constant) ** -self.settings.power
        return Loss((weight * total).mean(), error.detach().mean(), torch.stack([s, t], dim=1))
