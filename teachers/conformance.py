"""Proof, in numbers, that an adapter keeps the contract of `teachers.base`; what `mfd teachers check` prints.

A wrong sign or a reversed time raises no error: distillation runs and the student is worth nothing. So the velocity is
put to the test that it was trained for. For real (or the teacher's own) samples X_1 and fresh noise X_0, the minimiser
of E|u(X_t, t) - (X_1 - X_0)|^2 is the right velocity, and any other reading of the same network (sign turned, time
reversed, time counted to 1000) has a larger error; and E[(X_1 - X_0) . u] = E[u . u] fixes its scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import chain, product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from teachers import base, conditions
from teachers.base import Data, Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.guidance import VelocityField

_CHUNK = 64  # rows of one call
_FEW = 6  # rows of the checks that compare single outputs
_OWN_STEPS = 50  # Euler steps to the teacher's own samples, where there are no real ones
_NEAR = 0.3  # share of the teacher's velocity by which a student's start may differ
_SURE = 3.0  # standard errors
_UNSTEADY = "not checked: two equal calls differ"


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        name: short name of the check.
        passed: None if it does not apply, or cannot be told because of another finding.
        what: what was measured.
        contract: the line of the contract that is kept or broken.
    """

    name: str
    passed: bool | None
    what: str
    contract: str


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


def check(teacher: Teacher, data: Data, *, seed: int = 0, samples: int = 256) -> list[Finding]:
    """Every check, in an order in which the first failure is the one to mend first.

    Args:
        teacher: a loaded teacher.
        data: the data source it is used with.
        seed: of noise and times.
        samples: rows that averages are taken over; each is evaluated about ten times.

    Raises:
        TeacherError: the teacher is not loaded.
    """
    case = Case(teacher, data, seed, samples)
    findings = [*_guarded(_outputs, case, "shape", "velocity"), *_guarded(_encoding, case, "encode", "encode")]
    if any(finding.passed is False for finding in findings):
        return findings
    for part, name, member in (
        (_repeated, "determinism", "velocity"), (_rows, "rows", "velocity"), (_regression, "regression", "velocity"),
        (_noise_end, "noise end", "velocity"), (_null, "null condition", "null_condition"),
        (_start, "initial network", "initial_network"), (_gradients, "gradient", "initial_network"),
        (_reloaded, "save and load", "build_network"), (_decoded, "decode", "decode"),
        (_identified, "identity", "identity"),
    ):  # fmt: skip
        findings += _guarded(part, case, name, member)
    return findings


class Path(NamedTuple):
    """X_t and X_1 - X_0 of every row, and what X_1 is."""

    x: Tensor
    target: Tensor
    kind: str


