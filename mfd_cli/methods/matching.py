"""What distribution-matching methods share: the auxiliary's flow matching, and a direction turned into a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mfd_cli.flow import interpolate, per_row
from mfd_cli.methods.base import Batch, Loss

_SMALLEST = 1e-5


def flow_matching_loss(batch: Batch) -> Loss:
    """L(phi) = mean |v_phi(X_t, t) - (X_1 - X_0)|^2 on the student's own samples, t uniform.

    X_1 = sg[G(z)] and X_0 is fresh noise, independent of z: with the generator's own z the auxiliary would learn the
    field of another coupling. Unguided. Source: arXiv 2606.11155, Algorithm 1; Lipman et al. 2023, arXiv 2210.02747.
    """
    with torch.no_grad():
        data = batch.generate()
    return flow_matching_on(batch, data)


def flow_matching_on(batch: Batch, data: Tensor, t: Tensor | None = None) -> Loss:
    """The same on given samples X_1 [B, ...], and at given times [B] instead of uniform ones."""
    noise = batch.random.normal("x0", batch.shape)
    t = batch.random.uniform("t") if t is None else t
    error = batch.auxiliary(interpolate(noise, data, t), t) - (data - noise)
    return Loss(error.square().mean(), times=t, samples=data)


def normalised(direction: Tensor, error: Tensor) -> Tensor:
    """D [B, ...] with each sample's divided by mean |error| of the teacher's guess about it (arXiv 2405.14867)."""
    size = error.abs().flatten(1).mean(dim=1)
    return direction / per_row(size.clamp(min=_SMALLEST), direction)


def surrogate_loss(direction: Tensor, point: Tensor, times: Tensor, samples: Tensor | None = None) -> Loss:
    """mean(sg[D] * point), whose gradient is D per element of `point`, over the number of elements.

    The value itself means nothing (it is unbounded below), so mean D^2 / 2 is what is reported.

    Args:
        direction: D [B, ...]; no gradient flows into it.
        point: what the student is moved at, X_s or X_1 [B, ...].
        times: for reports.
        samples: the student's samples X_1 [B, ...], for the guards.
    """
    direction = direction.detach()
    return Loss((direction * point).mean(), 0.5 * direction.square().mean(), times, samples=samples)
