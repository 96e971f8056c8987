"""SenseFlow (Ge et al. 2025, arXiv 2506.00523): DMD2 with three additions.

IDA   after each student update the auxiliary is drawn to it: phi <- lambda phi + (1 - lambda) theta
ISG   within a step [s_k, e] the student agrees with the teacher followed by itself: with m in between,
          x_m = x + (m - s_k) u_teacher(x, s_k) ,   target = sg[x_m + (e - m) v(x_m, m)]
          L = mean( sqrt((x + (e - s_k) v(x, s_k) - target)^2 + 1e-6) - 1e-3 )
VFM   a hinge critic of features of finished samples, weighed by omega = s_k^2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from mfd_cli.flow import per_row
from mfd_cli.methods import critics
from mfd_cli.methods.base import AuxiliarySettings, Batch, Loss, Method
from mfd_cli.methods.critics import CriticSettings
from mfd_cli.methods.features import extracted, known
from mfd_cli.methods.matching import flow_matching_on, surrogate_loss
from mfd_cli.methods.predictions import Inputs, Prediction, data_direction, middle_times, predict
from mfd_cli.methods.times import draw
from teachers.settings import Strict


class FeatureCritic(CriticSettings):
    """The critic of finished samples."""

    weight: float = Field(2.0, gt=0, description="w_g, its share of the student's loss (FLUX's; SD3.5 0.1).")
    features: str = Field(
        "state",
        description="What it judges: state (the numbers themselves), teacher (the teacher's features), a plugin's.",
    )
    omega: Literal["square", "one"] = Field(
        "square",
        description="Weight by the step's start: square s_k^2, which is 0 for a one-step student; one: always 1.",
    )

    @field_validator("features")
    @classmethod
    def _known(cls, name: str) -> str:
        return known(name)


class Guidance(Strict):
    """Intra-segment guidance."""

    weight: float = Field(1.0, gt=0, description="Its share of the student's loss (FLUX's and SD3.5-L's).")
    margin: float = Field(0.02, ge=0, lt=0.5, description="How far m stays from the segment's ends, of its length.")


class SenseFlowSettings(AuxiliarySettings):
    """Settings of `senseflow`. Cost of a student update: dmd2's, and for ISG one evaluation of teacher and student."""

    aux_updates: int = Field(5, ge=1, description="Auxiliary (and critic) updates before each student update.")
    margin: float = Field(0.02, ge=0, lt=0.5, description="Times of D are uniform in [margin, 1 - margin].")
    normalise: bool = Field(True, description="Whether D is divided by mean|X_1 - x1hat_teacher|, sample by sample.")
    align: float = Field(
        0.97, ge=0, le=1, description="lambda of IDA; 1 is none. It harms one-step students at few auxiliary updates."
    )
    guide: Guidance | None = Field(default=Guidance(), description="ISG; null: without.")
    adversarial: FeatureCritic | None = Field(
        default=FeatureCritic(), description="The critic, which needs real samples; null: without."
    )
    inputs: Inputs = Field(
        "both",
        description="What a student of several steps is trained on: states it comes to itself, noised data, or either "
        "by a coin.",
    )


class SenseFlow(Method):
    """DMD2 with implicit alignment, intra-segment guidance and a critic of finished samples."""

    Settings = SenseFlowSettings
    sampler = "renoise"

    @property
    def needs_data(self) -> bool:
        """Real states, where the critic or the inputs ask for them."""
        return self.settings.adversarial is not None or self.settings.inputs != "simulated"

    def build_critic(self, example: Callable[[], Batch]) -> nn.Module | None:
        """A critic of an extractor's features."""
        wanted = self.settings.adversarial
        if wanted is None:
            return None
        batch = example()
        return critics.TokenCritic(extracted(wanted.features, batch.teacher, batch.real).shape[-1], wanted.width)

    def auxiliary_loss(self, batch: Batch) -> Loss:
        """Flow matching on the student's predictions at logit-normal times, and the critic's hinge loss."""
        with torch.no_grad():
            found = predict(batch, self.settings.inputs)
        loss = flow_matching_on(batch, found.data, draw(batch.random, "t", "logit-normal", 0.0, 1.0))
        wanted = self.settings.adversarial
        if wanted is None:
            return loss
        real, fake = (self._logits(batch, states) for states in (batch.real, found.data))
        judged = (self._omega(found) * critics.judging_loss(real, fake, "hinge")).mean()
        return Loss(loss.value + judged, loss.value, loss.times, {"critic_loss": judged.detach()}, found.data)

    def student_loss(self, batch: Batch) -> Loss:
        """The surrogate of D on X_1, ISG, and the adversarial term."""
        found = predict(batch, self.settings.inputs)
        s = middle_times(batch, self.settings.margin)
        loss = surrogate_loss(data_direction(batch, found.data.detach(), s, self.settings.normalise), found.data, s)
        value, parts = loss.value, {}
        guide, critic = self.settings.guide, self.settings.adversarial
        if guide is not None:
            agreement = self.guided(batch, found)
            value, parts["guide_loss"] = value + guide.weight * agreement, agreement.detach()
        if critic is not None:
            fooled = (self._omega(found) * critics.fooling_loss(self._logits(batch, found.data), "hinge")).mean()
            value, parts["adversarial_loss"] = value + critic.weight * fooled, fooled.detach()
        return Loss(value, loss.report, s, parts, found.data)

    def guided(self, batch: Batch, found: Prediction) -> Tensor:
        """The ISG term, a scalar: Charbonnier's distance of the student's step to its target."""
        length = found.end - found.start
        share = self.settings.guide.margin + (1 - 2 * self.settings.guide.margin) * batch.random.shared("m")
        middle = found.start + share * length
        with torch.no_grad():
            x_m = found.state + per_row(middle - found.start, found.state) * batch.teacher(found.state, found.start)
            target = x_m + per_row(found.end - middle, x_m) * batch.frozen(x_m, middle)
        step = found.state + per_row(length, target) * found.velocity
        return ((step - target).square() + 1e-6).sqrt().mean() - 1e-3

    @torch.no_grad()
    def align(self, student: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> None:
        """IDA: phi <- lambda phi + (1 - lambda) theta."""
        if self.settings.align < 1:
            torch._foreach_lerp_(list(auxiliary), list(student), 1 - self.settings.align)

    def _omega(self, found: Prediction) -> Tensor:
        return found.start.square() if self.settings.adversarial.omega == "square" else torch.ones_like(found.start)

    def _logits(self, batch: Batch, samples: Tensor) -> Tensor:
        assert batch.critic is not None, "built by build_critic"
        return batch.critic(extracted(self.settings.adversarial.features, batch.teacher, samples))