class Case:
    """A teacher with the inputs that it is tried on: `samples` rows of noise, times and conditions."""

    def __init__(self, teacher: Teacher, data: Data, seed: int, samples: int) -> None:
        if teacher.network is None:
            raise TeacherError("the teacher has no network", do="load it first: `load` must set `network`")
        self.teacher, self.data, self.network, self.seed = teacher, data, teacher.network, seed
        held = next(chain(self.network.parameters(), self.network.buffers()), torch.empty(0))
        self.device = held.device
        #: largest difference, relative to the largest value, that rounding may make
        self.tolerance = 3e-2 if held.dtype in (torch.float16, torch.bfloat16) else 1e-3
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(samples, *teacher.sample_shape, generator=generator).to(self.device)
        self._source = torch.randn(samples, *teacher.sample_shape, generator=generator).to(self.device)
        self.t = torch.rand(samples, generator=generator).to(self.device)
        size = data.size
        self.items = torch.arange(samples) if size is None else torch.arange(samples) * max(1, size // samples) % size
        self.condition = conditions.to(data.condition(self.items), self.device)
        self.steady = True
        self._start: nn.Module | None = None
        self._path: Path | None = None

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, condition: Condition, network: nn.Module | None = None) -> Tensor:
        """The adapter's velocity in float32, a chunk at a time."""
        parts = [
            self.teacher.velocity(network or self.network, x[part], t[part], conditions.rows(condition, part))
            for part in (slice(first, first + _CHUNK) for first in range(0, len(x), _CHUNK))
        ]
        return torch.cat(parts).float()

    def few(self, rows: int = _FEW) -> tuple[Tensor, Tensor, Condition]:
        """The first rows of noise, times and condition."""
        return self.noise[:rows], self.t[:rows], conditions.rows(self.condition, slice(0, rows))

    def own_samples(self, rows: int, steps: int) -> Tensor:
        """States at t = 1 by Euler steps of the unguided teacher, from noise that is used for nothing else."""
        condition = self.few(rows)[2]
        x = self._source[:rows]
        for step in range(steps):
            x = x + self.velocity(x, torch.full((len(x),), step / steps, device=self.device), condition) / steps
        return x

    def path(self) -> Path:
        """Points of the straight paths of all rows, made once."""
        if self._path is None:
            try:
                data, kind = self.data.states(self.items).to(self.device), "real samples"
            except TeacherError:
                data, kind = self.own_samples(len(self.noise), _OWN_STEPS), "the teacher's own samples"
            time = self.t.reshape(-1, *(1,) * (data.dim() - 1))
            self._path = Path((1 - time) * self.noise + time * data, data - self.noise, kind)
        return self._path

    def start(self) -> nn.Module:
        """A network to train, made once."""
        if self._start is None:
            self._start = self.teacher.initial_network(self.seed)
        return self._start

    def differ(self, first: Tensor, second: Tensor) -> float:
        """Largest difference relative to the largest value, over the tolerance: above 1 is more than rounding."""
        scale = max(float(second.abs().max()), 1e-6) * self.tolerance
        return float((first - second).abs().max()) / scale


def _contract(member: str) -> str:
    """The contract's own words: the first line of a docstring of `Teacher`, or of its module's convention."""
    if member == "convention":
        return "teachers.base: t = 0 is noise, t = 1 is data, X_t = (1 - t) X_0 + t X_1, u = X_1 - X_0"
    return f"Teacher.{member}: {(getattr(base.Teacher, member).__doc__ or '').splitlines()[0]}"


def _guarded(part: Callable[[Case], Iterator[Finding]], case: Case, name: str, member: str) -> list[Finding]:
    """A part's findings; an exception in it is a finding too, whoever's code raised it."""
    findings: list[Finding] = []
    try:
        findings.extend(part(case))
    except Exception as error:
        findings.append(Finding(name, False, f"{type(error).__name__}: {error}", _contract(member)))
    return findings


def _outputs(case: Case) -> Iterator[Finding]:
    x, t, condition = case.few()
    with torch.no_grad():
        u = case.teacher.velocity(case.network, x, t, condition)
    contract = _contract("velocity")
    yield Finding("shape", u.shape == x.shape, f"{list(u.shape)} for states {list(x.shape)}", contract)
    sound = u.is_floating_point() and bool(u.isfinite().all())
    yield Finding("dtype", sound, f"{u.dtype}, {'finite' if sound else 'not all finite numbers'}", contract)


def _encoding(case: Case) -> Iterator[Finding]:
    teacher, contract = case.teacher, _contract("encode")
    if teacher.condition_kind == "none":
        yield Finding("encode", None, "the family has no condition to ask for", contract)
        return
    asked = teacher.examples(_FEW)
    condition = conditions.to(teacher.encode(asked), case.device)
    lengths = {name: len(value) for name, value in condition.items()}
    if len(asked) != _FEW or set(lengths.values()) != {_FEW}:
        yield Finding("encode", False, f"{len(asked)} examples and rows {lengths} for {_FEW} asked", contract)
        return
    x, t, _ = case.few()
    u = case.velocity(x, t, condition)
    same = condition.keys() == case.condition.keys()
    yield Finding(
        "encode", same and len(u) == len(x), f"{sorted(condition)}; the data's: {sorted(case.condition)}", contract
    )


