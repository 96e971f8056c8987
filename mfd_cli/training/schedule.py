"""Whose turn it is: the order of auxiliary and student updates, as a function of the step and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from mfd_cli.methods.base import Method


@dataclass(frozen=True)
class Schedule:
    """The steps of a run: cycles of some auxiliary updates and one student update, the first with more of them.

    Attributes:
        aux_updates: auxiliary updates of a cycle; 0 without an auxiliary.
        warmup: auxiliary updates that come before those of the first cycle.
        reuse: auxiliary updates of a cycle in a row that share items, noise and samples.
    """

    aux_updates: int
    warmup: int = 0
    reuse: int = 1

    @property
    def cycle(self) -> int:
        """Steps of every cycle but the first."""
        return self.aux_updates + 1

    def steps(self, updates: int) -> int:
        """Steps until so many student updates are done."""
        return updates * self.cycle + (self.warmup if updates else 0)

    def aux_total(self, updates: int) -> int:
        """Auxiliary updates until so many student updates are done."""
        return self.steps(updates) - updates

    def update(self, step: int) -> int:
        """Student updates done before a step."""
        return max(0, step - self.warmup) // self.cycle

    def inside(self, step: int) -> int:
        """Auxiliary updates done since the last student update."""
        return step - self.steps(self.update(step))

    def length(self, update: int) -> int:
        """Steps of the cycle that ends with student update number `update`, counted from 0."""
        return self.cycle if update else self.cycle + self.warmup

    def is_student(self, step: int) -> bool:
        """Whether the student learns in a step; else the auxiliary and the critic do."""
        return self.inside(step) == self.length(self.update(step)) - 1

    def is_last_auxiliary(self, step: int) -> bool:
        """Whether the student's turn comes right after this auxiliary update."""
        return self.inside(step) == self.length(self.update(step)) - 2

    def done(self, step: int) -> int:
        """Updates that the role whose turn it is has made before."""
        update = self.update(step)
        return update if self.is_student(step) else step - update

    def drawn(self, step: int) -> int:
        """The step whose items and samples this one learns from: a student update's are its own."""
        return step if self.is_student(step) else step - self.inside(step) % self.reuse


def schedule_of(method: Method) -> Schedule:
    """The schedule that a method asks for."""
    return Schedule(method.aux_updates, method.aux_warmup, method.aux_reuse)
