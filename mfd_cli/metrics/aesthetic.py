"""LAION's aesthetic score: a linear head on CLIP's embedding of a picture. No prompt is needed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from mfd_cli.metrics import weights
from mfd_cli.metrics.clip import CLIP_L, PictureScore, clip_pixels, two_towers
from mfd_cli.metrics.contract import Against, MetricSettings
from teachers.weights import load_into

GET = (
    "download sac+logos+ava1-l14-linearMSE.pth (github.com/christophschuhmann/improved-aesthetic-predictor), then: "
    "mfd metrics convert aesthetic sac+logos+ava1-l14-linearMSE.pth -o aesthetic.safetensors"
)


class Head(nn.Module):
    """Five linear layers without anything between them, so one affine map; ImageReward has the same.

    Args:
        width: of the embedding.
        inner: widths between the layers.
    """

    def __init__(self, width: int = 768, inner: tuple[int, ...] = (1024, 128, 64, 16)) -> None:
        super().__init__()
        widths = [width, *inner, 1]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            layers.append(nn.Linear(before, after))
            if index < 3:
                layers.append(nn.Identity())  # dropout of the training, which counts in the names
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B] of embeddings [B, width]."""
        return self.layers(x)[:, 0]


def head_of(tensors: dict[str, Tensor], path: Path, width: int) -> Head:
    """A head with the weights `layers.0.weight` and so on of a file.

    Raises:
        MfdError: they do not fit an embedding of this width.
    """
    head = Head(width)
    load_into(head, tensors, path)
    return head.eval().requires_grad_(False)


class AestheticSettings(MetricSettings):
    """Settings of `aesthetic`."""

    model: str | None = Field(None, description="The head: a .safetensors file (docs/metrics.md says how to get it).")
    clip: str = Field(
        CLIP_L, description="The CLIP that the head was trained on, a folder or a hub repository; no other fits."
    )


class Aesthetic(PictureScore):
    """LAION's aesthetic predictor v2, about 1 to 10, on the normalised embedding of OpenAI's CLIP ViT-L/14.

    Source: Schuhmann 2022, github.com/christophschuhmann/improved-aesthetic-predictor.
    """

    Settings = AestheticSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses a missing head and a missing CLIP."""
        weights.require_file(settings.type, "model", settings.model, get=GET)
        weights.locate(settings.type, "clip", settings.clip)

    def prepare(self, against: Against) -> None:
        """CLIP and the head."""
        own = self.settings
        file = weights.require_file(own.type, "model", own.model, get=GET)
        folder = weights.locate(own.type, "clip", own.clip)
        self._towers = two_towers(own.type, folder, None, against.device)
        self._head = head_of(weights.tensors_of(file), file, self._towers.width)
        self._details = {**weights.identity(str(own.model), file), "clip": weights.identity(own.clip, folder)}

    def scores(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """The head's value of each picture [B]."""
        return self._head(self._towers.pictures(clip_pixels(pictures, self._towers.size)))

    def details(self) -> dict[str, Any]:
        """Head and CLIP."""
        return self._details
