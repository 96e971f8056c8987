"""The loop: auxiliary updates, a student update, and what happens at the borders between them.

A step is one optimizer update of one role. Steps are counted from 0; every cycle of `aux_updates` auxiliary steps ends
with a student step (`schedule`), and everything a step needs (phase, items, noise, learning rate) is a function of its
number. So a checkpoint is weights, moments and that number, and no preview or restart can change what comes after it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mfd_cli.config.schema import RecipeBase
from mfd_cli.methods.base import Loss, Method
from mfd_cli.networks.roles import Role, Roles
from mfd_cli.networks.sharding import is_sharded, local, whole
from mfd_cli.seeds import key
from mfd_cli.training.batches import Batches
from mfd_cli.training.fields import Fields
from mfd_cli.training.guards import Guards, Verdict
from mfd_cli.training.schedule import schedule_of
from mfd_cli.training.watch import Memory, Standing
from teachers.base import Teacher
from teachers.guidance import Evaluations


@dataclass
class Progress:
    """How far a run is: all that a checkpoint holds besides tensors.

    Attributes:
        step: optimizer updates of both roles done.
        seconds: time spent in steps.
        evaluations: forward passes by role ("student", "aux", "teacher"), one per row, over all processes.
        pending: for each process, the values that it noted since the last line of metrics, by name.
        guards: what guards remember.
        standing: how the run stands in its quick judgements.
    """

    step: int = 0
    seconds: float = 0.0
    evaluations: dict[str, int] = field(default_factory=lambda: {"student": 0, "aux": 0, "teacher": 0})
    pending: list[dict[str, list[float]]] = field(default_factory=list)
    guards: Memory = field(default_factory=Memory)
    standing: Standing = field(default_factory=Standing)

    @classmethod
    def stored(cls, state: dict[str, Any]) -> Progress:
        """From a checkpoint's JSON.

        Raises:
            KeyError, TypeError: it is not that of a position.
        """
        guards, standing = Memory(**state.get("guards", {})), Standing(**state.get("standing", {}))
        return cls(**state | {"guards": guards, "standing": standing})

    def noted(self, process: int, processes: int) -> dict[str, list[float]]:
        """The pending values of one process; where their number has changed, the mean of those there were."""
        if len(self.pending) == processes:
            return self.pending[process]
        names = self.pending[0] if self.pending else {}
        return {
            name: [statistics.fmean(row) for row in zip(*(each[name] for each in self.pending), strict=True)]
            for name in names
        }


class Trainer:
    """Runs the steps of a recipe.

    Args:
        recipe: validated recipe.
        method: the method's losses.
        teacher: loaded teacher, on the accelerator's device.
        roles: networks and optimizers.
        batches: items and noise of each step.
        accelerator: devices, precision, processes.
        progress: where to start.
    """

    def __init__(
        self,
        recipe: RecipeBase,
        method: Method,
        teacher: Teacher,
        roles: Roles,
        batches: Batches,
        accelerator: Accelerator,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.method, self.teacher = recipe, method, teacher
        self.roles, self.batches, self.accelerator = roles, batches, accelerator
        self.progress = progress or Progress()
        self.schedule = schedule_of(method)
        self._counts = {name: Evaluations() for name in self.progress.evaluations}
        self._noted = {
            name: [torch.tensor(value, device=accelerator.device) for value in values]
            for name, values in self.progress.noted(accelerator.process_index, accelerator.num_processes).items()
        }
        self._fields = Fields(recipe, method, teacher, roles, batches, self._counts)
        self.guards = Guards(
            recipe.guards, self.progress.guards, accelerator, roles.trained(), self.schedule,
            fresh=progress is None,
        )  # fmt: skip
        for role in roles.trained():
            # a sharded network shares its gradients by itself
            role.wrapped = role.network if any(map(is_sharded, role.parameters)) else accelerator.prepare(role.network)
            # a network that a teacher has just fitted may still hold a gradient, which the first step would add to
            role.optimizer.zero_grad(set_to_none=True)

    @property
    def update(self) -> int:
        """Student updates done."""
        return self.schedule.update(self.progress.step)

    @property
    def inside(self) -> int:
        """Auxiliary updates done since the last student update."""
        return self.schedule.inside(self.progress.step)

    @property
    def is_student(self) -> bool:
        """Whether the next step is a student update."""
        return self.schedule.is_student(self.progress.step)

    def run(self, at_border: Callable[[Trainer, bool], bool], stop: Callable[[], bool] = lambda: False) -> None:
        """Steps until the recipe's last update.

        Args:
            at_border: called after every step as `at_border(trainer, stopping)`; True ends the run there. `stopping`
                is the same on every process.
            stop: whether this process was told to stop; asked once a step.

        Raises:
            RunStopped: a loss or gradient is not finite, on any process, or another guard stops the run.
        """
        total = self.schedule.steps(self.recipe.train.updates)
        while self.progress.step < total:
            began = time.perf_counter()
            stopping = self.step(stop())
            self.progress.seconds += time.perf_counter() - began
            if at_border(self, stopping):
                return

    def step(self, stop: bool = False) -> bool:
        """One optimizer update of the roles whose turn it is. Returns whether any process was told to stop."""
        step = self.progress.step
        is_student = self.is_student
        learning = [self.roles.student] if is_student else self.roles.followers()
        done = self.schedule.done(step)
        self._seed_networks(step)
        rates = [role.set_rate(done) for role in learning]
        loss = self._gradient(step, learning, is_student)
        norms = [_clip(role.parameters, role.settings.clip) for role in learning]
        verdict = self._check(loss, norms, learning, stop)
        for role in learning:
            if not verdict.skip:
                role.optimizer.step()
            role.optimizer.zero_grad(set_to_none=True)
        if not verdict.skip:
            self.guards.require_moved(learning)
            if is_student:
                self._after_student(done + 1)
            self._note(learning[0].name, loss, norms[0], rates[0])
        if self.roles.sharding is not None:
            self.roles.sharding.settle()
        self.progress.step += 1
        return verdict.stop

    def _after_student(self, updates: int) -> None:
        roles = self.roles
        if roles.average is not None:
            roles.average.update(updates)
        if roles.auxiliary is not None:
            self.method.align(
                [local(value.detach()) for value in roles.student.parameters],
                [local(value.detach()) for value in roles.auxiliary.parameters],
            )

    def metrics(self) -> dict[str, Any]:
        """Averages since the last call, over all processes: one line of metrics.jsonl."""
        values = {name: torch.stack(entries).mean() for name, entries in self._noted.items()}
        self._noted.clear()
        if values:
            together = self.accelerator.reduce(torch.stack(list(values.values())), reduction="mean")
            values = dict(zip(values, together, strict=True))
        self._gather_counts()
        return {
            "update": self.update,
            **{name: float(value) for name, value in values.items()},
            "seconds": round(self.progress.seconds, 3),
            "evaluations": sum(self.progress.evaluations.values()),
            **({"warnings": warnings} if (warnings := self.guards.watch.pending()) else {}),
        }

    def snapshot(self) -> Progress:
        """Where the run stands, over all processes, for a checkpoint."""
        self._gather_counts()
        return replace(self.progress, evaluations=dict(self.progress.evaluations), pending=self._pending())

    def _pending(self) -> list[dict[str, list[float]]]:
        """What every process has noted since the last line of metrics."""
        values = [torch.stack(entries) for entries in self._noted.values()]
        if not values:
            return []
        together = torch.cat(values)
        rows = self.accelerator.gather(together).reshape(-1, len(together)).cpu()
        sizes = [len(entries) for entries in values]
        return [{name: part.tolist() for name, part in zip(self._noted, row.split(sizes), strict=True)} for row in rows]

    def _seed_networks(self, step: int) -> None:
        """Makes the randomness of networks that have their own, such as dropout, a function of the step as well."""
        number = key(self.recipe.seed, "network", step, self.accelerator.process_index)[0] >> 1
        torch.default_generator.manual_seed(number)  # torch.manual_seed also asks every accelerator, which costs more
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def _gradient(self, step: int, learning: list[Role], is_student: bool) -> Loss:
        """Gradient of the step's whole batch, part by part; returns the batch's mean loss."""
        parts = self.batches.parts
        compute = self.method.student_loss if is_student else self.method.auxiliary_loss
        losses: list[Loss] = []
        with contextlib.ExitStack() as at_rest:
            for role in self.roles.followers() if is_student and self.roles.critic is not None else []:
                at_rest.enter_context(role.at_rest())  # a critic's verdict reaches the student through them
            for part in range(parts):
                with self._synchronized(learning, part == parts - 1):
                    with self.accelerator.autocast():
                        loss = compute(self._fields.batch(step, part, is_student=is_student, update=self.update))
                    self.accelerator.backward(loss.value / parts)
                losses.append(loss.detached())
                if not is_student:
                    self._fields.keep(step, part, loss.samples)
        return losses[0] if parts == 1 else _mean(losses)

    def _check(self, loss: Loss, norms: list[Tensor], learning: list[Role], stop: bool) -> Verdict:
        """Asks the guards about an update that is computed, before it is made."""
        step = self.progress.step
        items = partial(self.batches.items, self.schedule.drawn(step))
        return self.guards.inspect(loss, norms, learning, step, stop, items=items)

    def _note(self, role: str, loss: Loss, norm: Tensor, rate: float) -> None:
        prefix = "" if role == "student" else "aux_"
        noted = {"loss": loss.shown, "grad_norm": norm, "lr": torch.tensor(rate)}
        noted = {prefix + name: value for name, value in noted.items()} | dict(loss.parts)
        for name, value in noted.items():
            self._noted.setdefault(name, []).append(value.detach().float().to(self.accelerator.device))

    def _gather_counts(self) -> None:
        names = list(self._counts)
        new = torch.tensor([self._counts[name].rows for name in names], device=self.accelerator.device)
        for name, rows in zip(names, self.accelerator.reduce(new, reduction="sum").tolist(), strict=True):
            self.progress.evaluations[name] += int(rows)
            self._counts[name].rows = 0

    @contextlib.contextmanager
    def _synchronized(self, learning: list[Role], last: bool) -> Iterator[None]:
        """Gradients are shared between processes once per step, at its last part."""
        with contextlib.ExitStack() as alone:
            for role in learning if not last else []:
                alone.enter_context(self.accelerator.no_sync(role.wrapped))
            yield


def _mean(losses: list[Loss]) -> Loss:
    """The mean of the parts of one batch, with the times and samples of all."""

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).mean()

    def together(values: Sequence[Tensor | None]) -> Tensor | None:
        given = [value for value in values if value is not None]
        return torch.cat(given) if given else None

    parts = {name: mean([loss.parts[name] for loss in losses]) for name in losses[0].parts}
    return Loss(
        mean([loss.value for loss in losses]), mean([loss.shown for loss in losses]),
        together([loss.times for loss in losses]), parts, together([loss.samples for loss in losses]),
    )  # fmt: skip


def _clip(parameters: list[nn.Parameter], largest: float | None) -> Tensor:
    """Global gradient norm before clipping; gradients are scaled down to `largest` if it is given."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients, foreach=True))
    if largest is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm
