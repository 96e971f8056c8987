"""Fréchet distance between Gaussians fitted to two sets of features, in float64.

Shapes: N generated samples, M real ones, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics.contract import Against, Batch, Distance
from mfd_cli.metrics.uncertainty import RESAMPLES, Measured, bootstrapped

#: above this many features the eigenvalues of a resample cost seconds, and a rougher standard error has to do
MANY_FEATURES, FEW_RESAMPLES = 512, 5

#: decoded samples that go through a feature extractor at once
FEATURE_BATCH = 1000


class Moments(NamedTuple):
    """Sample mean [F] and covariance [F, F] (divisor N - 1), float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features [N, F].

    Raises:
        ValueError: fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
    wide = features.double()
    mean = wide.mean(0)
    centred = wide - mean
    return Moments(mean, centred.T @ centred / (len(wide) - 1))


def symmetric_root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive semidefinite matrix; negative eigenvalues, which are rounding, count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_between(x: Moments, y: Moments, root_of_y: Tensor) -> float:
    """Fréchet distance of two Gaussians, the second with the root of its covariance (see `frechet_distance`)."""
    product = root_of_y @ x.covariance @ root_of_y
    # rounding leaves the product a little asymmetric, and eigvalsh would read one triangle only
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (x.mean - y.mean).square().sum() + x.covariance.trace() + y.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features x [N, F] and y [M, F].

        |mu_x - mu_y|^2 + Tr S_x + Tr S_y - 2 Tr (S_x S_y)^(1/2),
        Tr (S_x S_y)^(1/2) = sum of the square roots of the eigenvalues of A S_x A, A = S_y^(1/2)

    The symmetric form needs no general matrix root and no complex numbers. With N <= F the value exists but is
    strongly biased; in general the bias is positive and of order 1/N.

    Source: Dowson and Landau 1982; as a measure of generators, Heusel et al. 2017 (arXiv 1706.08500).
    """
    reference = moments(y)
    return frechet_between(moments(x), reference, symmetric_root(reference.covariance))


class FrechetTo:
    """Fréchet distances to one reference.

    Args:
        name: of the figure, for messages.
        reference: moments of the reference.
        num: samples N that will be held against it.
        seed: names the bootstrap draws.

    Raises:
        MfdError: N is not above the number of features.
    """

    def __init__(self, name: str, reference: Moments, num: int, seed: int) -> None:
        require_samples(name, len(reference.mean), num)
        self.name, self.seed = name, seed
        self._reference, self._root = reference, symmetric_root(reference.covariance)

    def measured(self, features: Tensor) -> Measured:
        """The distance of features [N, F], with its bootstrap standard error."""
        wide = features.double()
        require_samples(self.name, wide.shape[1], len(wide))

        def distance(rows: Tensor) -> float:
            return frechet_between(moments(rows), self._reference, self._root)

        resamples = RESAMPLES if wide.shape[1] <= MANY_FEATURES else FEW_RESAMPLES
        return bootstrapped(distance(wide), lambda drawn: distance(wide[drawn]), len(wide), resamples, self.seed)


class Frechet(Distance):
    """Fréchet distance in every feature space that the data source names."""

    def load(self, against: Against) -> None:
        """The data's feature spaces."""
        self._spaces, self._num, self._seed = against.data.spaces(), against.num, against.seed
        self._widths: list[int] = []

    def rows(self, batch: Batch) -> Tensor:
        """Features of all spaces, side by side [B, F]."""
        parts = [in_parts(space, batch.samples) for space in self._spaces.values()]
        self._widths = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)

    def hold_against(self, rows: Tensor) -> None:
        """Moments of the reference in every space."""
        self._to = {
            name: FrechetTo(name, moments(part), self._num, self._seed)
            for name, part in zip(self._spaces, rows.split(self._widths, dim=1), strict=True)
        }

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """The distance in each space, under the space's name."""
        parts = rows.split(self._widths, dim=1)
        return {self.named(name): self._to[name].measured(part) for name, part in zip(self._spaces, parts, strict=True)}


def in_parts(space: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    """Features [N, F] of samples [N, ...], on the CPU, some at a time."""
    return torch.cat([space(part).cpu() for part in samples.split(FEATURE_BATCH)])


def require_samples(name: str, features: int, num: int) -> None:
    """Raises MfdError where `num` samples give a singular covariance of `features` features."""
    if num <= features:
        raise MfdError(
            f"{num} samples are too few for '{name}', which has {features} features: the covariance is singular",
            allowed=f"at least {features + 1}; several times as many for a figure worth quoting",
            do=f"use --num {max(10 * features, 1000)} or more",
        )
