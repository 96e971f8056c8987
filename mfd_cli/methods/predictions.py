"""What DMD2 and SenseFlow share: students that predict the data at one step of a schedule, and the direction on X_1.

Source: Yin et al. 2024, arXiv 2405.14867, section 4; equations in this package's convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mfd_cli.flow import interpolate, per_row, predicted_data
from mfd_cli.methods.base import Batch
from mfd_cli.methods.matching import normalised
from mfd_cli.samplers import renoised

Inputs = Literal["simulated", "data", "both"]


@dataclass(frozen=True)
class Prediction:
    """One step of a student.

    Attributes:
        state: what it was given [B, ...].
        velocity: what it found there, with gradient [B, ...].
        start: the step's time, [B].
        end: the next point of the schedule, [B].
        data: the prediction X_1 [B, ...].
    """

    state: Tensor
    velocity: Tensor
    start: Tensor
    end: Tensor
    data: Tensor


def predict(batch: Batch, inputs: Inputs) -> Prediction:
    """X_1 at one step of the schedule, drawn for the whole batch; gradient flows through that step alone.

    Args:
        batch: the batch.
        inputs: what steps after the first are given: states that the student comes to itself without gradient
            (backward simulation), real states noised to the step's time, or either by a coin.
    """
    steps = len(batch.grid) - 1
    step = min(int(batch.random.shared("step") * steps), steps - 1)
    state = _state(batch, step, inputs)
    times, told = batch.grid.to(state.device), (batch.grid if batch.told is None else batch.told).to(state.device)
    start = times[step].expand(len(state))
    velocity = batch.student(state, told[step].expand(len(state)))
    return Prediction(
        state, velocity, start, times[step + 1].expand(len(state)), predicted_data(state, velocity, start)
    )


@torch.no_grad()
def _state(batch: Batch, step: int, inputs: Inputs) -> Tensor:
    noise = batch.random.normal("z", batch.shape)
    if step == 0:
        return noise
    if inputs == "data" or (inputs == "both" and batch.random.shared("inputs") < 0.5):
        return interpolate(noise, batch.real, batch.grid[step].to(noise.device).expand(len(noise)))
    return renoised(
        batch.frozen, noise, batch.grid, told=batch.told, stop=step,
        fresh=lambda point: batch.random.normal(f"fresh.{point}", batch.shape),
    )  # fmt: skip


def middle_times(batch: Batch, margin: float) -> Tensor:
    """Times uniform in [margin, 1 - margin], float32 [B]."""
    return margin + (1 - 2 * margin) * batch.random.uniform("s")


@torch.no_grad()
def data_direction(batch: Batch, data: Tensor, s: Tensor, normalise: bool) -> Tensor:
    """D = (1 - s) (v_phi - u_teacher)(X_s, s) [B, ...], the difference of two predictions of X_1.

    Args:
        batch: the batch.
        data: X_1 [B, ...].
        s: times that it is noised to [B].
        normalise: divide each sample's by mean|X_1 - x1hat_teacher|.
    """
    x_s = interpolate(batch.random.normal("x0", batch.shape), data, s)
    velocity = batch.teacher(x_s, s)
    difference = per_row(1 - s, x_s) * (batch.auxiliary(x_s, s) - velocity)
    return normalised(difference, data - predicted_data(x_s, velocity, s)) if normalise else difference
