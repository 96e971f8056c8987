"""Teacher `digits`: handwritten digits of 8x8 pixels, class-conditional. Data and weights ship with mfd.

The 1,797 images are the test part of the UCI "Optical Recognition of Handwritten Digits" set
(teachers/assets/digits/README.md). The teacher is an `images` teacher trained on them; the classifier that judges
samples was trained apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from teachers.base import Teacher
from teachers.images import ImagesData, ImagesSettings, ImagesTeacher, read_images
from teachers.networks.classifier import DigitClassifier
from teachers.settings import Settings
from teachers.weights import load_into, read_header, read_tensors

_ASSETS = Path(str(files("teachers.assets.digits")))
_WHITE = 16  # pixel values are 0 .. 16


class DigitsSettings(ImagesSettings):
    """Settings of `digits`."""

    weights: str | None = Field(  # type: ignore[assignment]
        None, description="Safetensors file that `mfd teachers train` wrote; null: the weights that ship with mfd."
    )


class DigitsTeacher(ImagesTeacher):
    """The digits teacher."""

    Settings = DigitsSettings

    def __init__(self, settings: Any, architecture: Mapping[str, Any]) -> None:
        super().__init__(_placed(settings), architecture)

    @classmethod
    def load(cls, settings: Any) -> DigitsTeacher:
        """The shipped weights, or those of a file."""
        return super().load(_placed(settings))  # type: ignore[return-value]


class DigitsData(ImagesData):
    """The real digits, and a classifier that judges samples of them."""

    Settings = Settings  # type: ignore[assignment]

    def __init__(self, images: Tensor, labels: Tensor, largest: int) -> None:
        super().__init__(images, labels, largest)
        self._classifier: DigitClassifier | None = None

    @classmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> DigitsData:
        """The shipped digits."""
        images, labels = read_images(_ASSETS / "digits.npz")
        return cls(images, labels, _WHITE).fitting(teacher, "digits")  # type: ignore[return-value]

    def spaces(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Raw pixels in [-1, 1], and the classifier's features."""
        return {
            "frechet": lambda samples: samples.flatten(1) * 2 - 1,
            "frechet_features": lambda samples: self._judge().features(samples * 2 - 1),
        }

    @torch.inference_mode()
    def classify(self, samples: Tensor) -> Tensor:
        """The classifier's most likely digit."""
        return self._judge()(samples * 2 - 1).argmax(dim=1)

    def _judge(self) -> DigitClassifier:
        if self._classifier is None:
            path = _ASSETS / "classifier.safetensors"
            classifier = DigitClassifier(**read_header(path)["architecture"])
            load_into(classifier, read_tensors(path), path)
            self._classifier = classifier.eval().requires_grad_(False)
        return self._classifier


def _placed(settings: DigitsSettings) -> DigitsSettings:
    if settings.weights is not None:
        return settings
    return settings.model_copy(update={"weights": str(_ASSETS / "teacher.safetensors")})
