"""DMD2's adversarial term, for any method with an auxiliary: a critic of the auxiliary's features of noised samples.

Source: Yin et al. 2024, arXiv 2405.14867, section 4.2 (a "diffusion GAN"): fake and real samples are noised to the same
uniform times, and the critic reads the auxiliary network's features of them, from which that learns as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field
from torch import Tensor, nn

from mfd_cli.flow import interpolate
from mfd_cli.methods import critics
from mfd_cli.methods.base import Batch, Loss
from mfd_cli.methods.critics import CriticSettings


class Adversarial(CriticSettings):
    """The adversarial term."""

    weight: float = Field(3e-3, gt=0, description="w_g, its share of the student's loss (ImageNet's; SDXL 5e-3).")
    critic_weight: float = Field(1e-2, gt=0, description="w_d, its share of the auxiliary's loss.")


def build(wanted: Adversarial | None, example: Callable[[], Batch]) -> nn.Module | None:
    """A critic of the auxiliary's features; None where no term is wanted."""
    if wanted is None:
        return None
    batch = example()
    features = batch.auxiliary.features(batch.random.normal("z", batch.shape), batch.random.uniform("t"))
    return critics.TokenCritic(features.shape[-1], wanted.width)


def judged(wanted: Adversarial | None, batch: Batch, fake: Tensor, loss: Loss) -> Loss:
    """An auxiliary's loss with the critic's added: it is to tell `fake` [B, ...] from the batch's real states."""
    if wanted is None:
        return loss
    t = batch.random.uniform("critic.t")
    logits = {name: _logits(batch, states, t) for name, states in (("fake", fake), ("real", batch.real))}
    value = critics.judging_loss(logits["real"], logits["fake"], "softplus").mean()
    return replace(
        loss, value=loss.value + wanted.critic_weight * value, report=loss.shown,
        parts={**loss.parts, "critic_loss": value.detach()},
    )  # fmt: skip


def fooled(wanted: Adversarial | None, batch: Batch, fake: Tensor, loss: Loss) -> Loss:
    """A student's loss with the term that makes `fake` [B, ...], which has a gradient, look real."""
    if wanted is None:
        return loss
    value = critics.fooling_loss(_logits(batch, fake, batch.random.uniform("critic.t")), "softplus").mean()
    return replace(
        loss, value=loss.value + wanted.weight * value, report=loss.shown,
        parts={**loss.parts, "adversarial_loss": value.detach()},
    )  # fmt: skip


def _logits(batch: Batch, data: Tensor, t: Tensor) -> Tensor:
    """The critic's logits [B] of states X_1 noised to times t."""
    assert batch.critic is not None, "built by build_critic"
    noised = interpolate(batch.random.normal("critic.x0", batch.shape), data, t)
    return batch.critic(batch.auxiliary.features(noised, t))
