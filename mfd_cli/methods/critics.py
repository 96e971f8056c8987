"""What adversarial terms share: a critic of features, and the two losses."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as functional
from pydantic import Field
from torch import Tensor, nn

from teachers.settings import Strict

Form = Literal["softplus", "hinge"]


class CriticSettings(Strict):
    """A critic."""

    width: int = Field(128, ge=1, description="Hidden units of the critic.")


class TokenCritic(nn.Module):
    """Logits of features: the same perceptron for every token, averaged.

    Works on features of any network, [B, N, C]: the tokens of a transformer, the places of an image, or one vector.

    Args:
        channels: C.
        width: hidden units.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, C] to [B]."""
        return self.layers(features.float()).mean(dim=(1, 2))


def fooling_loss(logits: Tensor, form: Form) -> Tensor:
    """What the student descends, per sample [B]: softplus(-l) (Goodfellow et al. 2014, non-saturating), or -l."""
    return functional.softplus(-logits) if form == "softplus" else -logits


def judging_loss(real: Tensor, fake: Tensor, form: Form) -> Tensor:
    """What the critic descends, per sample [B]: logistic, or hinge (Lim and Ye 2017, arXiv 1705.02894)."""
    if form == "softplus":
        return functional.softplus(fake) + functional.softplus(-real)
    return functional.relu(1 + fake) + functional.relu(1 - real)
