"""Fixed-step ODE solvers whose rows each have an interval [s, t] of their own.

A field is anything called as `field(x, t)` with x [B, ...] and float32 times t [B]. If it has a method
`rows(index)`, that gives the field of fewer rows (a batch's condition has to follow its rows); a plain function is
taken to act on each row by itself.

Each rule turns one step into a mean velocity over that step; the average velocity over [s, t] is the weighted sum of
these, so that a tiny or empty interval gives the field itself instead of a difference of nearly equal states
(methods.md's cancellation). Rows with fewer steps leave the batch when they are done and cost nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfd_cli.flow import per_row

Field = Callable[[Tensor, Tensor], Tensor]

#: slack, in steps, for lengths that are a whole number of steps but for rounding: 0.2 / 0.02 is 10 steps, not 11
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Step:
    """One step of every row that is still moving.

    Attributes:
        x: state [B, ...] at the step's start.
        time: start times [B].
        size: step lengths [B].
        before: velocity at the previous step's start, None on the first step (multistep rules).
        ratio: this step's length over the previous one's [B], None on the first step.
    """

    x: Tensor
    time: Tensor
    size: Tensor
    before: Tensor | None = None
    ratio: Tensor | None = None

    def moved(self, velocity: Tensor, share: float) -> Tensor:
        """State after `share` of the step along a velocity."""
        return self.x + per_row(share * self.size, self.x) * velocity


#: a rule returns (mean velocity over the step, velocity at its start)
Rule = Callable[[Field, Step], tuple[Tensor, Tensor]]


def euler(field: Field, step: Step) -> tuple[Tensor, Tensor]:
    """First order, one evaluation a step: the paper's rule."""
    start = field(step.x, step.time)
    return start, start


def midpoint(field: Field, step: Step) -> tuple[Tensor, Tensor]:
    """Second order, two evaluations a step."""
    start = field(step.x, step.time)
    return field(step.moved(start, 0.5), step.time + 0.5 * step.size), start


def heun(field: Field, step: Step) -> tuple[Tensor, Tensor]:
    """Second order, two evaluations a step (explicit trapezoid)."""
    start = field(step.x, step.time)
    end = field(step.moved(start, 1.0), step.time + step.size)
    return 0.5 * (start + end), start


def rk4(field: Field, step: Step) -> tuple[Tensor, Tensor]:
    """Fourth order, four evaluations a step (classical Runge-Kutta)."""
    middle = step.time + 0.5 * step.size
    first = field(step.x, step.time)
    second = field(step.moved(first, 0.5), middle)
    third = field(step.moved(second, 0.5), middle)
    fourth = field(step.moved(third, 1.0), step.time + step.size)
    return (first + 2 * second + 2 * third + fourth) / 6, first


def adams_bashforth(field: Field, step: Step) -> tuple[Tensor, Tensor]:
    """Second order, one evaluation a step (two-step Adams-Bashforth, steps may vary; an Euler step starts it)."""
    start = field(step.x, step.time)
    if step.before is None or step.ratio is None:
        return start, start
    return start + per_row(0.5 * step.ratio, start) * (start - step.before), start


RULES: dict[str, Rule] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "ab2": adams_bashforth,
}
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1}


@dataclass(frozen=True)
class Integration:
    """Result of an integration.

    Attributes:
        end: state at the end times [B, ...].
        average_velocity: U = (end - start) / (t - s) [B, ...]; the field itself where t = s.
        evaluations: evaluations of the field that each row took, int64 [B] on the CPU.
    """

    end: Tensor
    average_velocity: Tensor
    evaluations: Tensor

    def reordered(self, index: Tensor) -> Integration:
        """The same rows in the order of `index` (int64 [B] on the CPU)."""
        there = index.to(self.end.device)
        return Integration(self.end[there], self.average_velocity[there], self.evaluations[index])


def steps_for(s: Tensor, t: Tensor, step_size: float) -> Tensor:
    """Smallest number of equal steps no longer than `step_size`, at least 1: int64 [B] on the CPU."""
    lengths = (t - s).double().cpu()
    return (lengths / step_size - _ROUNDING).ceil().clamp(min=1).long()


