"""DMD2's adversarial term, for any method with an auxiliary.

Source: Yin et al. 2024, arXiv 2405.14867, section 4.2 (a "diffusion GAN"): fake and real samples are noised to the same
uniform times, and the critic reads the auxiliary network's features of them, from which that learns as well. It may be
given finished samples instead, as SenseFlow's is (Ge et al. 2025, arXiv 2506.00523).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field, field_validator
from torch import Tensor, nn

from mfd_cli.flow import interpolate
from mfd_cli.methods import critics
from mfd_cli.methods.base import Batch, Loss
from mfd_cli.methods.critics import CriticSettings
from mfd_cli.methods.features import extracted, known

#: the features that are of noised samples
AUXILIARY = "auxiliary"


class Adversarial(CriticSettings):
    """The adversarial term."""

    weight: float = Field(3e-3, gt=0, description="w_g, its share of the student's loss (ImageNet's; SDXL 5e-3).")
    critic_weight: float = Field(1e-2, gt=0, description="w_d, its share of the auxiliary's loss.")
    features: str = Field(
        AUXILIARY,
        description="What it judges: auxiliary (the auxiliary's features of noised samples, DMD2's); or of finished "
        "samples state (the numbers themselves), teacher (the teacher's features), or what a plugin's extractor gives.",
    )

    @field_validator("features")
    @classmethod
    def _known(cls, name: str) -> str:
        return known(name, AUXILIARY)


def build(wanted: Adversarial | None, example: Callable[[], Batch]) -> nn.Module | None:
    """A critic of the auxiliary's features; None where no term is wanted."""
    if wanted is None:
        return None
    batch = example()
    return critics.TokenCritic(_features(wanted, batch, batch.real).shape[-1], wanted.width)


def judged(wanted: Adversarial | None, batch: Batch, fake: Tensor, loss: Loss) -> Loss:
    """An auxiliary's loss with the critic's added: it is to tell `fake` [B, ...] from the batch's real states."""
    if wanted is None:
        return loss
    real, fake = (_logits(wanted, batch, states) for states in (batch.real, fake))
    value = critics.judging_loss(real, fake, "softplus").mean()
    return replace(
        loss, value=loss.value + wanted.critic_weight * value, report=loss.shown,
        parts={**loss.parts, "critic_loss": value.detach()},
    )  # fmt: skip


def fooled(wanted: Adversarial | None, batch: Batch, fake: Tensor, loss: Loss) -> Loss:
    """A student's loss with the term that makes `fake` [B, ...], which has a gradient, look real."""
    if wanted is None:
        return loss
    value = critics.fooling_loss(_logits(wanted, batch, fake), "softplus").mean()
    return replace(
        loss, value=loss.value + wanted.weight * value, report=loss.shown,
        parts={**loss.parts, "adversarial_loss": value.detach()},
    )  # fmt: skip


def _logits(wanted: Adversarial, batch: Batch, data: Tensor) -> Tensor:
    """The critic's logits [B] of states X_1."""
    assert batch.critic is not None, "built by build_critic"
    return batch.critic(_features(wanted, batch, data))


def _features(wanted: Adversarial, batch: Batch, data: Tensor) -> Tensor:
    """Features [B, N, C] of states X_1, or of them noised to times that real and fake ones share."""
    if wanted.features != AUXILIARY:
        return extracted(wanted.features, batch.teacher, data)
    t = batch.random.uniform("critic.t")
    found: Tensor = batch.auxiliary.features(interpolate(batch.random.normal("critic.x0", batch.shape), data, t), t)
    return found
