"""Distances between sample sets that need no download: pure functions of tensors, computed in float64.

Shapes: N generated samples, M real ones, F features, L directions, K modes. None of these distances is 0 for two
independent finite sets of one distribution; only figures with equal N, M and features compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfd_cli.seeds import Stream

DIRECTIONS = 256
#: metrics of which more is better; of every other one less is
_HIGHER_IS_BETTER = frozenset({"class_agreement", "in_mode", "mode_coverage"})

RESAMPLES = 20

#: directions compared at once: bounds the memory of a sliced distance to this many rows of N + M numbers
_CHUNK = 32


class Measured(NamedTuple):
    """One figure.

    Attributes:
        value: the metric.
        standard_error: over draws of the generated samples, the reference held fixed; of forecasts, over drives. 0
            where there is but one, which says nothing of others.
        num: generated samples it was computed from.
    """

    value: float
    standard_error: float
    num: int


class Moments(NamedTuple):
    """Sample mean [F] and covariance [F, F] (divisor N - 1), float64."""

    mean: Tensor
    covariance: Tensor


class ModeShares(NamedTuple):
    """Share of all samples that lie inside each mode [K], and inside any of them."""

    shares: Tensor
    inside: float


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better; of intersections over union it is."""
    return metric in _HIGHER_IS_BETTER or metric.startswith(("iou", "miou"))


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


def mode_members(samples: Tensor, means: Tensor, deviations: Tensor, radius: float = 3.0) -> Tensor:
    """The mode each sample lies in, int64 [N]; -1 for none.

    A sample lies in the mode with the smallest |x - mean| / deviation, if that is at most `radius`.

    Args:
        samples: points [N, D].
        means: [K, D].
        deviations: standard deviations [K].
        radius: in standard deviations. A Gaussian in D dimensions keeps 98.9 % (D = 2) of its mass within 3.
    """
    scaled = torch.cdist(samples.double(), means.double()) / deviations.double()
    smallest, mode = scaled.min(dim=1)
    return torch.where(smallest <= radius, mode, -1)


def mode_shares(samples: Tensor, means: Tensor, deviations: Tensor, radius: float = 3.0) -> ModeShares:
    """Share of the samples inside each mode and inside any; arguments as in `mode_members`."""
    return shares_of(mode_members(samples, means, deviations, radius), len(means))


def shares_of(members: Tensor, modes: int) -> ModeShares:
    """Shares from the modes [N] that `mode_members` gave."""
    counts = torch.bincount(members + 1, minlength=modes + 1)[1:].double()
    shares = counts / len(members)
    return ModeShares(shares, shares.sum().item())


def class_agreement(predicted: Tensor, asked: Tensor) -> float:
    """Share of samples whose predicted class [N] is the class asked for [N].

    Raises:
        ValueError: the two differ in length.
    """
    if predicted.shape != asked.shape:
        raise ValueError(f"{list(predicted.shape)} predictions for {list(asked.shape)} classes")
    return (predicted.cpu() == asked.cpu()).double().mean().item()


def share_error(share: float, num: int) -> float:
    """Standard error of a share of `num` independent samples: sqrt(s (1 - s) / N)."""
    return (share * (1 - share) / num) ** 0.5


def standard_error(statistic: Callable[[Tensor], float], num: int, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Bootstrap standard error of a figure computed from `num` samples.

    The samples are drawn again with replacement, and the standard deviation of the figure over these draws is
    returned; their mean is not used, since drawing again adds a bias of order 1/N to a distance. With 20 draws the
    error itself is known to about 16 %.

    Args:
        statistic: the figure as a function of drawn indices, int64 [N].
        num: number of samples N.
        resamples: number of draws, at least 2.
        seed: names the draws.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    return standard_errors(lambda drawn: {"": statistic(drawn)}, num, resamples, seed)[""]


def standard_errors(
    statistics: Callable[[Tensor], dict[str, float]], num: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """The same for several figures that are computed together, by name."""
    draws = [
        statistics((Stream(seed, draw, 0, num).uniform("bootstrap").double() * num).long()) for draw in range(resamples)
    ]
    return {name: torch.tensor([each[name] for each in draws], dtype=torch.float64).std().item() for name in draws[0]}


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
