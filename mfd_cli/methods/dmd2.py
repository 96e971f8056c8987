"""DMD2 (Yin et al. 2024, arXiv 2405.14867): distribution matching on predictions of the data, with a critic.

    D = (1 - s) (v_phi - u_teacher)(X_s, s) / mean|X_1 - x1hat_teacher|        difference of the two predictions of X_1
    student:    mean(sg[D] X_1) + w_g mean softplus(-l(X_s'))                   l: logits of the auxiliary's features
    auxiliary:  flow matching on X_1 + w_d mean [softplus(l(fake)) + softplus(-l(real))]

A student of N steps predicts the data at each and noises it afresh in between. It is trained at one step drawn for the
whole batch, on states that it comes to itself (backward simulation, without gradient) or on noised data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import nn

from mfd_cli.methods import adversarial
from mfd_cli.methods.adversarial import Adversarial
from mfd_cli.methods.base import AuxiliarySettings, Batch, Loss, Method
from mfd_cli.methods.matching import flow_matching_on, surrogate_loss
from mfd_cli.methods.predictions import Inputs, data_direction, middle_times, predict


class Dmd2Settings(AuxiliarySettings):
    """Settings of `dmd2`. Cost of a student update: forward and backward, one evaluation of auxiliary and teacher, and
    with the adversarial term another forward and backward of the auxiliary.
    """

    aux_updates: int = Field(5, ge=1, description="Auxiliary (and critic) updates before each student update.")
    margin: float = Field(0.02, ge=0, lt=0.5, description="Times of D are uniform in [margin, 1 - margin].")
    normalise: bool = Field(True, description="Whether D is divided by mean|X_1 - x1hat_teacher|, sample by sample.")
    adversarial: Adversarial | None = Field(
        default=Adversarial(), description="The adversarial term, which needs real samples; null: without one."
    )
    inputs: Inputs = Field(
        "simulated",
        description="What a student of several steps is trained on: states it comes to itself, noised data, or either "
        "by a coin.",
    )


class Dmd2(Method):
    """Distribution matching with two time scales."""

    Settings = Dmd2Settings
    sampler = "renoise"

    @property
    def needs_data(self) -> bool:
        """Real states, where the critic or the inputs ask for them."""
        return self.settings.adversarial is not None or self.settings.inputs != "simulated"

    def build_critic(self, example: Callable[[], Batch]) -> nn.Module | None:
        """A critic of the auxiliary's features."""
        return adversarial.build(self.settings.adversarial, example)

    def auxiliary_loss(self, batch: Batch) -> Loss:
        """Flow matching on the student's predictions, and the critic's loss on noised ones and noised data."""
        with torch.no_grad():
            data = predict(batch, self.settings.inputs).data
        return adversarial.judged(self.settings.adversarial, batch, data, flow_matching_on(batch, data))

    def student_loss(self, batch: Batch) -> Loss:
        """The surrogate of D on X_1, and the adversarial term."""
        data = predict(batch, self.settings.inputs).data
        s = middle_times(batch, self.settings.margin)
        loss = surrogate_loss(data_direction(batch, data.detach(), s, self.settings.normalise), data, s, data)
        return adversarial.fooled(self.settings.adversarial, batch, data, loss)
