"""Maximum mean discrepancy with a Gaussian kernel, unbiased, in float64.

Shapes: N generated samples, M real ones, F features.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics.contract import Against, Batch, Metric, MetricSettings
from mfd_cli.metrics.features import check_space, space_of
from mfd_cli.metrics.frechet import in_parts
from mfd_cli.metrics.uncertainty import Measured, from_deviations

#: rows of a kernel matrix held at once, and real samples among whose pairs the median is taken
_BLOCK, _MEDIAN_OF = 1000, 2000


def median_distance(real: Tensor) -> float:
    """Median Euclidean distance between two different rows of [M, F]; of evenly spaced ones if M is large."""
    some = real[:: max(1, -(-len(real) // _MEDIAN_OF))].double()
    return torch.pdist(some).median().item()


def kernel_sums(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Sums over y [M, F] of exp(-|x - y|^2 / (2 b^2)) for each row of x [N, F], float64 [N]."""
    wide, other = x.double(), y.double()
    parts = [torch.exp(-torch.cdist(part, other).square() / (2 * bandwidth**2)).sum(1) for part in wide.split(_BLOCK)]
    return torch.cat(parts)


def mmd_squared(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """Unbiased estimate of MMD^2 between x [N, F] and y [M, F]; it may be negative.

        1/(N(N-1)) sum_{i!=j} k(x_i, x_j) + 1/(M(M-1)) sum_{i!=j} k(y_i, y_j) - 2/(NM) sum_ij k(x_i, y_j),
        k(a, b) = exp(-|a - b|^2 / (2 bandwidth^2))

    Source: Gretton et al. 2012, "A kernel two-sample test", lemma 6.
    """
    return MmdTo(y, bandwidth).measured(x).value


class MmdTo:
    """MMD^2 to one reference.

    Args:
        real: features of the real samples [M, F], M at least 2.
        bandwidth: of the kernel; the median distance of the real samples if None.
    """

    def __init__(self, real: Tensor, bandwidth: float | None = None) -> None:
        self._real = real.double()
        #: the kernel's
        self.bandwidth = bandwidth or median_distance(self._real)
        self._own = _off_diagonal(self._real, self.bandwidth).sum().item() / (len(real) * (len(real) - 1))

    def measured(self, x: Tensor) -> Measured:
        """MMD^2 of features [N, F], N at least 3, with its jackknife standard error.

        Leaving out sample i changes the sums by what its row of the kernel matrices says, so that all N values of the
        jackknife cost no more than one.

        Source: Efron and Stein 1981, "The jackknife estimate of variance".
        """
        n, m = len(x), len(self._real)
        own, cross = _off_diagonal(x, self.bandwidth), kernel_sums(x, self._real, self.bandwidth)
        value = own.sum() / (n * (n - 1)) + self._own - 2 * cross.sum() / (n * m)
        without = (own.sum() - 2 * own) / ((n - 1) * (n - 2)) - 2 * (cross.sum() - cross) / ((n - 1) * m)
        deviations = (without - without.mean()) * ((n - 1) / n) ** 0.5
        return from_deviations(value.item(), deviations, n)


class MmdSettings(MetricSettings):
    """Settings of `mmd`."""

    features: str = Field(
        "samples", description="samples (flattened), inception, dinov2, or a feature space that the data name."
    )
    model: str | None = Field(None, description="Weights of inception or dinov2, as for fid and fd-dinov2.")
    bandwidth: float | None = Field(
        None, gt=0, description="Of the kernel; null: the median distance between real samples."
    )


class Mmd(Metric):
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased."""

    Settings = MmdSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights."""
        check_space(settings.type, settings.features, settings.model)

    def prepare(self, against: Against) -> None:
        """Features of the real samples, and the bandwidth."""
        own = self.settings
        self._space, self._details = space_of(own.type, own.features, own.model, against)
        real = in_parts(self._space, self.real(against))
        if min(len(real), against.num) < 3:
            raise MfdError(
                f"mmd: {len(real)} real and {against.num} generated samples",
                allowed="at least 3 of each; hundreds for a figure worth quoting",
            )
        self._to = MmdTo(real, own.bandwidth)

    def rows(self, batch: Batch) -> Tensor:
        """Features [B, F]."""
        return in_parts(self._space, batch.samples)

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """`mmd`."""
        return {self.named("mmd"): self._to.measured(rows)}

    def details(self) -> dict[str, Any]:
        """Feature space, model and bandwidth."""
        return {"features": self.settings.features, "bandwidth": self._to.bandwidth, **self._details}


def _off_diagonal(x: Tensor, bandwidth: float) -> Tensor:
    """Kernel sums of each row with the others [N]; with itself a row has 1."""
    return kernel_sums(x, x, bandwidth) - 1
