"""Maximum mean discrepancy, in float64, with the kernel of one's choice.

Shapes: N generated samples, M of the reference, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics.contract import Against, Batch, Distance, DistanceSettings
from mfd_cli.metrics.features import check_space, space_of
from mfd_cli.metrics.frechet import in_parts
from mfd_cli.metrics.uncertainty import Measured, from_deviations

#: rows of a kernel matrix held at once, and samples of the reference among whose pairs the median is taken
_BLOCK, _MEDIAN_OF = 1000, 2000

#: kernel of every row of [..., B, F] with every row of [..., M, F], float64 [..., B, M]
Kernel = Callable[[Tensor, Tensor], Tensor]


def gaussian(bandwidth: float) -> Kernel:
    """exp(-|a - b|^2 / (2 bandwidth^2))."""
    return lambda a, b: torch.exp(-torch.cdist(a, b).square() / (2 * bandwidth**2))


def median_distance(real: Tensor) -> float:
    """Median Euclidean distance between two different rows of [M, F]; of evenly spaced ones if M is large."""
    some = real[:: max(1, -(-len(real) // _MEDIAN_OF))].double()
    return torch.pdist(some).median().item()


def kernel_sums(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Sums over y [M, F] of k(x, y) for each row of x [N, F], float64 [N]."""
    wide, other = x.double(), y.double()
    return torch.cat([kernel(part, other).sum(1) for part in wide.split(_BLOCK)])


class MmdTo:
    """Squared maximum mean discrepancy to one reference.

    Unbiased, so that it may be negative, or with the pairs of samples with themselves:

        unbiased   1/(N(N-1)) sum_{i!=j} k(x_i, x_j) + 1/(M(M-1)) sum_{i!=j} k(y_i, y_j) - 2/(NM) sum_ij k(x_i, y_j)
        biased     1/N^2 sum_ij k(x_i, x_j) + 1/M^2 sum_ij k(y_i, y_j) - 2/(NM) sum_ij k(x_i, y_j)

    Args:
        reference: features y [M, F], M at least 2.
        kernel: k.
        biased: which of the two.

    Source: Gretton et al. 2012, "A kernel two-sample test", lemma 6 and equation 5.
    """

    def __init__(self, reference: Tensor, kernel: Kernel, *, biased: bool = False) -> None:
        self._reference, self._kernel, self._biased = reference.double(), kernel, biased
        own, pairs = self._own(self._reference), self._pairs(len(reference))
        self._within = own.sum().item() / pairs

    def measured(self, x: Tensor) -> Measured:
        """The discrepancy of features [N, F], N at least 3, with its jackknife standard error.

        Leaving out sample i changes the sums by what its row of the kernel matrices says, so that all N values of the
        jackknife cost no more than one.

        Source: Efron and Stein 1981, "The jackknife estimate of variance".
        """
        n, m = len(x), len(self._reference)
        own, cross = self._own(x), kernel_sums(x, self._reference, self._kernel)
        # a sample that is left out takes its row and its column with it, which share the diagonal
        lost = 2 * own - self._diagonal(x) if self._biased else 2 * own
        value = own.sum() / self._pairs(n) + self._within - 2 * cross.sum() / (n * m)
        without = (own.sum() - lost) / self._pairs(n - 1) - 2 * (cross.sum() - cross) / ((n - 1) * m)
        deviations = (without - without.mean()) * ((n - 1) / n) ** 0.5
        return from_deviations(value.item(), deviations, n)

    def _own(self, x: Tensor) -> Tensor:
        """Kernel sums of each row with the others [N], and with itself where the estimate is biased."""
        sums = kernel_sums(x, x, self._kernel)
        return sums if self._biased else sums - self._diagonal(x)

    def _diagonal(self, x: Tensor) -> Tensor:
        rows = x.double()[:, None]
        return self._kernel(rows, rows)[:, 0, 0]

    def _pairs(self, count: int) -> int:
        return count * count if self._biased else count * (count - 1)


class MmdSettings(DistanceSettings):
    """Settings of `mmd`."""

    features: str = Field(
        "samples", description="samples (flattened), inception, dinov2, or a feature space that the data name."
    )
    model: str | None = Field(None, description="Weights of inception or dinov2, as for fid and fd-dinov2.")
    bandwidth: float | None = Field(
        None, gt=0, description="Of the kernel; null: the median distance between samples of the reference."
    )


class Mmd(Distance):
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased."""

    Settings = MmdSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights."""
        check_space(settings.type, settings.features, settings.model)

    def load(self, against: Against) -> None:
        """The feature space."""
        own = self.settings
        _require(against.num)
        self._space, self._details = space_of(own.type, own.features, own.model, against)

    def rows(self, batch: Batch) -> Tensor:
        """Features [B, F]."""
        return in_parts(self._space, batch.samples)

    def hold_against(self, rows: Tensor) -> None:
        """Features of the reference, and the bandwidth."""
        _require(len(rows))
        self._bandwidth = self.settings.bandwidth or median_distance(rows)
        self._to = MmdTo(rows, gaussian(self._bandwidth))

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """`mmd`."""
        return {self.named("mmd"): self._to.measured(rows)}

    def details(self) -> dict[str, Any]:
        """Feature space, model and bandwidth."""
        own = {"features": self.settings.features, "bandwidth": self._bandwidth}
        return {**own, **self._details, **super().details()}


def _require(num: int) -> None:
    if num < 3:
        raise MfdError(
            f"mmd: {num} samples",
            allowed="at least 3 real and 3 generated ones; hundreds for a figure worth quoting",
        )
