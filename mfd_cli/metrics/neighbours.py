"""Precision, recall, density and coverage: balls around samples that reach to their k-th nearest neighbour.

Shapes: N generated samples y, M real ones x, F features. r_k(p) is the distance of a point to its k-th nearest
neighbour within its own set, itself left out.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics.contract import Against, Batch, Distance, DistanceSettings
from mfd_cli.metrics.features import check_space, space_of
from mfd_cli.metrics.frechet import in_parts
from mfd_cli.metrics.uncertainty import Measured, mean_of, share_of

#: rows of a distance matrix held at once
_BLOCK = 500


def radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance of every point [N, F] to its k-th nearest neighbour among the others, float64 [N]."""
    wide, parts = points.double(), []
    for first in range(0, len(wide), _BLOCK):
        distances = torch.cdist(wide[first : first + _BLOCK], wide)
        own = torch.arange(len(distances))
        distances[own, first + own] = torch.inf
        parts.append(distances.kthvalue(neighbours, dim=1).values)
    return torch.cat(parts)


def precision_recall(real: Tensor, generated: Tensor, neighbours: int) -> dict[str, Measured]:
    """`precision`, `recall`, `density` and `coverage` of generated samples [N, F] against real ones [M, F].

        precision = share of y inside at least one ball of radius r_k(x) around an x
        recall    = share of x inside at least one ball of radius r_k(y) around a y
        density   = 1/(k N) sum over y of the number of balls around x that it lies in
        coverage  = share of x whose own ball holds at least one y

    Standard errors are over generated samples for precision and density, over real ones for recall and coverage, as
    of independent points with the balls held fixed.

    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), Naeem et al. 2020 (arXiv 2002.09797).
    """
    return _measured(real.double(), radii(real, neighbours), generated.double(), neighbours)


def _measured(real: Tensor, of_real: Tensor, generated: Tensor, neighbours: int) -> dict[str, Measured]:
    of_generated = radii(generated, neighbours)
    balls = torch.zeros(len(generated), dtype=torch.float64)
    recalled, covered = [], []
    for points, radius in zip(real.split(_BLOCK), of_real.split(_BLOCK), strict=True):
        distances = torch.cdist(points, generated)
        inside = distances <= radius[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= of_generated).any(1))
    return {
        "precision": share_of(balls > 0),
        "recall": share_of(torch.cat(recalled)),
        "density": mean_of(balls / neighbours, more_is_better=True),
        "coverage": share_of(torch.cat(covered)),
    }


class PrecisionRecallSettings(DistanceSettings):
    """Settings of `precision-recall`."""

    neighbours: int = Field(5, ge=1, description="k, the neighbour that a ball reaches to: 3 in the paper of 2019.")
    features: str = Field(
        "samples", description="samples (flattened), inception, dinov2, or a feature space that the data name."
    )
    model: str | None = Field(None, description="Weights of inception or dinov2, as for fid and fd-dinov2.")


class PrecisionRecall(Distance):
    """Precision, recall, density and coverage by nearest neighbours."""

    Settings = PrecisionRecallSettings
    more_is_better = True

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights."""
        check_space(settings.type, settings.features, settings.model)

    def load(self, against: Against) -> None:
        """The feature space."""
        own = self.settings
        self._require(against.num)
        self._space, self._details = space_of(own.type, own.features, own.model, against)

    def hold_against(self, rows: Tensor) -> None:
        """Features of the reference, and the radii of their balls."""
        self._require(len(rows))
        self._real = rows.double()
        self._radii = radii(self._real, self.settings.neighbours)

    def rows(self, batch: Batch) -> Tensor:
        """Features [B, F]."""
        return in_parts(self._space, batch.samples)

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """The four of `precision_recall`."""
        found = _measured(self._real, self._radii, rows.double(), self.settings.neighbours)
        return {self.named(name): figure for name, figure in found.items()}

    def details(self) -> dict[str, Any]:
        """Feature space, model and neighbours."""
        own = {"features": self.settings.features, "neighbours": self.settings.neighbours}
        return {**own, **self._details, **super().details()}

    def _require(self, num: int) -> None:
        neighbours = self.settings.neighbours
        if num <= neighbours:
            raise MfdError(
                f"precision-recall: {num} samples for {neighbours} neighbours",
                allowed=f"more than {neighbours} real and generated samples; thousands for a figure worth quoting",
            )