def _repeated(case: Case) -> Iterator[Finding]:
    first, second = case.velocity(*case.few()), case.velocity(*case.few())
    case.steady = bool(torch.equal(first, second))
    gap = float((first - second).abs().max())
    yield Finding("determinism", case.steady, f"two equal calls differ by {gap:.2g}", _contract("velocity"))


def _rows(case: Case) -> Iterator[Finding]:
    contract = _contract("velocity")
    if not case.steady:
        yield Finding("rows", None, _UNSTEADY, contract)
        return
    x, t, condition = case.few()
    single = [
        case.velocity(x[[row]], t[[row]], conditions.rows(condition, slice(row, row + 1))) for row in range(len(x))
    ]
    gap = case.differ(case.velocity(x, t, condition), torch.cat(single))
    yield Finding("rows", gap <= 1, f"a batch against its rows one by one: {gap:.2g} x rounding", contract)


def _regression(case: Case) -> Iterator[Finding]:
    contract = _contract("convention")
    x, target, kind = case.path()
    fits = dict(_fits(case, x, target))
    best = min(fits, key=lambda reading: float(fits[reading].errors.mean()))
    if not _clearly_smaller(fits[best].errors, fits[_GIVEN].errors):
        best = _GIVEN
    constant = (target - target.mean(0)).square().flatten(1).mean(1)
    explains = _clearly_smaller(fits[best].errors, constant)
    loss, shown = float(fits[best].errors.mean()), f"on {len(x)} of {kind}"
    yield Finding(
        "velocity", explains, f"loss {loss:.4g}, of a constant {float(constant.mean()):.4g}, {shown}", contract
    )
    known = explains or None
    as_given = f"{_GIVEN} leaves {float(fits[_GIVEN].errors.mean()):.4g}"
    what = as_given if best == _GIVEN else f"{as_given}, {best} only {loss:.4g}: that is the reading to use"
    yield Finding("time direction", known and not best.reverse, what, contract)
    yield Finding("sign", known and best.sign > 0, what, contract)
    yield Finding("time scale", known and best.scale == 1, what, _contract("velocity"))
    slope, error = fits[best].slope, fits[best].slope_error
    what = f"E[(X_1 - X_0) . u] / E[u . u] = {slope:.3f} +- {error:.3f}; 1 is right"
    yield Finding("velocity scale", known and abs(slope - 1) < 0.1 + _SURE * error, what, contract)


def _noise_end(case: Case) -> Iterator[Finding]:
    """At t = 0 the velocity is E[X_1] - x whatever the target: a check that no sample can spoil."""
    x = case.noise
    u = case.velocity(x, torch.zeros_like(case.t), case.condition)
    slope = float((u * x).mean() / x.square().mean())
    error = float((u * x).flatten(1).mean(1).std()) / math.sqrt(len(x))
    what = f"u(x, 0) follows x with slope {slope:.3f} +- {error:.3f}; -1 is right"
    yield Finding("noise end", abs(slope + 1) < 0.1 + _SURE * error, what, _contract("convention"))


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


def _null(case: Case) -> Iterator[Finding]:
    contract = _contract("null_condition")
    x, t, condition = case.few()
    null = case.teacher.null_condition(condition)
    if null is None:
        yield Finding("null condition", None, "the family has none, so it is not guided", contract)
        return
    shapes, wanted = (
        {name: (tuple(value.shape), value.dtype) for name, value in each.items()} for each in (null, condition)
    )
    yield Finding("null condition", shapes == wanted, f"{shapes}; the condition's: {wanted}", contract)
    if shapes != wanted or not case.steady:
        yield Finding("guidance", None, "not checked: see the null condition and determinism", contract)
        return
    conditional, unconditional = case.velocity(x, t, condition), case.velocity(x, t, null)
    with torch.no_grad():
        guided = {w: VelocityField(case.teacher, case.network, condition, w)(x, t) for w in (0.0, 1.0, 2.5)}
    if torch.equal(conditional, unconditional):
        yield Finding("guidance", False, "the condition changes nothing: both branches are equal", contract)
        return
    exact = torch.equal(guided[1.0], conditional) and torch.equal(guided[0.0], unconditional)
    gap = case.differ(guided[2.5], case.teacher.guide(unconditional, conditional, 2.5))
    what = f"scales 0 and 1 are {'' if exact else 'not '}the two branches; scale 2.5 is off by {gap:.2g} x rounding"
    yield Finding("guidance", exact and gap <= 5, what, contract)


