"""The one velocity field that solvers and methods see: a network bound to a batch's condition, guided or not.

Classifier-free guidance with scale w (Ho and Salimans 2022, arXiv 2207.12598), in velocity form:

    u_w(x, t | c) = u(x, t | null) + w (u(x, t | c) - u(x, t | null))

w = 1 is the conditional branch and w = 0 the unconditional one, exactly and at the cost of one evaluation; any other
scale evaluates both branches in one call, the unconditional half first, and `Teacher.guide` puts them together.

With a weaker teacher of the same kind (`Teacher.weak`) the scale is against that instead, both with the condition
(autoguidance, Karras et al. 2024, arXiv 2406.02507; what Align Your Flow distills):

    u_w(x, t | c) = u_weak(x, t | c) + w (u(x, t | c) - u_weak(x, t | c))

A model that was distilled to be told w (`Teacher.guidance_embedded`) is evaluated once: w is an input, which
`Teacher.velocity` sets to the recipe's `teacher.guidance` for every network. So a student of it starts as the guided
teacher, and keeps being told the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from teachers import conditions
from teachers.base import Teacher, TeacherError
from teachers.conditions import Condition
from teachers.networks.flow_map import FlowMapNetwork


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
        self.teacher, self._network, self._guidance = teacher, network, guidance
        self._condition, self._null = condition, _null
        self._pair: Condition | None = None
        self.evaluations = Evaluations() if evaluations is None else evaluations
        self._weak = teacher.weak if guidance != 1.0 and network is teacher.network else None
        if guidance != 1.0 and _null is None and self._weak is None:
            self._null = teacher.null_condition(condition)
            if self._null is None:
                raise TeacherError(
                    f"guidance {guidance} asked of a teacher without an unconditional branch",
                    allowed="guidance: 1.0",
                )

    @property
    def cost(self) -> int:
        """Forward passes per row of one evaluation: 2 when both branches are needed."""
        return 1 if self._guidance in (0.0, 1.0) and self._weak is None else 2

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity [B, ...] in at least float32. x: [B, ...]; t: float32 [B]."""
        if self.cost == 1:
            return self.outputs(self.teacher.velocity(self._network, *self.inputs(x, t)))
        self.evaluations.rows += 2 * x.shape[0]
        if self._weak is not None:
            both = (self.teacher.velocity(network, x, t, self._condition) for network in (self._weak, self._network))
            weak, strong = map(_widen, both)
            return self.teacher.guide(weak, strong, self._guidance)
        return self.outputs(self.teacher.branches(self._network, x, t, self._both()))

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """What a critic judges of the network [B, N, C]: see `Teacher.features`. Counts as one evaluation."""
        self.evaluations.rows += x.shape[0]
        return _widen(self.teacher.features(self._network, x, t, self._condition))

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Condition]:
        """What the network is evaluated on, counted: B rows, or 2B with the unconditional half first."""
        self.evaluations.rows += self.cost * x.shape[0]
        if self.cost == 1:
            return x, t, self._null if self._guidance == 0.0 else self._condition  # type: ignore[return-value]
        return torch.cat([x, x]), torch.cat([t, t]), self._both()

    def outputs(self, velocities: Tensor) -> Tensor:
        """The field's velocity [B, ...] from the network's on `inputs`."""
        if self.cost == 1:
            return _widen(velocities)
        unconditional, conditional = _widen(velocities).chunk(2)
        return self.teacher.guide(unconditional, conditional, self._guidance)

    def _both(self) -> Condition:
        """The unconditional condition and the given one, 2B rows, stacked once."""
        if self._pair is None:
            self._pair = conditions.stack(self._null, self._condition)  # type: ignore[arg-type]
        return self._pair

    def rows(self, index: Tensor | slice) -> VelocityField:
        """The same field for the selected rows; its evaluations count towards the same counter."""
        null = None if self._null is None else conditions.rows(self._null, index)
        return VelocityField(
            self.teacher,
            self._network,
            conditions.rows(self._condition, index),
            self._guidance,
            self.evaluations,
            null,
        )


class AverageVelocityField:
    """u(x, s, t) of a flow map, unguided, for a batch whose condition is fixed.

    Args:
        teacher: adapter that knows how the family's network is called.
        network: a `FlowMapNetwork`, or what wraps one for data-parallel training.
        condition: the batch's condition, B rows.
        evaluations: counter to add to; a new one if None.
    """

    def __init__(
        self, teacher: Teacher, network: nn.Module, condition: Condition, evaluations: Evaluations | None = None
    ) -> None:
        bare = getattr(network, "module", network)
        assert isinstance(bare, FlowMapNetwork), f"{type(bare).__name__} is no flow map"
        self._map, self._teacher, self._network, self._condition = bare, teacher, network, condition
        self.evaluations = Evaluations() if evaluations is None else evaluations

    def __call__(self, x: Tensor, s: Tensor, t: Tensor | None = None) -> Tensor:
        """Average velocity [B, ...] in at least float32 from x [B, ...] at times s to t, float32 [B]; t = s if None."""
        self.evaluations.rows += x.shape[0]
        with self._map.over(torch.zeros_like(s) if t is None else t - s):
            return _widen(self._teacher.velocity(self._network, x, s, self._condition))

    def rows(self, index: Tensor | slice) -> AverageVelocityField:
        """The same field for the selected rows."""
        condition = conditions.rows(self._condition, index)
        return AverageVelocityField(self._teacher, self._network, condition, self.evaluations)


class SideBySide:
    """Fields of the same batch as one field of states [B, K, ...], so that they are integrated in the same steps.

    Where two networks are one base with and without an adapter, both are evaluated in a single call: fewer and larger
    calls for the same rows.

    Args:
        fields: K fields; plain functions of (x, t) among them are called one by one.
    """

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocities [B, K, ...] of states x [B, K, ...] at times t [B]."""
        states = [x[:, index].contiguous() for index in range(len(self._fields))]
        together = _joined(self._fields) if not torch.is_grad_enabled() else None
        if together is None:
            return torch.stack([field(state, t) for field, state in zip(self._fields, states, strict=True)], dim=1)
        return torch.stack(together(states, t), dim=1)

    def rows(self, index: Tensor | slice) -> SideBySide:
        """The same fields for the selected rows."""
        return SideBySide(*(field.rows(index) if hasattr(field, "rows") else field for field in self._fields))


def _joined(fields: Sequence[Any]) -> Callable[[Sequence[Tensor], Tensor], list[Tensor]] | None:
    """One evaluation for two fields; None where their networks cannot share a call."""
    if len(fields) != 2 or not all(isinstance(field, VelocityField) for field in fields):
        return None
    first, second = fields
    beside = getattr(first._network, "beside", None)
    if any(field._weak is not None for field in fields):
        return None
    if beside is None or not first.teacher.rows_first or beside(second._network, 0) is None:
        return None

    def evaluate(states: Sequence[Tensor], t: Tensor) -> list[Tensor]:
        asked = [field.inputs(state, t) for field, state in zip(fields, states, strict=True)]
        counts = [len(x) for x, _, _ in asked]
        x, times = (torch.cat([each[index] for each in asked]) for index in (0, 1))  # type: ignore[misc]
        condition = conditions.stack(asked[0][2], asked[1][2])
        found = first.teacher.velocity(beside(second._network, counts[0]), x, times, condition).split(counts)
        return [field.outputs(velocities) for field, velocities in zip(fields, found, strict=True)]

    return evaluate


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
