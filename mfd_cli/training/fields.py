"""The velocity fields of a run, bound to the items and noise of a step: what a method's losses are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mfd_cli.config.schema import RecipeBase
from mfd_cli.flow import time_grid, told_times
from mfd_cli.methods.base import Batch, Method
from mfd_cli.networks.roles import Role, Roles
from mfd_cli.networks.sharding import Sharding
from mfd_cli.training.batches import Batches
from mfd_cli.training.schedule import schedule_of
from teachers.base import Teacher, bare_network
from teachers.conditions import Condition
from teachers.guidance import AverageVelocityField, Evaluations, VelocityField


class Fields:
    """Makes the batches of steps.

    Args:
        recipe: validated recipe.
        method: the method, which says what it needs.
        teacher: loaded teacher.
        roles: networks.
        batches: items and noise of each step.
        counts: counters of evaluations by role: "student", "aux", "teacher".
    """

    def __init__(
        self,
        recipe: RecipeBase,
        method: Method,
        teacher: Teacher,
        roles: Roles,
        batches: Batches,
        counts: Mapping[str, Evaluations],
    ) -> None:
        self._method, self._teacher, self._roles, self._batches = method, teacher, roles, batches
        self._counts = counts
        self._one_step = recipe.student.gradient == "one-step"
        self._grid = time_grid(recipe.student.steps, recipe.student.shift)
        self._schedule = schedule_of(method)
        self._kept: dict[tuple[int, int], Tensor] = {}  # by step and part
        self._told = told_times(self._grid, teacher.first_time)

    def batch(self, step: int, part: int, *, is_student: bool, update: int) -> Batch:
        """One part of a step.

        Args:
            step: number of the step.
            part: which of the step's parts.
            is_student: whether the student learns from it; else the auxiliary and the critic do.
            update: student updates done.
        """
        roles, teacher, counts = self._roles, self._teacher, self._counts
        random = self._batches.stream(step, part)
        drawn = self._schedule.drawn(step)
        condition = self._batches.condition(drawn, part)
        # the role that learns is called through its wrapper, so that its gradients are shared between processes
        student = roles.student.wrapped if is_student else roles.student.network
        auxiliary, critic = (_network(role, bare=is_student) for role in (roles.auxiliary, roles.critic))
        return Batch(
            random=random,
            shape=teacher.sample_shape,
            grid=self._grid,
            told=self._told,
            one_step=self._one_step,
            student=self._student(student, condition),
            auxiliary=None if auxiliary is None else self._field(auxiliary, condition, 1.0, counts["aux"]),
            teacher=None
            if teacher.network is None
            else self._field(teacher.network, condition, teacher.settings.guidance, counts["teacher"]),
            data=self._batches.states(drawn, part) if self._method.needs_data else None,
            frozen=self._student(roles.student.network, condition),
            average=None if roles.average is None else self._student(roles.average.network, condition),
            critic=critic,
            update=update,
            source=None if drawn == step else self._batches.stream(drawn, part),
            samples=self._kept.get((drawn, part)) if drawn != step else None,
            longest=None if roles.sharding is None else roles.sharding.longest,
        )

    def keep(self, step: int, part: int, samples: Tensor | None) -> None:
        """Keeps the student's samples of an auxiliary update for those that share them."""
        if self._schedule.reuse == 1:
            return
        drawn = self._schedule.drawn(step)
        self._kept = {place: kept for place, kept in self._kept.items() if place[0] == drawn}
        if samples is not None:
            self._kept[drawn, part] = samples.detach()

    def _field(
        self, network: nn.Module, condition: Condition, guidance: float, evaluations: Evaluations
    ) -> VelocityField:
        if self._roles.sharding is None:
            return VelocityField(self._teacher, network, condition, guidance, evaluations)
        return _ShardedField(self._roles.sharding, self._teacher, network, condition, guidance, evaluations)

    def _student(self, network: nn.Module, condition: Condition) -> Any:
        if self._method.flow_map:
            return AverageVelocityField(self._teacher, network, condition, self._counts["student"])
        return VelocityField(self._teacher, network, condition, evaluations=self._counts["student"])


class _ShardedField(VelocityField):
    """A field whose features can be differentiated although its network is in shards."""

    def __init__(self, sharding: Sharding, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sharding = sharding

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """As for any field."""
        found = super().features(x, t)
        if found.requires_grad:
            bare = bare_network(self._network)
            layer = self.teacher.feature_layer(bare) or ""
            found.register_hook(lambda gradient: self._sharding.gather_around(bare, layer))
        return found


def _network(role: Role | None, *, bare: bool) -> nn.Module | None:
    if role is None:
        return None
    return role.network if bare else role.wrapped
