"""CLIP and the scores that are a cosine of its embeddings: CLIP score and PickScore."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mfd_cli.metrics import images, weights
from mfd_cli.metrics.contract import Against, Batch, Metric, MetricSettings
from mfd_cli.metrics.uncertainty import Measured, mean_of

#: OpenAI's ViT-L/14, and the model whose tokenizer and preprocessing PickScore and HPSv2 use
CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

#: pictures, and texts, that go through a network at once
AT_ONCE = 32


class TwoTowers:
    """A CLIP: embeddings of pictures and texts, of length 1.

    Args:
        model: a transformers CLIPModel.
        tokenizer: its tokenizer; None where only pictures are embedded.
        device: where it computes.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self._model, self._tokenizer, self._device = model.to(device), tokenizer, device
        #: side of a picture that it takes
        self.size = int(model.config.vision_config.image_size)
        #: of an embedding
        self.width = int(model.config.projection_dim)
        #: exp(logit_scale)
        self.scale = float(model.logit_scale.exp())

    def pictures(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, F] of normalised pictures [B, 3, size, size], on the CPU."""
        # submodules: what the model's own get_image_features returns differs between versions of transformers
        pooled = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
        return functional.normalize(self._model.visual_projection(pooled), dim=-1).cpu()

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, F] of texts, cut to the tokens that the model knows places for, on the CPU."""
        places = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=places, return_tensors="pt"
        ).input_ids
        # no mask: attention looks back only, and what is read stands before the padding
        pooled = self._model.text_model(input_ids=tokens.to(self._device)).pooler_output
        return functional.normalize(self._model.text_projection(pooled), dim=-1).cpu()


def clip_pixels(pictures: Tensor, size: int) -> Tensor:
    """CLIP's preprocessing of pictures uint8 [B, 3, H, W]: short side to `size`, centre, CLIP's mean and deviation."""
    return images.normalised(images.short_side_to(pictures, size), images.CLIP_MEAN, images.CLIP_STD)


def two_towers(metric: str, folder: Path, tokens: Path | None, device: torch.device) -> TwoTowers:
    """A CLIP from a folder, with the tokenizer of another."""
    from transformers import CLIPModel

    tokenizer = None if tokens is None else weights.tokenizer(tokens, metric)
    return TwoTowers(weights.loaded(CLIPModel, folder, metric), tokenizer, device)


class PictureScore(Metric):
    """A score of every single picture; the figure is the mean, under the metric's name."""

    more_is_better = True

    @abstractmethod
    def scores(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pictures uint8 [B, 3, H, W] for their prompts; of metrics without prompts these are empty."""

    def rows(self, batch: Batch) -> Tensor:
        """The score of each picture [B]."""
        prompts = batch.prompts or [""] * len(batch.samples)
        parts = []
        for first in range(0, len(prompts), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            parts.append(self.scores(images.to_uint8(batch.samples[some]), prompts[some]))
        return torch.cat(parts)

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """The mean; its standard error is over prompts where several pictures share one."""
        name = self.settings.type.replace("-", "_")
        return {self.named(name): mean_of(rows, groups, more_is_better=True)}


class ClipScoreSettings(MetricSettings):
    """Settings of `clip-score`."""

    model: str = Field(CLIP_L, description="CLIP: a folder in transformers' layout, or a hub repository.")


class PickScoreSettings(MetricSettings):
    """Settings of `pickscore`."""

    model: str = Field(
        "yuvalkirstain/PickScore_v1", description="The model: a folder in transformers' layout, or a hub repository."
    )
    tokenizer: str | None = Field(
        CLIP_H, description="Its tokenizer: folder or hub repository; null: beside the model."
    )


class ClipScore(PictureScore):
    """100 times the cosine between CLIP's embeddings of picture and prompt.

    Source: Hessel et al. 2021 (arXiv 2104.08718), with factor 100 and without its clipping at 0.
    """

    Settings: ClassVar[type[MetricSettings]] = ClipScoreSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights."""
        weights.locate(settings.type, "model", settings.model)

    def prepare(self, against: Against) -> None:
        """The model."""
        self.require_prompts(against)
        folder = weights.locate(self.settings.type, "model", self.settings.model)
        self._towers = two_towers(self.settings.type, folder, folder, against.device)
        self._details = weights.identity(self.settings.model, folder)
        self._factor = 100.0

    def scores(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """100 cos, of each picture."""
        towers = self._towers
        cosines = (towers.pictures(clip_pixels(pictures, towers.size)) * towers.texts(prompts)).sum(1)
        return self._factor * cosines

    def details(self) -> dict[str, Any]:
        """Model and weights."""
        return self._details


class PickScore(ClipScore):
    """exp(logit_scale) times the cosine between PickScore's embeddings of picture and prompt.

    Source: Kirstain et al. 2023 (arXiv 2305.01569).
    """

    Settings = PickScoreSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights and a missing tokenizer."""
        super().check(settings)
        if settings.tokenizer is not None:
            weights.locate(settings.type, "tokenizer", settings.tokenizer, weights=False)

    def prepare(self, against: Against) -> None:
        """The model."""
        own = self.settings
        self.require_prompts(against)
        folder = weights.locate(own.type, "model", own.model)
        tokens = weights.locate(own.type, "tokenizer", own.tokenizer, weights=False) if own.tokenizer else folder
        self._towers = two_towers(own.type, folder, tokens, against.device)
        self._details = weights.identity(own.model, folder)
        self._factor = self._towers.scale
