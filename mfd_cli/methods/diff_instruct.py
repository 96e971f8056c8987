"""Diff-Instruct, or variational score distillation (Luo et al. 2023, arXiv 2305.18455), for flows.

MFD's limit of an empty interval: D = v_phi(X_s, s) - u_teacher(X_s, s) at one time per sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.flow import interpolate, per_row
from mfd_cli.methods.base import Batch, GeneratedSettings, Loss, Method
from mfd_cli.methods.matching import flow_matching_loss, surrogate_loss
from mfd_cli.methods.times import Times, draw, intervals
from teachers.settings import Strict


class StartTimes(Strict):
    """How the time s is drawn for each sample."""

    type: Literal["uniform", "logit-normal", "sorted-pair"] = Field(
        "uniform", description="sorted-pair: the smaller of two uniform numbers, as MFD's starts are distributed."
    )
    mean: float = Field(1.2, description="Mean of the logit (logit-normal; the official code's).")
    std: float = Field(1.2, gt=0, description="Standard deviation of the logit (logit-normal; the official code's).")
    max_start: float = Field(1.0, gt=0, le=1, description="Times are scaled into (0, max_start).")


class DiffInstructSettings(GeneratedSettings):
    """Settings of `diff-instruct`."""

    weight: Literal["velocity", "data", "score"] = Field(
        "velocity",
        description="Factor on D: velocity s (the MFD script's), data 1 - s (the official code's), "
        "score s^2 / (1 - s) (integral KL; wants max_start below 1).",
    )
    times: StartTimes = Field(default=StartTimes(), description="How times are drawn.")


class DiffInstruct(Method):
    """VSD: the student is moved by the difference of velocities at one time."""

    Settings = DiffInstructSettings

    def auxiliary_loss(self, batch: Batch) -> Loss:
        """Flow matching on the student's samples."""
        return flow_matching_loss(batch)

    def student_loss(self, batch: Batch) -> Loss:
        """mean(w(s)/s sg[v_phi - u_teacher] * X_s): the factor s of dX_s/dG is part of the velocity weight."""
        data = batch.generate()
        noise = batch.random.normal("x0", batch.shape)
        s = self.start_times(batch)
        x_s = interpolate(noise, data, s)
        direction = self.direction(batch, x_s.detach(), s)
        if self.settings.weight == "velocity":
            return surrogate_loss(direction, x_s, s, data)
        weight = 1 - s if self.settings.weight == "data" else s**2 / (1 - s)
        return surrogate_loss(per_row(weight, direction) * direction, data, s, data)

    def start_times(self, batch: Batch) -> Tensor:
        """One time per sample, float32 [B]."""
        times = self.settings.times
        if times.type == "sorted-pair":
            start, _ = intervals(batch.random, Times())
        else:
            start = draw(batch.random, "s", times.type, times.mean, times.std)
        return start * times.max_start

    @torch.no_grad()
    def direction(self, batch: Batch, x_s: Tensor, s: Tensor) -> Tensor:
        """D = v_phi - u_teacher [B, ...] at X_s."""
        return batch.auxiliary(x_s, s) - batch.teacher(x_s, s)
