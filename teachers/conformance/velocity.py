"""Whether the velocity is the one that the contract means.

A wrong sign or a reversed time raises no error: distillation runs and the student is worth nothing. So the velocity is
put to the test that it was trained for. For real (or the teacher's own) samples X_1 and fresh noise X_0, the minimiser
of E|u(X_t, t) - (X_1 - X_0)|^2 is the right velocity, and any other reading of the same network (sign turned, time
reversed, time counted to 1000) has a larger error; and E[(X_1 - X_0) . u] = E[u . u] fixes its scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from teachers import conditions
from teachers.conformance.case import FEW, UNSTEADY, Case, Check, Finding, contract
from teachers.guidance import VelocityField

_SURE = 3.0  # standard errors


class Reading(NamedTuple):
    """One way to take a network's output for a velocity; the contract's is (1, False, 1)."""

    sign: int
    reverse: bool
    scale: float

    def time(self, t: Tensor) -> Tensor:
        """The time to hand to the adapter."""
        return (1 - t if self.reverse else t) * self.scale

    def __str__(self) -> str:
        time = "1 - t" if self.reverse else "t"
        factor = "" if self.scale == 1 else f"{self.scale:g} "
        return f"{'-' if self.sign < 0 else ''}u(x, {factor}{f'({time})' if factor and self.reverse else time})"


_GIVEN = Reading(1, False, 1.0)
_TIMES = tuple(product((False, True), (1.0, 1000.0, 0.001)))


def outputs(case: Case) -> Iterator[Finding]:
    """The velocity looks like the state."""
    x, t, condition = case.few()
    with torch.no_grad():
        u = case.teacher.velocity(case.network, x, t, condition)
    line = contract("velocity")
    yield Finding("shape", u.shape == x.shape, f"{list(u.shape)} for states {list(x.shape)}", line)
    sound = u.is_floating_point() and bool(u.isfinite().all())
    yield Finding("dtype", sound, f"{u.dtype}, {'finite' if sound else 'not all finite numbers'}", line)


def encoding(case: Case) -> Iterator[Finding]:
    """Conditions that users ask for are conditions as the data gives them."""
    teacher, line = case.teacher, contract("encode")
    if teacher.condition_kind == "none":
        yield Finding("encode", None, "the family has no condition to ask for", line)
        return
    asked = teacher.examples(FEW)
    condition = conditions.to(teacher.encode(asked), case.device)
    lengths = {name: len(value) for name, value in condition.items()}
    if len(asked) != FEW or set(lengths.values()) != {FEW}:
        yield Finding("encode", False, f"{len(asked)} examples and rows {lengths} for {FEW} asked", line)
        return
    x, t, _ = case.few()
    u = case.velocity(x, t, condition)
    same = condition.keys() == case.condition.keys()
    yield Finding(
        "encode", same and len(u) == len(x), f"{sorted(condition)}; the data's: {sorted(case.condition)}", line
    )


def repeated(case: Case) -> Iterator[Finding]:
    """Equal calls give equal results."""
    first, second = case.velocity(*case.few()), case.velocity(*case.few())
    case.steady = bool(torch.equal(first, second))
    gap = float((first - second).abs().max())
    yield Finding("determinism", case.steady, f"two equal calls differ by {gap:.2g}", contract("velocity"))


def rows(case: Case) -> Iterator[Finding]:
    """A row depends on itself alone."""
    line = contract("velocity")
    if not case.steady:
        yield Finding("rows", None, UNSTEADY, line)
        return
    x, t, condition = case.few()
    single = [
        case.velocity(x[[row]], t[[row]], conditions.rows(condition, slice(row, row + 1))) for row in range(len(x))
    ]
    gap = case.differ(case.velocity(x, t, condition), torch.cat(single))
    yield Finding("rows", gap <= 1, f"a batch against its rows one by one: {gap:.2g} x rounding", line)


def regression(case: Case) -> Iterator[Finding]:
    """Direction of time, sign, scale of time and of velocity, by the loss that the velocity was trained for."""
    line = contract("convention")
    x, target, kind = case.path()
    fits = dict(_fits(case, x, target))
    best = min(fits, key=lambda reading: float(fits[reading].errors.mean()))
    if not _clearly_smaller(fits[best].errors, fits[_GIVEN].errors):
        best = _GIVEN
    constant = (target - target.mean(0)).square().flatten(1).mean(1)
    explains = _clearly_smaller(fits[best].errors, constant)
    loss, shown = float(fits[best].errors.mean()), f"on {len(x)} of {kind}"
    yield Finding("velocity", explains, f"loss {loss:.4g}, of a constant {float(constant.mean()):.4g}, {shown}", line)
    known = explains or None
    as_given = f"{_GIVEN} leaves {float(fits[_GIVEN].errors.mean()):.4g}"
    what = as_given if best == _GIVEN else f"{as_given}, {best} only {loss:.4g}: that is the reading to use"
    yield Finding("time direction", known and not best.reverse, what, line)
    yield Finding("sign", known and best.sign > 0, what, line)
    yield Finding("time scale", known and best.scale == 1, what, contract("velocity"))
    slope, error = fits[best].slope, fits[best].slope_error
    what = f"E[(X_1 - X_0) . u] / E[u . u] = {slope:.3f} +- {error:.3f}; 1 is right"
    yield Finding("velocity scale", known and abs(slope - 1) < 0.1 + _SURE * error, what, line)


def noise_end(case: Case) -> Iterator[Finding]:
    """At t = 0 the velocity is E[X_1] - x whatever the target: a check that no sample can spoil."""
    x = case.noise
    u = case.velocity(x, torch.zeros_like(case.t), case.condition)
    slope = float((u * x).mean() / x.square().mean())
    error = float((u * x).flatten(1).mean(1).std()) / math.sqrt(len(x))
    what = f"u(x, 0) follows x with slope {slope:.3f} +- {error:.3f}; -1 is right"
    yield Finding("noise end", abs(slope + 1) < 0.1 + _SURE * error, what, contract("convention"))


class _Fit(NamedTuple):
    """Target = slope x velocity by least squares: slope, its standard error, and squared errors of the rows [B]."""

    slope: float
    slope_error: float
    errors: Tensor


def _fits(case: Case, x: Tensor, target: Tensor) -> Iterator[tuple[Reading, _Fit]]:
    """How well each reading explains the target. A free slope, not below 0, keeps scale out of the comparison."""
    for reverse, scale in _TIMES:
        try:
            u = case.velocity(x, Reading(1, reverse, scale).time(case.t), case.condition)
        except Exception:
            if scale == 1:
                raise
            continue  # a network may refuse times outside [0, 1]: then that is not how it was meant to be read
        for sign in (1, -1):
            yield Reading(sign, reverse, scale), _fit(sign * u, target)


def _fit(u: Tensor, target: Tensor) -> _Fit:
    power, products = u.square().flatten(1).mean(1), (u * target).flatten(1).mean(1)
    if not bool(u.isfinite().all()) or not float(power.mean()) > 0:
        return _Fit(0.0, 0.0, target.square().flatten(1).mean(1))
    slope = max(0.0, float(products.mean() / power.mean()))
    spread = float((products - slope * power).std() / power.mean()) / math.sqrt(len(u))
    return _Fit(slope, spread, (target - slope * u).square().flatten(1).mean(1))


def _clearly_smaller(errors: Tensor, others: Tensor) -> bool:
    """Whether paired errors are smaller than others beyond chance, and by a hundredth at least."""
    gain = others - errors
    sure = _SURE * float(gain.std()) / math.sqrt(len(gain))
    return float(gain.mean()) > max(sure, 0.01 * float(others.mean()))


def null(case: Case) -> Iterator[Finding]:
    """The null condition looks like a condition, and guidance is what it says."""
    line = contract("null_condition")
    x, t, condition = case.few()
    null = case.teacher.null_condition(condition)
    if null is None:
        yield Finding("null condition", None, "the family has none, so it is not guided", line)
        return
    shapes, wanted = (
        {name: (tuple(value.shape), value.dtype) for name, value in each.items()} for each in (null, condition)
    )
    yield Finding("null condition", shapes == wanted, f"{shapes}; the condition's: {wanted}", line)
    if shapes != wanted or not case.steady:
        yield Finding("guidance", None, "not checked: see the null condition and determinism", line)
        return
    conditional, unconditional = case.velocity(x, t, condition), case.velocity(x, t, null)
    with torch.no_grad():
        guided = {w: VelocityField(case.teacher, case.network, condition, w)(x, t) for w in (0.0, 1.0, 2.5)}
    if torch.equal(conditional, unconditional):
        yield Finding("guidance", False, "the condition changes nothing: both branches are equal", line)
        return
    exact = torch.equal(guided[1.0], conditional) and torch.equal(guided[0.0], unconditional)
    gap = case.differ(guided[2.5], case.teacher.guide(unconditional, conditional, 2.5))
    what = f"scales 0 and 1 are {'' if exact else 'not '}the two branches; scale 2.5 is off by {gap:.2g} x rounding"
    yield Finding("guidance", exact and gap <= 5, what, line)


#: whether anything else can be tried, and then the rest
FIRST: tuple[Check, ...] = (Check(outputs, "shape", "velocity"), Check(encoding, "encode", "encode"))
CHECKS: tuple[Check, ...] = (
    Check(repeated, "determinism", "velocity"), Check(rows, "rows", "velocity"),
    Check(regression, "regression", "velocity"), Check(noise_end, "noise end", "velocity"),
    Check(null, "null condition", "null_condition"),
)  # fmt: skip
