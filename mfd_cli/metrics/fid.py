"""Fréchet distances between features of pictures: FID, FD-DINOv2 and FID of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics import weights
from mfd_cli.metrics.contract import Against
from mfd_cli.metrics.features import DINOV2, Extractor, InceptionPatch, dinov2, inception_file
from mfd_cli.metrics.frechet import FrechetTo, Moments, moments, require_samples
from mfd_cli.metrics.pictures import OnInception, OnModel, PictureDistance, PictureSettings
from mfd_cli.metrics.uncertainty import Measured
from teachers.arrays import read_arrays


class FrechetSettings(PictureSettings):
    """What these distances accept."""

    reference: str | None = Field(
        None,
        description="What samples are held against: a folder of real pictures; an .npz with mu and sigma of the "
        "features; `teacher`: as many of the teacher's samples, at its own number of steps, for the same conditions "
        "and from other noise, with figures called ..._teacher; null: the data's real samples.",
    )


class FidSettings(FrechetSettings):
    """Settings of `fid` and `patch-fid`."""

    model: str | None = Field(None, description="Weights of FID's Inception: a .safetensors file (docs/metrics.md).")


class FdDinov2Settings(FrechetSettings):
    """Settings of `fd-dinov2`."""

    model: str = Field(DINOV2, description="DINOv2: a folder in transformers' layout, or a hub repository.")


class _PictureFrechet(PictureDistance):
    """Fréchet distance between features of pictures."""

    Settings = FrechetSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses a reference that is not there."""
        if (settings.reference or "").endswith(".npz"):
            _statistics(Path(settings.reference).expanduser())
        else:
            super().check(settings)

    def prepare(self, against: Against) -> None:
        """The network, and moments of the reference."""
        self._num = against.num
        if (self.settings.reference or "").endswith(".npz"):
            self.load(against)
            self._hold(_statistics(Path(self.settings.reference).expanduser()))
        else:
            super().prepare(against)

    def require(self, num: int) -> None:
        """Refuses a singular covariance."""
        require_samples(self.named(self.figure), self.width, num)

    def take(self, features: Tensor) -> None:
        """Moments of the reference."""
        self._hold(moments(features))

    def measured(self, features: Tensor) -> Measured:
        """The distance, with its bootstrap standard error."""
        return self._to.measured(features)

    def _hold(self, reference: Moments) -> None:
        self._to = FrechetTo(self.named(self.figure), reference, self._num, self._seed)


class Fid(OnInception, _PictureFrechet):
    """Fréchet Inception distance: on the 2048 features of TensorFlow's Inception of 2015-12-05.

    Source: Heusel et al. 2017 (arXiv 1706.08500).
    """

    Settings = FidSettings
    figure = "fid"


class PatchFid(Fid):
    """FID of the middle 299 x 299 pixels, which are not resized, so that it sees fine structure.

    Source: Lin et al. 2024 (SDXL-Lightning, arXiv 2402.13929).
    """

    figure = "patch_fid"

    def extractor(self, device: torch.device) -> tuple[Extractor, dict[str, Any]]:
        """FID's Inception on patches."""
        file = inception_file(self.settings.type, self.settings.model)
        return InceptionPatch(file, device), weights.identity(str(self.settings.model), file)


class FdDinov2(OnModel, _PictureFrechet):
    """Fréchet distance on the class tokens of DINOv2 ViT-L/14.

    Source: Stein et al. 2023 (arXiv 2306.04675).
    """

    Settings = FdDinov2Settings
    figure = "fd_dinov2"

    def extractor(self, device: torch.device) -> tuple[Extractor, dict[str, Any]]:
        """DINOv2."""
        return dinov2(self.settings.type, self.settings.model, device)


def _statistics(path: Path) -> Moments:
    """Mean and covariance from an .npz. Raises MfdError if they are not there."""
    try:
        mean, covariance = (torch.from_numpy(held).double() for held in read_arrays(path, "mu", "sigma"))
    except (ValueError, TypeError) as error:
        raise MfdError(
            f"{path}: not readable ({error})", allowed="an .npz with arrays mu [F] and sigma [F, F]"
        ) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise MfdError(
            f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)}", allowed="mu [F] and sigma [F, F]"
        )
    return Moments(mean, covariance)
