"""What a metric is: rows of numbers for the samples of a batch, and figures from the rows of all samples.

A metric sees every batch once and keeps only its rows, so that large pictures need not be held. Further metrics come
from plugins: `@register("name")`, or an entry point in the group `mfd.metrics`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics.uncertainty import Measured
from teachers.base import Data
from teachers.settings import Settings

#: the `reference` of a metric that holds samples against the teacher's
TEACHER = "teacher"


class MetricSettings(Settings):
    """What every metric accepts."""

    label: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9.-]+$",
        description="Added to the names of its figures (clip_score_LABEL); needed where a metric is listed twice.",
    )


class Batch(NamedTuple):
    """Some of the samples that a model is judged by.

    Attributes:
        samples: decoded, on the CPU [B, ...].
        items: items of the data that their conditions are [B].
        asked: class indices that they were asked to show [B], if the family takes them.
        prompts: texts that they were asked to show, B of them, if the data are prompts.
    """

    samples: Tensor
    items: Tensor
    asked: Tensor | None = None
    prompts: list[str] | None = None


@dataclass(frozen=True)
class Against:
    """What samples are held against, the same for every model and metric.

    Attributes:
        data: where conditions come from.
        num: samples N that each model is judged by.
        seed: names noise, directions and draws.
        real: decoded real samples [M, ...]; None where the data have none.
        device: where networks compute.
    """

    data: Data
    num: int
    seed: int
    real: Tensor | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Metric(ABC):
    """One metric, with the settings that a recipe gives it."""

    #: subclass of MetricSettings: the recipe keys of this metric
    Settings: ClassVar[type[MetricSettings]] = MetricSettings
    #: direction of its figures
    more_is_better: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raises MfdError for weights or files that are missing, before anything is sampled or trained."""
        return None

    @classmethod
    def offered(cls, against: Against) -> bool:
        """Whether the data allow it; asked of the metrics that are used without being listed."""
        return against.real is not None

    @abstractmethod
    def prepare(self, against: Against) -> None:
        """Loads what it needs, once for all models.

        Raises:
            MfdError: weights are missing or do not fit, or the data have not what it needs.
        """

    @abstractmethod
    def rows(self, batch: Batch) -> Tensor:
        """What it keeps of a batch, on the CPU: [B, ...]."""

    @abstractmethod
    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """Its figures, by name.

        Args:
            rows: those of all samples [N, ...].
            groups: numbers int64 [N], equal for samples that are not independent, such as pictures of one prompt.
        """

    def details(self) -> dict[str, Any]:
        """What its figures hold for, as plain JSON data: model, weights, settings of the computation."""
        return {}

    def named(self, figure: str) -> str:
        """The name of a figure in reports."""
        return figure if self.settings.label is None else f"{figure}_{self.settings.label}"

    def real(self, against: Against) -> Tensor:
        """The real samples. Raises MfdError where there are none."""
        if against.real is None:
            raise MfdError(
                f"evaluate.metrics: {self.settings.type} needs real samples, and the data have none",
                allowed="data with real samples, or a metric of single images such as clip-score",
            )
        return against.real

    def require_prompts(self, against: Against) -> None:
        """Raises MfdError where the data are no prompts."""
        if against.data.texts(torch.zeros(0, dtype=torch.long)) is None:
            raise MfdError(
                f"evaluate.metrics: {self.settings.type} holds pictures against prompts, and the data have none",
                allowed="data of prompts; for other pictures a metric such as aesthetic or fid",
            )


class DistanceSettings(MetricSettings):
    """What metrics between sets of samples accept."""

    reference: Literal["data", "teacher"] = Field(
        "data",
        description="What samples are held against: the data's real samples, or as many of the teacher's, at its own "
        "number of steps, for the same conditions and from other noise. Figures of the latter are called ..._teacher.",
    )


class Distance(Metric):
    """A metric between two sets: rows of samples against those of a reference, which is real or the teacher's."""

    Settings: ClassVar[type[MetricSettings]] = DistanceSettings

    @property
    def against_teacher(self) -> bool:
        """Whether `hold_against` waits for rows of the teacher's samples, `Against.num` of them."""
        return self.settings.reference == TEACHER

    def prepare(self, against: Against) -> None:
        """Loads what it needs, and takes the reference unless that is the teacher's."""
        self.load(against)
        if not self.against_teacher:
            self.hold_against(self.reference_rows(against))

    @abstractmethod
    def load(self, against: Against) -> None:
        """What `prepare` does before there is a reference, with its errors."""

    def reference_rows(self, against: Against) -> Tensor:
        """Rows of the reference [M, ...], where it is not the teacher's."""
        real = self.real(against)
        return self.rows(Batch(real, torch.arange(len(real))))

    @abstractmethod
    def hold_against(self, rows: Tensor) -> None:
        """Takes the rows of the reference [M, ...].

        Raises:
            MfdError: too few.
        """

    def details(self) -> dict[str, Any]:
        """The reference, where it is not the data's."""
        return {"reference": TEACHER} if self.against_teacher else {}

    def named(self, figure: str) -> str:
        """The name of a figure in reports; a distance to the teacher is never mistaken for one to real samples."""
        return super().named(f"{figure}_{TEACHER}" if self.against_teacher else figure)


_MORE_BEGIN = (
    "class_agreement", "in_mode", "mode_coverage", "precision", "recall", "density", "coverage",
    "iou", "miou", "clip_score", "pickscore", "aesthetic", "hpsv2", "image_reward",
)  # fmt: skip


def higher_is_better(figure: str) -> bool:
    """Whether more of a figure of mfd's own metrics is better, by its name; reports say so of every figure."""
    return figure.startswith(_MORE_BEGIN)
