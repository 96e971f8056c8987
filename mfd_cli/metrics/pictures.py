"""Distances between sets of pictures in the features of a network: what FID, KID and CMMD have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images, weights
from mfd_cli.metrics.contract import TEACHER, Against, Batch, Distance, MetricSettings
from mfd_cli.metrics.features import AT_ONCE, Extractor, features_of, inception, inception_file
from mfd_cli.metrics.uncertainty import Measured


class PictureSettings(MetricSettings):
    """What distances between sets of pictures accept."""

    reference: str | None = Field(
        None,
        description="What samples are held against: a folder of real pictures; `teacher`: as many of the teacher's "
        "samples, at its own number of steps, for the same conditions and from other noise, with figures called "
        "..._teacher; null: the data's real samples.",
    )


class PictureDistance(Distance):
    """A distance between features of pictures and those of a reference.

    A subclass gives the network in `extractor`, says in `require` how many samples it needs, and computes in `take` and
    `measured`.
    """

    Settings: ClassVar[type[MetricSettings]] = PictureSettings
    figure: ClassVar[str]

    @abstractmethod
    def extractor(self, device: torch.device) -> tuple[Extractor, dict[str, Any]]:
        """The network, and what it holds for. Raises MfdError where its weights are missing."""

    @abstractmethod
    def require(self, num: int) -> None:
        """Raises MfdError where `num` samples, or pictures of the reference, are too few."""

    @abstractmethod
    def measured(self, features: Tensor) -> Measured:
        """The distance of features [N, F] from the reference."""

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses a reference that is not there; subclasses, missing weights."""
        if settings.reference not in (None, TEACHER):
            images.require_folder(Path(settings.reference).expanduser())

    def load(self, against: Against) -> None:
        """The network."""
        self._extractor, self._model = self.extractor(against.device)
        self.width, self._seed = self._extractor.width, against.seed
        self._count: int | None = None
        self.require(against.num)

    def rows(self, batch: Batch) -> Tensor:
        """Features [B, F]."""
        return features_of(self._extractor, batch.samples)

    def reference_rows(self, against: Against) -> Tensor:
        """Features of the data's real samples, or of the pictures in a folder."""
        if self.settings.reference is None:
            return super().reference_rows(against)
        place = Path(self.settings.reference).expanduser()
        paths = images.require_folder(place)
        if len(paths) < 2:
            raise MfdError(f"{place}: one picture is no reference", allowed="as many pictures as samples")
        shown = images.pictures_in(paths, self._extractor.pixels, AT_ONCE)
        return torch.cat([self._extractor(pixels) for pixels in shown])

    def hold_against(self, rows: Tensor) -> None:
        """Features of the reference."""
        self._count = len(rows)
        self.take(rows)

    @abstractmethod
    def take(self, features: Tensor) -> None:
        """Prepares distances from features [M, F]. Raises MfdError for too few."""

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """The distance."""
        return {self.named(self.figure): self.measured(rows)}

    def details(self) -> dict[str, Any]:
        """Model, its weights, and the reference."""
        return {**self._model, "reference": self.settings.reference or "data", "reference_num": self._count}


class OnInception(PictureDistance):
    """A distance in the features of FID's Inception, whose settings name its weights as `model`."""

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights, and a reference that is not there."""
        inception_file(settings.type, settings.model)
        super().check(settings)

    def extractor(self, device: torch.device) -> tuple[Extractor, dict[str, Any]]:
        """FID's Inception."""
        return inception(self.settings.type, self.settings.model, device)


class OnModel(PictureDistance):
    """A distance in the features of a folder in transformers' layout, which its settings name as `model`."""

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights, and a reference that is not there."""
        weights.locate(settings.type, "model", settings.model)
        super().check(settings)
