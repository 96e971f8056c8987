"""Mean Flow Distillation (Zhao et al. 2026, arXiv 2606.11155).

    X_1 = G(z),  X_0 fresh,  s < t,  X_s = (1 - s) X_0 + s X_1
    D = U_phi(X_s; s, t) - U_teacher(X_s; s, t)         average velocities over [s, t], by the same solver
    gradient of the student: E[ s (dG/dtheta)^T D ]     the integration's Jacobian is omitted

The auxiliary v_phi follows the student by flow matching on its samples, `aux_updates` times per student update.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mfd_cli.flow import interpolate
from mfd_cli.methods.base import AuxiliarySettings, Batch, Loss, Method
from mfd_cli.methods.matching import flow_matching_loss, surrogate_loss
from mfd_cli.methods.times import Times, intervals
from mfd_cli.solvers import integrate
from teachers.guidance import SideBySide
from teachers.settings import Strict


class Solver(Strict):
    """How both fields are integrated over [s, t]. Give `step_size` or `steps`."""

    type: Literal["euler", "midpoint", "heun", "rk4", "ab2"] = Field(
        "euler", description="Evaluations a step: euler and ab2 1, midpoint and heun 2, rk4 4. The paper's is euler."
    )
    step_size: float | None = Field(
        None, gt=0, le=1, description="Longest step: short intervals cost fewer evaluations. The paper's is 0.02."
    )
    steps: int | None = Field(
        None, ge=1, description="Steps of every interval instead of step_size; 1 with euler is VSD."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Solver:
        if (self.step_size is None) == (self.steps is None):
            raise ValueError("give step_size or steps, not both and not neither")
        return self


class MfdSettings(AuxiliarySettings):
    """Settings of `mfd`."""

    solver: Solver = Field(default=Solver(type="euler", step_size=0.02), description="Integration of the two fields.")
    times: Times = Field(default=Times(), description="How intervals are drawn.")


class MeanFlowDistillation(Method):
    """MFD: the student is moved by the difference of average velocities."""

    Settings = MfdSettings

    def auxiliary_loss(self, batch: Batch) -> Loss:
        """Flow matching on the student's samples."""
        return flow_matching_loss(batch)

    def student_loss(self, batch: Batch) -> Loss:
        """mean(sg[U_phi - U_teacher] * X_s); see the module's text."""
        data = batch.generate()
        noise = batch.random.normal("x0", batch.shape)
        s, t = intervals(batch.random, self.settings.times)
        x_s = interpolate(noise, data, s)
        return surrogate_loss(self.direction(batch, x_s.detach(), s, t), x_s, torch.stack([s, t], dim=1))

    @torch.no_grad()
    def direction(self, batch: Batch, x_s: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """D = U_phi - U_teacher [B, ...] at X_s over [s, t]."""
        solver, both = self.settings.solver, SideBySide(batch.auxiliary, batch.teacher)
        start = torch.stack([x_s, x_s], dim=1)
        found = integrate(both, start, s, t, rule=solver.type, steps=solver.steps, step_size=solver.step_size)
        return found.average_velocity[:, 0] - found.average_velocity[:, 1]
