"""The one velocity field that solvers and methods see: a network bound to a batch's condition, guided or not.

Classifier-free guidance with scale w (Ho and Salimans 2022, arXiv 2207.12598), in velocity form:

    u_w(x, t | c) = u(x, t | null) + w (u(x, t | c) - u(x, t | null))

w = 1 is the conditional branch and w = 0 the unconditional one, exactly and at the cost of one evaluation; any other
scale evaluates both branches in one call, the unconditional half first, and `Teacher.guide` puts them together.

A model that was distilled to be told w (`Teacher.guidance_embedded`) is evaluated once: w is an input, which
`Teacher.velocity` sets to the recipe's `teacher.guidance` for every network. So a student of it starts as the guided
teacher, and keeps being told the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teachers import conditions
from teachers.base import Teacher, TeacherError
from teachers.conditions import Condition


@dataclass
class Evaluations:
    """Counts forward passes of a network, one per row of the batch; a guided row counts twice."""

    rows: int = 0


class VelocityField:
    """u(x, t) of one network for a batch whose condition is fixed.

    Args:
        teacher: adapter that knows how the family's network is called.
        network: the teacher's, student's or auxiliary's network.
        condition: the batch's condition, B rows.
        guidance: scale w.
        evaluations: counter to add to; a new one if None.

    Raises:
        TeacherError: guidance other than 1 for a family without a null condition, or other than the recipe's where it
            is an input.
    """

    def __init__(
        self,
        teacher: Teacher,
        network: nn.Module,
        condition: Condition,
        guidance: float = 1.0,
        evaluations: Evaluations | None = None,
        _null: Condition | None = None,
    ) -> None:
        guidance = _own_guidance(teacher, guidance) if teacher.guidance_embedded else guidance
        self._teacher, self._network, self._guidance = teacher, network, guidance
        self._condition, self._null = condition, _null
        self.evaluations = Evaluations() if evaluations is None else evaluations
        if guidance != 1.0 and _null is None:
            self._null = teacher.null_condition(condition)
            if self._null is None:
                raise TeacherError(
                    f"guidance {guidance} asked of a teacher without an unconditional branch",
                    allowed="guidance: 1.0",
                )

    @property
    def cost(self) -> int:
        """Forward passes per row of one evaluation: 2 when both branches are needed."""
        return 1 if self._guidance in (0.0, 1.0) else 2

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity [B, ...] in at least float32. x: [B, ...]; t: float32 [B]."""
        self.evaluations.rows += self.cost * x.shape[0]
        if self.cost == 1:
            condition = self._null if self._guidance == 0.0 else self._condition
            return _widen(self._teacher.velocity(self._network, x, t, condition))  # type: ignore[arg-type]
        pair = conditions.stack(self._null, self._condition)  # type: ignore[arg-type]
        both = self._teacher.velocity(self._network, torch.cat([x, x]), torch.cat([t, t]), pair)
        unconditional, conditional = _widen(both).chunk(2)
        return self._teacher.guide(unconditional, conditional, self._guidance)

    def rows(self, index: Tensor | slice) -> VelocityField:
        """The same field for the selected rows; its evaluations count towards the same counter."""
        null = None if self._null is None else conditions.rows(self._null, index)
        return VelocityField(
            self._teacher,
            self._network,
            conditions.rows(self._condition, index),
            self._guidance,
            self.evaluations,
            null,
        )


def _own_guidance(teacher: Teacher, guidance: float) -> float:
    """The scale of the two branches where guidance is an input: 1, which is one evaluation."""
    own = teacher.settings.guidance
    if guidance not in (1.0, own):
        raise TeacherError(
            f"guidance {guidance:g} asked of a model that takes guidance as an input, which is {own:g} here",
            allowed=f"{own:g}, the recipe's teacher.guidance",
            do="change teacher.guidance to sample the teacher with another; a student keeps the one it was made with",
        )
    return 1.0


def _widen(velocity: Tensor) -> Tensor:
    """Half precision to float32: ODE states and differences of velocities are kept wide."""
    return velocity.float() if velocity.dtype in (torch.float16, torch.bfloat16) else velocity