def _start(case: Case) -> Iterator[Finding]:
    contract = _contract("initial_network")
    network = case.start()
    own = {value.data_ptr() for value in case.network.parameters()}
    if any(value.requires_grad and value.data_ptr() in own for value in network.parameters()):
        yield Finding("initial network", False, "trains the teacher's own tensors: it must be a copy", contract)
        return
    if not case.steady:
        yield Finding("initial network", None, _UNSTEADY, contract)
        return
    # along the paths: off them a network that was fitted to the teacher owes nothing
    inputs = (case.path().x[:_CHUNK], *case.few(_CHUNK)[1:])
    teacher, start = case.velocity(*inputs), case.velocity(*inputs, network=network.eval())
    gap = float((start - teacher).norm() / teacher.norm().clamp(min=1e-12))
    yield Finding("initial network", gap < _NEAR, f"differs from the teacher by {gap:.1%} of its velocity", contract)


def _gradients(case: Case) -> Iterator[Finding]:
    contract = _contract("initial_network")
    x, t, condition = case.few()
    x, network = x.clone().requires_grad_(True), case.start().train()
    case.network.zero_grad()
    network.zero_grad()
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    case.teacher.velocity(network, x, t, condition).float().square().mean().backward()
    moved = [n for n, p in trained.items() if p.grad is not None and p.grad.isfinite().all() and p.grad.any()]
    through = x.grad is not None and bool(x.grad.any())
    what = f"{len(moved)} of {len(trained)} trainable tensors have one; the input {'too' if through else 'has none'}"
    yield Finding("gradient", bool(moved) and through, what, contract)
    reached = [n for n, p in case.network.named_parameters() if p.requires_grad or p.grad is not None]
    what = f"teacher tensors that could be trained: {', '.join(reached[:3]) or 'none'}"
    yield Finding("frozen teacher", not reached, what, _contract("load"))
    network.zero_grad(set_to_none=True)


def _reloaded(case: Case) -> Iterator[Finding]:
    """A student is sampled from its stored settings, architecture and weights alone, so that is what is tried."""
    contract = _contract("build_network")
    teacher, network = case.teacher, case.start()
    adapter = type(teacher)(teacher.settings, json.loads(json.dumps(teacher.architecture)))
    rebuilt = adapter.build_network().to(case.device)
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    if not case.steady:
        yield Finding("save and load", None, _UNSTEADY, contract)
        return
    inputs = case.few()
    gap = case.differ(case.velocity(*inputs, network=rebuilt.eval()), case.velocity(*inputs, network=network.eval()))
    yield Finding("save and load", gap <= 1, f"the reloaded network is off by {gap:.2g} x rounding", contract)


def _decoded(case: Case) -> Iterator[Finding]:
    kind, contract = case.teacher.sample_kind, _contract("decode")
    with torch.no_grad():
        samples = case.teacher.decode(case.own_samples(_FEW, case.teacher.settings.steps))
    axes = {"points": 2, "images": 4, "occupancy": 5}[kind]
    low, high = float(samples.min()), float(samples.max())
    sound = samples.dim() == axes and len(samples) == _FEW and bool(samples.isfinite().all())
    if kind != "points":
        sound = sound and low >= 0 and high <= {"images": 1, "occupancy": 255}[kind]
    yield Finding("decode", sound, f"{kind} {list(samples.shape)} from {low:.3g} to {high:.3g}", contract)


def _identified(case: Case) -> Iterator[Finding]:
    first, second = case.teacher.identity(), case.teacher.identity()
    texts = bool(first) and all(isinstance(text, str) and text for pair in first.items() for text in pair)
    yield Finding("identity", texts and first == second, f"{first}", _contract("identity"))
