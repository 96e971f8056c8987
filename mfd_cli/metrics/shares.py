"""Shares of samples: of the class that was asked for, and inside the modes of a known mixture.

Shapes: N samples, D numbers a sample, K modes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics.contract import Against, Batch, Metric
from mfd_cli.metrics.frechet import FEATURE_BATCH
from mfd_cli.metrics.uncertainty import Measured, bootstrap, from_deviations, share_of


class ModeShares(NamedTuple):
    """Share of all samples that lie inside each mode [K], and inside any of them."""

    shares: Tensor
    inside: float


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


class ClassAgreement(Metric):
    """Share of samples that an independent classifier gives the class that was asked for."""

    more_is_better = True

    def prepare(self, against: Against) -> None:
        """Nothing: the classifier is the data source's."""
        self._data = against.data

    def rows(self, batch: Batch) -> Tensor:
        """Whether each sample shows what was asked, bool [B]; [B, 0] where nothing was asked or can be told."""
        given = [self._data.classify(part) for part in batch.samples.split(FEATURE_BATCH)]
        predicted = [part.cpu() for part in given if part is not None]
        if batch.asked is None or not predicted:
            return torch.zeros(len(batch.samples), 0, dtype=torch.bool)
        return torch.cat(predicted) == batch.asked.cpu()

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """`class_agreement`, where there is any."""
        return {} if rows.ndim > 1 else {self.named("class_agreement"): share_of(rows)}


class ModeCoverage(Metric):
    """Share of samples within 3 deviations of a mode, and of the modes the one that is shown least."""

    more_is_better = True

    @classmethod
    def offered(cls, against: Against) -> bool:
        """Of real samples of a mixture whose modes are known, some of which lie in one."""
        modes = against.data.modes() if against.real is not None else None
        return modes is not None and bool(mode_shares(against.real.flatten(1), *modes).shares.sum() > 0)  # type: ignore[union-attr]

    def prepare(self, against: Against) -> None:
        """The share of every mode among the real samples."""
        modes = against.data.modes()
        if modes is None:
            raise MfdError("evaluate.metrics: modes needs data whose modes are known", allowed="data such as gmm")
        self._modes, self._seed = modes, against.seed
        self._real = mode_shares(self.real(against).flatten(1), *modes).shares

    def rows(self, batch: Batch) -> Tensor:
        """The mode each sample lies in [B]; -1 for none."""
        return mode_members(batch.samples.flatten(1), *self._modes)

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """`in_mode`, and `mode_coverage`: the smallest, over modes, of share / share among the real samples."""
        wanted = self._real > 0

        def coverage(members: Tensor) -> float:
            shares = shares_of(members, len(self._modes.means)).shares
            return (shares[wanted] / self._real[wanted]).min().item()

        deviations = bootstrap(lambda drawn: {"": coverage(rows[drawn])}, len(rows), seed=self._seed)[""]
        return {
            self.named("in_mode"): share_of(rows >= 0),
            self.named("mode_coverage"): from_deviations(coverage(rows), deviations, len(rows), more_is_better=True),
        }
