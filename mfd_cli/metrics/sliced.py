"""Sliced Wasserstein distance between two sets of points, in float64.

Shapes: N generated samples, M real ones, L directions, D numbers a sample.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.metrics.contract import Against, Batch, Distance, DistanceSettings
from mfd_cli.metrics.uncertainty import Measured, bootstrapped
from mfd_cli.seeds import Stream

DIRECTIONS = 256

#: a resample of the sliced distance passes over 256 numbers a sample several times
_RESAMPLES = 10

#: directions compared at once: bounds the memory of a sliced distance to this many rows of N + M numbers
_CHUNK = 32


def directions(count: int, dimension: int, seed: int = 0) -> Tensor:
    """Unit vectors [L, D], uniform on the sphere, float64, a function of the seed."""
    vectors = Stream(seed, 0, 0, count).normal("directions", (dimension,)).double()
    return vectors / vectors.norm(dim=1, keepdim=True)


def sorted_projections(x: Tensor, along: Tensor) -> Tensor:
    """Sorted scalar products [L, N] of samples x [N, D] with directions [L, D]."""
    return (along @ x.double().T).sort(dim=1).values


def sliced_between(x: Tensor, y: Tensor, p: int = 2) -> float:
    """Sliced Wasserstein distance of sorted projections x [L, N] and y [L, M] (see `sliced_wasserstein`)."""
    first, second = x.shape[1], y.shape[1]
    # both quantile functions are constant between the points i/N and j/M; times N M these are integers, so exact
    starts = torch.cat([torch.arange(first) * second, torch.arange(second) * first]).unique()
    lengths = torch.diff(starts, append=torch.tensor([first * second])).double() / (first * second)
    total = 0.0
    for a, b in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
        # for N = M the grid is the samples' own, and gathering would only copy
        difference = a - b if first == second else a[:, starts // second] - b[:, starts // first]
        powers = difference.square() if p == 2 else difference.abs().pow(p)
        total += float((powers @ lengths).sum())
    return float((total / len(x)) ** (1 / p))


def sliced_wasserstein(x: Tensor, y: Tensor, count: int = DIRECTIONS, p: int = 2, seed: int = 0) -> float:
    """Sliced Wasserstein distance of order p between x [N, D] and y [M, D].

        ( 1/L sum_l  integral_0^1 | Q_l,x(q) - Q_l,y(q) |^p dq )^(1/p)

    with Q_l the quantile function of the projection on direction l. For N = M the integral is the mean over the sorted
    pairs; for N != M it is taken over the union of both grids, which is exact too. The root comes after the average.

    Args:
        x: samples [N, D].
        y: samples [M, D].
        count: number of directions L.
        p: order.
        seed: names the directions; figures with different directions do not compare.

    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """
    along = directions(count, x.shape[1], seed)
    return sliced_between(sorted_projections(x, along), sorted_projections(y, along), p)


def redrawn(sorted_rows: Tensor, ranks: Tensor, drawn: Tensor) -> Tensor:
    """Sorted projections of a bootstrap draw, without sorting again.

    Args:
        sorted_rows: sorted projections [L, N].
        ranks: which sample stands where, int64 [L, N] (argsort of the projections).
        drawn: drawn indices [N].
    """
    times = torch.bincount(drawn, minlength=sorted_rows.shape[1])
    # every row repeats its entries N times in total, so the flat result is again [L, N]
    return sorted_rows.flatten().repeat_interleave(times[ranks].flatten()).reshape(sorted_rows.shape)


class SlicedWassersteinSettings(DistanceSettings):
    """Settings of `sliced-wasserstein`."""

    directions: int = Field(DIRECTIONS, ge=1, description="Random directions; figures with other directions differ.")


class SlicedWasserstein(Distance):
    """Sliced Wasserstein distance of order 2 between flattened decoded samples."""

    Settings = SlicedWassersteinSettings

    def load(self, against: Against) -> None:
        """The name of the directions."""
        self._seed = against.seed
        self._along: Tensor | None = None

    def rows(self, batch: Batch) -> Tensor:
        """Projections [B, L]."""
        flat = batch.samples.flatten(1).cpu().double()
        if self._along is None:
            self._along = directions(self.settings.directions, flat.shape[1], self._seed)
        return flat @ self._along.T

    def hold_against(self, rows: Tensor) -> None:
        """Sorted projections of the reference."""
        self._real = rows.T.sort(dim=1).values

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """`sliced_wasserstein`."""
        projected = rows.T.contiguous().sort(dim=1)

        def again(drawn: Tensor) -> float:
            return sliced_between(redrawn(projected.values, projected.indices, drawn), self._real)

        value = sliced_between(projected.values, self._real)
        return {self.named("sliced_wasserstein"): bootstrapped(value, again, len(rows), _RESAMPLES, self._seed)}

    def details(self) -> dict[str, Any]:
        """Number of directions."""
        return {"directions": self.settings.directions, **super().details()}
