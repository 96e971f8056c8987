"""Checks that stop a run before it does harm, or in time; what may still be well, it warns of (`watch`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from mfd_cli.config.schema import Guards as GuardSettings
from mfd_cli.errors import RunStopped
from mfd_cli.methods.base import Loss
from mfd_cli.networks.roles import Role
from mfd_cli.training.measures import duplicates, fingerprint, gaussian_loss, variances
from mfd_cli.training.schedule import Schedule
from mfd_cli.training.watch import Memory, Seen, Sign, Watch, listed, optimizer_key, place, span

_REMEDY = (
    "nothing was updated. Lower the learning rate or the guidance, keep intervals away from t = 1 "
    "(method.times.min_interval), or use fp32; `--resume` continues from the last checkpoint"
)


@dataclass(frozen=True)
class Verdict:
    """What is to be done with an update, the same on every process.

    Attributes:
        stop: whether any process was told to stop.
        skip: whether the update is left out.
    """

    stop: bool
    skip: bool


class Guards:
    """Looks at every update before its optimizers step, and at what they did.

    Args:
        settings: the recipe's block.
        memory: what a checkpoint brought, or a fresh one.
        accelerator: processes.
        roles: the trained roles.
        schedule: whose turn it is.
    """

    def __init__(
        self,
        settings: GuardSettings,
        memory: Memory,
        accelerator: Accelerator,
        roles: Sequence[Role],
        schedule: Schedule,
        *,
        fresh: bool,
    ) -> None:
        self.settings, self.memory, self._accelerator = settings, memory, accelerator
        self.watch = Watch(settings, memory)
        self._schedule = schedule
        self._several = accelerator.num_processes > 1
        if fresh and settings.unmoved is not None:
            memory.starts = {role.name: fingerprint(role.parameters) for role in roles}
            memory.counted = {role.name: [0, 0] for role in roles}

    def inspect(
        self,
        loss: Loss,
        norms: Sequence[Tensor],
        learning: Sequence[Role],
        step: int,
        stop: bool,
        items: Callable[[], Sequence[int]] = tuple,
    ) -> Verdict:
        """Decides about an update whose gradient is there.

        Args:
            loss: of the whole batch.
            norms: gradient norm of each role that learns.
            learning: those roles.
            step: updates of all roles done.
            stop: whether this process was told to stop.
            items: gives the data items of this process's batch, for a message.

        Raises:
            RunStopped: a value is not finite, on any process, or the student has collapsed.
        """
        role, schedule = learning[0].name, self._schedule
        update, inside = schedule.update(step), schedule.inside(step)
        measured = self._measured(loss, role) if role == "student" or schedule.is_last_auxiliary(step) else []
        # one transfer for all: on a device every one waits for the update
        numbers = torch.stack([value.detach().float() for value in (loss.value, loss.shown, *norms, *measured)])
        value, shown, *rest = numbers.tolist()
        sizes, found = rest[: len(norms)], rest[len(norms) :]
        bad = anywhere = not (math.isfinite(value) and all(map(math.isfinite, sizes)))
        if self._several:
            flags = torch.tensor([float(bad), float(stop), shown, *found], device=numbers.device)
            bads, stops, *sums = self._accelerator.reduce(flags, reduction="sum").tolist()
            anywhere, stop = bads > 0, stops > 0
            shown, *found = (total / self._accelerator.num_processes for total in sums)
        seen = Seen(
            role, update, inside, shown, dict(zip([each.name for each in learning], sizes, strict=True)), loss.times,
            **dict(zip(self._names(role), found, strict=False)),
        )  # fmt: skip
        if anywhere:
            self._skip_or_refuse(seen, value, sum(sizes), items, other_rank=not bad)
        else:
            self.watch.look(seen)
            self._count(seen.norms)
        return Verdict(stop, anywhere)

    def require_moved(self, learning: Sequence[Role]) -> None:
        """Looks, once for each role, at whether its first updates have changed its weights.

        Raises:
            RunStopped: they have not.
        """
        for role in learning:
            updates, with_gradient = self.memory.counted.get(role.name, (0, 0))
            if self.settings.unmoved is None or role.name not in self.memory.starts or updates < self.settings.unmoved:
                continue
            start = self.memory.starts.pop(role.name)
            del self.memory.counted[role.name]
            if with_gradient == 0 or fingerprint(role.parameters) == start:
                raise _unmoved(role, updates, with_gradient)

    def _names(self, role: str) -> tuple[str, str]:
        return "variance", "duplicates" if role == "student" else "gaussian"

    def _measured(self, loss: Loss, role: str) -> list[Tensor]:
        """Mean variance of the samples, and what depends on the role; empty if there are none or nobody asks."""
        settings = self.settings
        student = (settings.spread, settings.collapse, settings.duplicates)
        wanted = any(each is not None for each in (student if role == "student" else (settings.lag,)))
        if loss.samples is None or not wanted or (role != "student" and loss.times is None):
            return []
        variance = variances(loss.samples, self._sum if self._several else None)
        if variance is None:
            return []
        if role == "student":
            return [variance.mean(), duplicates(loss.samples, variance)]
        assert loss.times is not None
        return [variance.mean(), gaussian_loss(variance, loss.times)]

    def _sum(self, value: Tensor) -> Tensor:
        return self._accelerator.reduce(value, reduction="sum")

    def _count(self, norms: dict[str, float]) -> None:
        for role, norm in norms.items():
            if role in self.memory.counted:
                updates, with_gradient = self.memory.counted[role]
                self.memory.counted[role] = [updates + 1, with_gradient + (norm > 0)]

    def _skip_or_refuse(
        self, seen: Seen, value: float, norm: float, items: Callable[[], Sequence[int]], *, other_rank: bool
    ) -> None:
        memory, allowed = self.memory, self.settings.skip_non_finite
        if memory.skipped >= allowed:
            failed = [role for role, size in seen.norms.items() if not math.isfinite(size)]
            refuse_non_finite(
                role=" and ".join(failed) or seen.role, update=seen.update, inside=seen.inside, loss=value, norm=norm,
                times=seen.times, other_rank=other_rank, skipped=memory.skipped, items=items(),
            )  # fmt: skip
        memory.skipped += 1
        what = f"not finite (loss {value}, gradient norm {norm}): left out, {memory.skipped} of {allowed} allowed,"
        self.watch.warn(Sign("skip_non_finite", seen.role, what, float(memory.skipped), float(allowed)), seen)


def refuse_non_finite(
    *,
    role: str,
    update: int,
    inside: int,
    loss: float,
    norm: float,
    times: Tensor | None,
    other_rank: bool = False,
    skipped: int = 0,
    items: Sequence[int] = (),
) -> None:
    """Stops before an optimizer step whose loss or gradient is not finite.

    Args:
        role: "student", "aux" or "teacher".
        update: student updates done.
        inside: auxiliary updates done since the last of them.
        loss: value of the loss.
        norm: global gradient norm.
        times: the times the loss was computed at, [B] or [B, 2].
        other_rank: another process met it.
        skipped: updates that were left out before.
        items: data items of the batch.

    Raises:
        RunStopped: loss or norm is NaN or infinite.
    """
    if math.isfinite(loss) and math.isfinite(norm) and not other_rank:
        return
    what = "another process met a value that is not finite" if other_rank else f"loss {loss}, gradient norm {norm}"
    before = f"; {skipped} updates were left out before (guards.skip_non_finite)" if skipped else ""
    batch = span(times) + ("" if other_rank else listed(items))
    raise RunStopped(f"{role}: not finite at {place(role, update, inside)}: {what}{batch}{before}", do=_REMEDY)


def _unmoved(role: Role, updates: int, with_gradient: int) -> RunStopped:
    key = optimizer_key(role.name)
    why = "its weights are what they were" if with_gradient else "its gradient was 0 in each of them"
    return RunStopped(
        f"{role.name}: has not moved in its first {updates} updates (guards.unmoved): {why}; "
        f"learning rate {role.optimizer.param_groups[0]['lr']:.3g}",
        do=f"raise {key}.lr or shorten {key}.warmup; with student.weights: lora, look at student.lora.targets; of a "
        "method of your own, see that its loss reaches the network",
    )
