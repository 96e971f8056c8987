"""The contract of a distillation method: losses from velocity fields, nothing else.

A method sees fields and noise, never networks, optimizers or devices. The loop asks for `auxiliary_loss`
`aux_updates` times and then for `student_loss` once; each call is given a fresh `Batch`. What else a method wants of
the loop, such as real data, a flow map for a student, or a critic, it declares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mfd_cli.samplers import SamplerName
from mfd_cli.seeds import Stream
from mfd_cli.solvers import integrate_grid
from teachers.settings import Settings


class MethodSettings(Settings):
    """What every method accepts; a method adds its own keys by subclassing."""


class AuxiliarySettings(MethodSettings):
    """What every method accepts whose auxiliary flow follows the student."""

    aux_updates: int = Field(
        10, ge=1, description="Auxiliary updates before each student update (the paper's 10:1); more track better."
    )
    aux_warmup: int = Field(
        0, ge=0, description="Further auxiliary updates before the first student update. The paper has none."
    )


class GeneratedSettings(AuxiliarySettings):
    """What every method accepts whose auxiliary learns from `Batch.generate`."""

    aux_reuse: int = Field(
        1,
        ge=1,
        description="Auxiliary updates in a row that learn from the same samples of the student, each with noise and "
        "times of its own; saves evaluations. The paper draws samples anew each time.",
    )


@dataclass(frozen=True)
class Batch:
    """What one loss is computed from.

    Attributes:
        random: noise and times of this update, one row per sample.
        shape: shape of one state X_t.
        grid: the student's schedule, times [N + 1] from 0 to 1.
        student: the student's velocity field, unguided, with gradient where the loop wants it; of a flow map the
            average velocity u(x, s, t).
        auxiliary: the auxiliary's velocity field, unguided; None for methods without one.
        teacher: the teacher's velocity field, guided as the recipe says, never with gradient; None where a recipe has
            no teacher.
        told: times that the student is told along `grid`; `grid` itself if None.
        one_step: whether the gradient flows through one step of several instead of the whole chain.
        data: real states X_1 [B, *shape], for methods that ask for them.
        frozen: the student's present field for values that no gradient flows into.
        average: the averaged student's field, if the recipe averages.
        critic: logits [B] of features [B, N, C], for methods that have one.
        update: student updates done.
        source: noise that the student's samples start from, where it is not this update's own.
        samples: the student's samples from `source`, where an earlier update made them.
        longest: the largest of a number over all processes, where networks are sharded and every process has to call
            them equally often; None where that is nobody's concern.
    """

    random: Stream
    shape: tuple[int, ...]
    grid: Tensor
    student: Any
    auxiliary: Any
    teacher: Any
    told: Tensor | None = None
    one_step: bool = False
    data: Tensor | None = None
    frozen: Any = None
    average: Any = None
    critic: Callable[[Tensor], Tensor] | None = None
    update: int = 0
    source: Stream | None = None
    samples: Tensor | None = None
    longest: Callable[[int], int] | None = None

    @property
    def real(self) -> Tensor:
        """Real states X_1 [B, *shape] of a method that asked for them."""
        assert self.data is not None, "the method does not say that it needs data"
        return self.data

    def generate(self) -> Tensor:
        """The student's samples X_1 = G(z) [B, *shape]: N Euler steps from fresh noise, one step being z + v(z, 0).

        With `one_step`, X_1 has the same value, but of its velocities only that of one step k carries a gradient. k is
        drawn in proportion to the steps' lengths and the gradient divided by that probability, so that in expectation
        every step is moved along its own length; how it changes the steps after it is left out.
        """
        if self.samples is not None:
            return self.samples
        noise = (self.source or self.random).normal("z", self.shape)
        if not (self.one_step and len(self.grid) > 2 and torch.is_grad_enabled()):
            return integrate_grid(self.student, noise, self.grid, told=self.told).end
        return self._through_one_step(noise)

    def _through_one_step(self, state: Tensor) -> Tensor:
        told = (self.grid if self.told is None else self.told).to(state.device)
        lengths = self.grid.diff().to(state.device)
        drawn = self.random.shared("gradient step")  # one for the whole batch, on every process
        chosen = min(int((lengths.cumsum(0) / lengths.sum() <= drawn).sum()), len(lengths) - 1)
        carrier = state
        for step, length in enumerate(lengths):
            with torch.set_grad_enabled(step == chosen):
                velocity = self.student(state, told[step].expand(len(state)))
            state = state + length * velocity.detach()
            carrier = velocity if step == chosen else carrier
        return state + lengths.sum() * (carrier - carrier.detach())


@dataclass(frozen=True)
class Loss:
    """A loss and what is worth knowing about it.

    Attributes:
        value: scalar to descend.
        report: the scalar to show as the loss, where `value` itself means nothing; `value` if None.
        times: the times it was computed at, [B] or [B, 2], for the report of a value that is not finite.
        parts: further scalars to record, by name, such as an adversarial term.
        samples: the student's samples X_1 [B, *shape] that it was computed on, for the guards; of an auxiliary, it says
            that `shown` is the flow-matching loss on them at `times`. None where there are none.
    """

    value: Tensor
    report: Tensor | None = None
    times: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    samples: Tensor | None = None

    @property
    def shown(self) -> Tensor:
        """The scalar to show."""
        return self.value if self.report is None else self.report

    def detached(self) -> Loss:
        """The same numbers, without the graph that they were computed by."""
        parts = {name: value.detach() for name, value in self.parts.items()}
        samples = None if self.samples is None else self.samples.detach()
        return Loss(self.value.detach(), self.shown.detach(), self.times, parts, samples)


class Method(ABC):
    """A distillation method with its settings."""

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    #: whether the student is a flow map u(x, s, t), told where a step ends as well as where it begins
    flow_map: ClassVar[bool] = False
    #: how its students sample in several steps
    sampler: ClassVar[SamplerName] = "euler"
    #: whether its students are made for any number of steps, whatever the recipe's
    any_steps: ClassVar[bool] = False

    #: whether it can do without a teacher, which the recipe then says with a `network` block
    teacherless: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def needs_teacher(self) -> bool:
        """Whether, with these settings, there must be a teacher."""
        return True

    @property
    def aux_updates(self) -> int:
        """Auxiliary updates before each student update; a method without an auxiliary has 0."""
        return getattr(self.settings, "aux_updates", 0)

    @property
    def aux_warmup(self) -> int:
        """Auxiliary updates besides, before the first student update."""
        return getattr(self.settings, "aux_warmup", 0)

    @property
    def aux_reuse(self) -> int:
        """Auxiliary updates in a row that share the student's samples."""
        return getattr(self.settings, "aux_reuse", 1)

    @property
    def needs_data(self) -> bool:
        """Whether batches must hold real states."""
        return False

    def prepare(self, example: Callable[[], Batch]) -> None:
        """Looks at the networks before the first update, and again on resuming: always as they are at the beginning.

        Args:
            example: gives a batch of one sample.
        """
        return None

    def build_critic(self, example: Callable[[], Batch]) -> nn.Module | None:
        """A network from features [B, N, C] to logits [B], trained with the auxiliary; None for methods without one.

        Args:
            example: gives a batch, for the width of what it is to judge.
        """
        return None

    def auxiliary_loss(self, batch: Batch) -> Loss:
        """Loss of the auxiliary flow and the critic; gradients may reach these alone."""
        raise NotImplementedError(f"{type(self).__name__} has no auxiliary")

    @abstractmethod
    def student_loss(self, batch: Batch) -> Loss:
        """Loss of the student; gradients may reach the student alone."""

    def align(self, student: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> None:
        """Moves the auxiliary's weights after a student update, in place; by default not. Both are in one order."""
        return None
