"""What a run is watched for: signs that training on is in vain, measured on what updates compute anyway.

All of a watch's memory is in the checkpoint and all it looks at is agreed between processes, so warnings and stops are
the same after `--resume`, and on every process. Levels are averages of logarithms: one wild update does not move them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mfd_cli.config.schema import Guards as GuardSettings
from mfd_cli.errors import RunStopped

#: student updates (cycles) that a level is averaged over, and that a collapse has to last
_HORIZON = 20
#: gradient norms that the median is taken of, and how many there must be
_WINDOW, _LEAST = 50, 20
#: what counts as no variance at all
_NOTHING = 1e-30

_TRY = {
    "lag": "raise method.aux_updates or optim.aux.lr, or lower optim.student.lr",
    "spread": "look at the preview; raise method.aux_updates, lower optim.student.lr, or raise train.batch_size",
    "duplicates": "look at the preview; raise method.aux_updates, lower optim.student.lr; with few conditions, lower "
    "teacher.guidance",
    "collapse": "start again with more method.aux_updates, a lower optim.student.lr or a larger train.batch_size; "
    "guards.collapse=null lets `--resume` go on",
    "gradient": "nothing, if it is rare and the gradient is clipped; else lower {optim}.lr, set {optim}.clip=1, or "
    "raise {optim}.warmup",
    "skip_non_finite": "lower {optim}.lr or teacher.guidance, set method.times.min_interval, or use "
    "train.precision=fp32",
}


@dataclass
class Memory:
    """What guards remember; JSON, part of a checkpoint.

    Attributes:
        skipped: updates that were left out.
        starts: by role, a fingerprint of its first weights, until it is known to move.
        counted: by role, its updates so far and how many had a gradient, until it is known to move.
        norms: by role, its last gradient norms.
        levels: by name, observations and level.
        highest: the highest level of the spread, as a logarithm.
        low: student updates in a row with next to no spread.
        given: by guard and role, what was warned of and how often.
        pending: warnings that no line of metrics holds yet.
    """

    skipped: int = 0
    starts: dict[str, list[float]] = field(default_factory=dict)
    counted: dict[str, list[int]] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    levels: dict[str, list[float]] = field(default_factory=dict)
    highest: float | None = None
    low: int = 0
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    pending: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Standing:
    """How a run stands in its quick judgements; JSON, part of a checkpoint.

    Attributes:
        metric: the metric that decides; None before the first judgement.
        update: of the best student.
        value: its figure.
        standard_error: of that.
        mark: the figure that later ones have to improve on to count.
        waited: judgements since one counted.
    """

    metric: str | None = None
    update: int | None = None
    value: float | None = None
    standard_error: float | None = None
    mark: float | None = None
    waited: int = 0

    def record(self) -> dict[str, Any] | None:
        """The best student in run.json; None if nothing was judged."""
        names = ("update", "metric", "value", "standard_error")
        return None if self.metric is None else {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Seen:
    """What one update showed, before its optimizer steps; over all processes.

    Attributes:
        role: "student" or "aux".
        update: student updates done.
        inside: auxiliary updates done since.
        loss: the loss as it is shown.
        norms: gradient norm of every role that learns, before clipping.
        times: this process's times of the loss.
        variance: mean variance of the samples' dimensions.
        gaussian: flow-matching loss of a Gaussian of their variances, of a cycle's last auxiliary update.
        duplicates: share of samples that equal another, of a student's update.
    """

    role: str
    update: int
    inside: int
    loss: float
    norms: dict[str, float]
    times: Tensor | None = None
    variance: float | None = None
    gaussian: float | None = None
    duplicates: float | None = None

    @property
    def where(self) -> str:
        """The update in words."""
        return place(self.role, self.update, self.inside)


@dataclass(frozen=True)
class Sign:
    """Something to warn of.

    Attributes:
        guard: its key in the recipe.
        role: whose it is.
        what: in words.
        value: what was measured.
        threshold: what it should not pass.
    """

    guard: str
    role: str
    what: str
    value: float
    threshold: float


class Watch:
    """Looks at every update.

    Args:
        settings: thresholds.
        memory: where it stands.
    """

    def __init__(self, settings: GuardSettings, memory: Memory) -> None:
        self.settings, self.memory = settings, memory
        self._news: list[str] = []

    def look(self, seen: Seen) -> None:
        """Takes an update in, and keeps warnings about it.

        Raises:
            RunStopped: the student has collapsed.
        """
        for sign in [*self._gradient(seen), *self._lag(seen), *self._duplicates(seen), *self._spread(seen)]:
            self.warn(sign, seen)

    def warn(self, sign: Sign, seen: Seen) -> None:
        """Counts a sign, and tells it unless it was told not long ago."""
        name = f"{sign.guard}.{sign.role}"
        told = self.memory.given.get(name, {"guard": sign.guard, "role": sign.role, "first": seen.update, "steps": 0})
        again = "told" not in told or seen.update >= told["told"] + self.settings.repeat
        facts = {"value": sign.value, "threshold": sign.threshold}
        self.memory.given[name] = told | facts | {"last": seen.update, "steps": told["steps"] + 1}
        if again or sign.guard == "skip_non_finite":
            self.memory.given[name]["told"] = seen.update
            self.memory.pending.append({"guard": sign.guard, "role": sign.role, "update": seen.update, **facts})
            self._news.append(f"{sign.role}: {sign.what} at {seen.where}{span(seen.times)}. Try: {_advice(sign)}")

    def news(self) -> list[str]:
        """Warnings since the last call, in words."""
        news, self._news = self._news, []
        return news

    def pending(self) -> list[dict[str, Any]]:
        """Warnings since the last line of metrics."""
        pending, self.memory.pending = self.memory.pending, []
        return pending

    def record(self) -> list[dict[str, Any]]:
        """Every warning of the run, once for each guard and role."""
        return [{key: value for key, value in each.items() if key != "told"} for each in self.memory.given.values()]

    def _gradient(self, seen: Seen) -> Iterator[Sign]:
        factor = self.settings.gradient
        for role, norm in seen.norms.items():
            before = self.memory.norms.get(role, [])
            middle = statistics.median(before) if len(before) >= _LEAST else 0.0
            if factor is not None and middle > 0 and norm > factor * middle:
                times = norm / middle
                what = f"gradient norm {norm:.4g} is {times:.3g} times its median {middle:.4g} (limit {factor:g})"
                yield Sign("gradient", role, what, times, factor)
            self.memory.norms[role] = [*before, norm][-_WINDOW:]

    def _lag(self, seen: Seen) -> Iterator[Sign]:
        limit = self.settings.lag
        if limit is None or seen.gaussian is None:
            return
        count, level = self._level("lag", math.log(max(seen.loss, _NOTHING) / max(seen.gaussian, _NOTHING)))
        ratio = math.exp(min(level, 700.0))
        if count > self.settings.after and ratio > limit:
            what = (
                f"has lost track of the student: its flow-matching loss is {ratio:.3g} times that of a Gaussian with "
                f"the variance of the student's samples (limit {limit:g})"
            )
            yield Sign("lag", seen.role, what, ratio, limit)

    def _duplicates(self, seen: Seen) -> Iterator[Sign]:
        limit = self.settings.duplicates
        if limit is None or seen.duplicates is None:
            return
        count, share = self._level("duplicates", seen.duplicates)
        if count > self.settings.after and share >= limit:
            what = f"{share:.0%} of its samples equal another one's, from other noise (limit {limit:.0%})"
            yield Sign("duplicates", seen.role, what, share, limit)

    def _spread(self, seen: Seen) -> Iterator[Sign]:
        if seen.role != "student" or seen.variance is None:
            return
        memory, limit, least = self.memory, self.settings.spread, self.settings.collapse
        count, level = self._level("spread", math.log(max(seen.variance, _NOTHING)))
        if memory.highest is None or count <= _HORIZON:  # the first updates may swing
            memory.highest = level
        memory.highest = max(level, memory.highest)
        low = least is not None and seen.variance < least * math.exp(memory.highest)
        memory.low = memory.low + 1 if low else 0
        if least is not None and memory.low >= _HORIZON:
            raise RunStopped(
                f"student: collapsed at {seen.where}: the variance of its samples, {seen.variance:.3g}, has been under "
                f"{least:g} of the largest it had, {math.exp(memory.highest):.3g}, for {_HORIZON} student updates",
                do=_TRY["collapse"],
            )
        share = math.exp(level - memory.highest)
        if limit is not None and count > self.settings.after and share < limit:
            what = f"variance of its samples is {share:.3g} of the largest it had (limit {limit:g})"
            yield Sign("spread", seen.role, what, share, limit)

    def _level(self, name: str, value: float) -> tuple[int, float]:
        """Observations of a quantity, and its average over the last ones."""
        count, level = self.memory.levels.get(name, [0, 0.0])
        count = int(count) + 1
        level += (value - level) / min(count, _HORIZON)
        self.memory.levels[name] = [count, level]
        return count, level


def place(role: str, update: int, inside: int) -> str:
    """Where a run is, in words."""
    return f"update {update}" + (f", auxiliary update {inside}" if role != "student" and role != "teacher" else "")


def span(times: Tensor | None) -> str:
    """The times [B] or [B, 2] of a loss, in words."""
    if times is None:
        return ""
    columns = times.reshape(len(times), -1).T.tolist()
    names = ("t",) if len(columns) == 1 else ("s", "t")
    return "; " + ", ".join(
        f"{name} from {min(column):.4f} to {max(column):.4f}" for name, column in zip(names, columns, strict=False)
    )


def listed(items: Sequence[int]) -> str:
    """The data items of a batch, in words."""
    shown = ", ".join(map(str, items[:8]))
    more = f" and {len(items) - 8} more" if len(items) > 8 else ""
    return f"; items {shown}{more}" if items else ""


def optimizer_key(role: str) -> str:
    """The recipe's block that sets a role's optimizer."""
    return "optim.student" if role == "student" else "optim.aux"


def _advice(sign: Sign) -> str:
    return _TRY.get(sign.guard, "").format(optim=optimizer_key(sign.role))