def integrate(
    field: Field,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    *,
    rule: str = "euler",
    steps: int | None = None,
    step_size: float | None = None,
    longest: Callable[[int], int] | None = None,
) -> Integration:
    """Integrates dx/dtime = field(x, time) from X_s to X_t in equal steps, row by row.

    Args:
        field: velocity field.
        x: X_s [B, ...].
        s: start times [B].
        t: end times [B], t >= s. A row with t = s takes one evaluation and does not move.
        rule: a name in RULES.
        steps: the same number of steps for every row; or
        step_size: the longest step, so that shorter intervals take fewer evaluations.
        longest: turns the largest number of steps here into that of all processes, for a field that every process has
            to evaluate equally often; what is missing is evaluated on one row and dropped.

    Raises:
        ValueError: both or neither of `steps` and `step_size` given, or one of them not positive.
    """
    if (steps is None) == (step_size is None) or (steps or step_size or 0) <= 0:
        raise ValueError(f"give steps or step_size, one of them and positive; got {steps} and {step_size}")
    start, span = s.float(), t.float() - s.float()
    counts = torch.full((x.shape[0],), steps) if steps else steps_for(s, t, step_size or 1.0)
    order = None
    if counts.unique().numel() > 1:
        # longest first: the rows that still move are then always a prefix, and dropping the others is a view
        order = counts.argsort(descending=True, stable=True)
        index = order.to(x.device)
        field, x, start, span, counts = _rows(field, index), x[index], start[index], span[index], counts[order]
    weights = (1.0 / counts).to(x.device)

    def border(step: int, moving: int) -> tuple[Tensor, Tensor]:
        return start[:moving] + step * weights[:moving] * span[:moving], weights[:moving]

    missing = 0 if longest is None else longest(int(counts[0])) - int(counts[0])
    result = _advance(field, x, span, counts, border, rule)
    for _ in range(missing):
        RULES[rule](_rows(field, slice(0, 1)), Step(x[:1], start[:1], span[:1]))
    return result if order is None else result.reordered(order.argsort())


def integrate_grid(
    field: Field, x: Tensor, grid: Tensor, *, rule: str = "euler", told: Tensor | None = None
) -> Integration:
    """Integrates along one grid of times shared by all rows (a sampler's schedule).

    Args:
        field: velocity field.
        x: state at grid[0], [B, ...].
        grid: increasing times [N + 1].
        rule: a name in RULES.
        told: times [N + 1] that the field is told at the steps' starts; `grid` if None.
    """
    grid = grid.float().to(x.device)
    told = grid if told is None else told.float().to(x.device)
    whole = grid[-1] - grid[0]
    weights = grid.diff() / whole
    counts = torch.full((x.shape[0],), len(weights), dtype=torch.long)

    def border(step: int, moving: int) -> tuple[Tensor, Tensor]:
        return told[step].expand(moving), weights[step].expand(moving)

    return _advance(field, x, whole.expand(x.shape[0]), counts, border, rule)


def _advance(
    field: Field,
    x: Tensor,
    span: Tensor,
    counts: Tensor,
    border: Callable[[int, int], tuple[Tensor, Tensor]],
    rule: str,
) -> Integration:
    """The loop over steps. Rows come sorted by falling number of steps; `border(step, moving)` gives the step's start
    times for the first `moving` rows and its weights, the shares of the rows' whole intervals that it covers.
    """
    state = x.to(torch.promote_types(x.dtype, torch.float32))
    length = per_row(span, state)
    average = torch.zeros_like(state)
    before = last_weight = None
    moving = len(counts)
    rows_left = (counts > torch.arange(int(counts[0]) if moving else 0)[:, None]).sum(dim=1).tolist()
    for step, still in enumerate(rows_left):
        if still < moving:
            field, moving, before = _rows(field, slice(0, still)), still, _prefix(before, still)
            last_weight = _prefix(last_weight, still)
        time, weight = border(step, moving)
        here = torch.addcmul(state[:moving], length[:moving], average[:moving]) if step else state
        ratio = None if last_weight is None else weight / last_weight
        mean, before = RULES[rule](field, Step(here, time, weight * span[:moving], before, ratio))
        average = _add_prefix(average, per_row(weight, mean) * mean)
        last_weight = weight
    return Integration(torch.addcmul(state, length, average), average, counts * EVALUATIONS_PER_STEP[rule])


def _prefix(tensor: Tensor | None, rows: int) -> Tensor | None:
    return None if tensor is None else tensor[:rows]


def _add_prefix(whole: Tensor, part: Tensor) -> Tensor:
    """`whole` with `part` added to its first rows; not in place, so that gradients may flow through a chain."""
    return whole + part if len(part) == len(whole) else torch.cat([whole[: len(part)] + part, whole[len(part) :]])


def _rows(field: Any, index: Tensor | slice) -> Field:
    return field.rows(index) if hasattr(field, "rows") else field
