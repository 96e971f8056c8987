"""Kernel distances between features of pictures: KID and CMMD.

Shapes: N generated pictures, M of the reference, F features.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics import weights
from mfd_cli.metrics.features import ClipFeatures, Extractor
from mfd_cli.metrics.mmd import MmdTo, gaussian
from mfd_cli.metrics.pictures import OnInception, OnModel, PictureSettings
from mfd_cli.metrics.uncertainty import Measured, from_deviations
from mfd_cli.seeds import Stream

CLIP_336 = "openai/clip-vit-large-patch14-336"

#: CMMD's kernel, and the factor that its figures are published with
BANDWIDTH, SCALE = 10.0, 1000.0


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """KID's kernel (a.b / F + 1)^3 of the rows of [..., B, F] and [..., M, F]."""
    return (a @ b.transpose(-1, -2) / a.shape[-1] + 1) ** 3


def subset(total: int, size: int, seed: int, number: int, side: str) -> Tensor:
    """Indices int64 [size] of different ones of `total`, drawn by (seed, number, side)."""
    return Stream(seed, number, 0, total).uniform(f"kid.{side}").argsort()[:size]


def kid(features: Tensor, reference: Tensor, *, subsets: int, size: int, seed: int) -> Measured:
    """Mean unbiased squared MMD with the kernel (a.b / F + 1)^3 between subsets.

    A sample's deviation is the sum of those that the jackknife gives it in its subsets, so the standard error counts
    how often each sample was drawn; the spread over subsets, which share samples, would not.

    Args:
        features: of generated pictures [N, F].
        reference: of the others [M, F].
        subsets: how many.
        size: pictures of each side in a subset, drawn without replacement.
        seed: names the draws.

    Source: Bińkowski et al. 2018 (arXiv 1801.01401).
    """
    value, deviations = 0.0, torch.zeros(len(features), dtype=torch.float64)
    for number in range(subsets):
        drawn = subset(len(features), size, seed, number, "generated")
        to = MmdTo(reference[subset(len(reference), size, seed, number, "reference")], cubic)
        found = to.measured(features[drawn])
        assert found.deviations is not None
        value += found.value / subsets
        deviations.index_add_(0, drawn, found.deviations / subsets)
    return from_deviations(value, deviations, len(features))


class KidSettings(PictureSettings):
    """Settings of `kid`."""

    model: str | None = Field(None, description="Weights of FID's Inception: a .safetensors file (docs/metrics.md).")
    subsets: int = Field(100, ge=1, description="Subsets that the figure is the mean of.")
    subset_size: int = Field(1000, ge=3, description="Pictures of each side in a subset.")


class Kid(OnInception):
    """Kernel Inception distance: unbiased MMD with a cubic kernel on FID's features, mean over subsets.

    Source: Bińkowski et al. 2018 (arXiv 1801.01401).
    """

    Settings = KidSettings
    figure = "kid"

    def require(self, num: int) -> None:
        """Refuses fewer pictures than a subset has."""
        if num < self.settings.subset_size:
            raise MfdError(
                f"kid: {num} pictures for subsets of {self.settings.subset_size}",
                allowed="at least as many generated ones, and as many of the reference, as subset_size",
                do="use a larger --num, or a smaller subset_size: the figure stays unbiased",
            )

    def take(self, features: Tensor) -> None:
        """Features of the reference."""
        self.require(len(features))
        self._reference = features

    def measured(self, features: Tensor) -> Measured:
        """The mean over subsets."""
        own = self.settings
        return kid(features, self._reference, subsets=own.subsets, size=own.subset_size, seed=self._seed)

    def details(self) -> dict[str, Any]:
        """Model, reference and subsets."""
        return {**super().details(), "subsets": self.settings.subsets, "subset_size": self.settings.subset_size}


class CmmdSettings(PictureSettings):
    """Settings of `cmmd`."""

    model: str = Field(CLIP_336, description="CLIP: a folder in transformers' layout, or a hub repository.")


class Cmmd(OnModel):
    """CLIP MMD: 1000 times the biased MMD with a Gaussian kernel of bandwidth 10 on CLIP's embeddings.

    Source: Jayasumana et al. 2024 (arXiv 2401.09603).
    """

    Settings = CmmdSettings
    figure = "cmmd"

    def extractor(self, device: torch.device) -> tuple[Extractor, dict[str, Any]]:
        """CLIP's tower of pictures."""
        folder = weights.locate(self.settings.type, "model", self.settings.model)
        return ClipFeatures(folder, self.settings.type, device), weights.identity(self.settings.model, folder)

    def require(self, num: int) -> None:
        """Refuses what no error can be computed of."""
        if num < 3:
            raise MfdError(f"cmmd: {num} pictures", allowed="at least 3; thousands for a figure worth quoting")

    def take(self, features: Tensor) -> None:
        """Embeddings of the reference."""
        self.require(len(features))
        self._to = MmdTo(features, gaussian(BANDWIDTH), biased=True)

    def measured(self, features: Tensor) -> Measured:
        """1000 times the discrepancy, with its jackknife standard error."""
        found = self._to.measured(features)
        assert found.deviations is not None
        return from_deviations(SCALE * found.value, SCALE * found.deviations, found.num)
