"""What guards measure: pure functions of the samples and times of one update, cheap beside any network evaluation.

Shapes: B samples, D dimensions of a flattened sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mfd_cli.networks.sharding import whole

#: samples that are compared with each other, and the distance below which two are one, in units of their spread
_COMPARED, _SAME = 64, 1e-3


def variances(samples: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
    """Variance of each dimension over the batch, float64 [D]; None for a single sample.

    Args:
        samples: [B, ...], this process's.
        total: sums a tensor over all processes, each of which has B samples; None in a single process.
    """
    flat = samples.detach().flatten(1)
    if total is None:
        return flat.float().var(dim=0).double() if len(flat) > 1 else None
    flat = flat.double()
    count = torch.full((1,), float(len(flat)), dtype=torch.float64, device=flat.device)
    sums = total(torch.cat([count, flat.sum(0), flat.square().sum(0)]))
    number, mean, square = sums[0], *(part / sums[0] for part in sums[1:].chunk(2))
    return ((square - mean.square()).clamp(min=0) * number / (number - 1)) if float(number) > 1 else None


def gaussian_loss(variance: Tensor, times: Tensor) -> Tensor:
    """Flow-matching loss of the best field for Gaussian samples of these variances, at these times; a scalar.

    Of X_1 ~ N(m, v) and X_0 ~ N(0, 1), each dimension by itself, X_1 - X_0 given X_t keeps the variance

        v / (t^2 v + (1 - t)^2)                 over uniform t, (pi / 2) sqrt(v) on average

    For samples of any distribution it is the loss of the best field that is linear in X_t, dimension by dimension.

    Args:
        variance: v [D].
        times: t [B].
    """
    t, v = times.double()[:, None], variance[None]
    # at t = 1 of a dimension that does not vary this is 0 / 0, where there is nothing left to know
    return (v / (t.square() * v + (1 - t).square()).clamp(min=torch.finfo(torch.float64).tiny)).mean()


def duplicates(samples: Tensor, variance: Tensor) -> Tensor:
    """Share of samples that lie on another of the batch: nearer than a thousandth of the spread. Of at most 64.

    Args:
        samples: [B, ...].
        variance: variance of each dimension [D].
    """
    flat = samples[:_COMPARED].detach().flatten(1).float()
    # the quick way of computing distances loses those that matter here to rounding
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(float("inf"))
    return (distances.min(dim=1).values <= _SAME * variance.sum().sqrt()).double().mean()


def fingerprint(parameters: Sequence[nn.Parameter]) -> list[float]:
    """Two sums over all weights that change when any of them does, for all practical purposes."""
    if not parameters:
        return [0.0, 0.0]
    sums = torch.stack([whole(value.detach().double().sum()) for value in parameters])
    places = torch.arange(1, len(sums) + 1, dtype=torch.float64, device=sums.device)
    return [float(sums.sum()), float((sums * places).sum())]
