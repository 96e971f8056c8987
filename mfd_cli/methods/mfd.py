"""Mean Flow Distillation (Zhao et al. 2026, arXiv 2606.11155).

    X_1 = G(z),  X_0 fresh,  s < t,  X_s = (1 - s) X_0 + s X_1
    D = U_phi(X_s; s, t) - U_teacher(X_s; s, t)         average velocities over [s, t], by the same solver
    gradient of the student: E[ s (dG/dtheta)^T D ]     the integration's Jacobian is omitted

The auxiliary v_phi follows the student by flow matching on its samples, `aux_updates` times per student update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mfd_cli.flow import interpolate, per_row, time_grid
from mfd_cli.methods import adversarial
from mfd_cli.methods.adversarial import Adversarial
from mfd_cli.methods.base import Batch, GeneratedSettings, Loss, Method
from mfd_cli.methods.matching import flow_matching_on, normalised, surrogate_loss
from mfd_cli.methods.times import Times, intervals
from mfd_cli.solvers import integrate, integrate_grid
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


class Regression(Strict):
    """A pull of G(z) towards the teacher's sample from the same z."""

    weight: float = Field(0.1, gt=0, description="Its share of the student's loss.")
    steps: int = Field(8, ge=1, description="Euler steps of the teacher's sample; each is an evaluation.")
    shift: float = Field(1.0, gt=0, description="Time shift of those steps; `teacher.shift` gives the teacher's own.")


class MfdSettings(GeneratedSettings):
    """Settings of `mfd`."""

    solver: Solver = Field(default=Solver(type="euler", step_size=0.02), description="Integration of the two fields.")
    times: Times = Field(default=Times(), description="How intervals are drawn.")
    weight: Literal["paper", "early", "normalised"] = Field(
        "paper",
        description="Factor on D: paper s (that of X_s); early s (1 - s), which counts starts near noise more; "
        "normalised 1 / mean|X_1 - X_0 - U_teacher|, sample by sample, as DMD2 weighs its own. The last goes well with "
        "times.type uniform-start.",
    )
    regression: Regression | None = Field(
        None, description="A pull towards the teacher's own samples from the same noise. The paper has none."
    )
    adversarial: Adversarial | None = Field(
        None, description="DMD2's critic, which needs real samples. The paper has none."
    )


class MeanFlowDistillation(Method):
    """MFD: the student is moved by the difference of average velocities."""

    Settings = MfdSettings

    @property
    def needs_data(self) -> bool:
        """Real states, for a critic."""
        return self.settings.adversarial is not None

    def build_critic(self, example: Callable[[], Batch]) -> nn.Module | None:
        """A critic of the auxiliary's features, if the recipe wants one."""
        return adversarial.build(self.settings.adversarial, example)

    def auxiliary_loss(self, batch: Batch) -> Loss:
        """Flow matching on the student's samples, and the critic's loss if there is one."""
        with torch.no_grad():
            data = batch.generate()
        return adversarial.judged(self.settings.adversarial, batch, data, flow_matching_on(batch, data))

    def student_loss(self, batch: Batch) -> Loss:
        """mean(sg[w (U_phi - U_teacher)] * X_s); see the module's text. Further terms as the recipe wants them."""
        data = batch.generate()
        noise = batch.random.normal("x0", batch.shape)
        s, t = intervals(batch.random, self.settings.times)
        x_s = interpolate(noise, data, s)
        own, teacher = self.velocities(batch, x_s.detach(), s, t)
        direction, point = own - teacher, x_s
        if self.settings.weight == "early":
            direction = per_row(1 - s, direction) * direction
        elif self.settings.weight == "normalised":
            direction, point = normalised(direction, data.detach() - noise - teacher), data
        loss = surrogate_loss(direction, point, torch.stack([s, t], dim=1), data)
        return adversarial.fooled(self.settings.adversarial, batch, data, self._regressed(batch, data, loss))

    def _regressed(self, batch: Batch, data: Tensor, loss: Loss) -> Loss:
        """The loss with mean |G(z) - teacher's sample from z|^2 added, if the recipe wants it."""
        wanted = self.settings.regression
        if wanted is None:
            return loss
        with torch.no_grad():
            grid = time_grid(wanted.steps, wanted.shift)
            target = integrate_grid(batch.teacher, batch.random.normal("z", batch.shape), grid).end
        value = (data - target).square().mean()
        parts = {**loss.parts, "regression_loss": value.detach()}
        return replace(loss, value=loss.value + wanted.weight * value, report=loss.shown, parts=parts)

    def direction(self, batch: Batch, x_s: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """D = U_phi - U_teacher [B, ...] at X_s over [s, t]."""
        own, teacher = self.velocities(batch, x_s, s, t)
        return own - teacher

    @torch.no_grad()
    def velocities(self, batch: Batch, x_s: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """U_phi and U_teacher [B, ...] at X_s over [s, t]."""
        solver, both = self.settings.solver, SideBySide(batch.auxiliary, batch.teacher)
        start = torch.stack([x_s, x_s], dim=1)
        found = integrate(
            both, start, s, t, rule=solver.type, steps=solver.steps, step_size=solver.step_size, longest=batch.longest
        )
        own, teacher = found.average_velocity.unbind(1)
        return own, teacher
