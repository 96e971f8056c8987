"""What `paper_figures.py` measures, as functions: gradients, directions and distances on a frozen moment of a run.

VSD is here MFD with a single Euler step an interval, which is the same at the same times s: so both methods get the
same student, auxiliary, noise and starts, whatever the recipe's distribution of times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gradient_variance import stages
from jackknife import statistics
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.flow import interpolate, per_row
from mfd_cli.inference.quality import Judge, judge_of
from mfd_cli.methods.base import Batch, Method
from mfd_cli.methods.mfd import MeanFlowDistillation, MfdSettings, Solver
from mfd_cli.methods.times import Times, intervals
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.solvers import Field, integrate
from mfd_cli.training.fields import Fields
from mfd_cli.training.workshop import Workshop, build
from teachers.gmm import MixtureField
from teachers.guidance import Evaluations, SideBySide

PAPER, VSD = "{type: euler, step_size: 0.02}", "{type: euler, steps: 1}"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

#: seed of the measurements' own noise, apart from a run's, and the update whose noise gives the samples of a density
_MEASURING, _DENSITY = 2001, 1_000_000

#: states whose distances to every sample of a density are held at once
_AT_ONCE = 2048


class KeptJacobian(MeanFlowDistillation):
    """MFD whose gradient passes through both integrations, as the chain rule has it; the fields' weights are fixed.

    L = mean 1/2 |U_phi(X_s; s, t) - U_teacher(X_s; s, t)|^2        dL/dX_s = (dU_phi/dx - dU_teacher/dx)^T D

    It is the student's loss as one would first write it, for the comparison that the paper's Figure 3 makes. With it
    nothing moves a student that is the target but for a shift, and one that is narrower is made narrower still.
    The loss it reports is not L but 1/2 of that gradient squared.
    """

    @torch.enable_grad()
    def velocities(self, batch: Batch, x_s: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """U_teacher + (dU_phi/dx - dU_teacher/dx)^T D, in U_phi's place, and U_teacher [B, ...] at X_s over [s, t]."""
        solver, both = self.settings.solver, SideBySide(batch.auxiliary, batch.teacher)
        point = x_s.detach().requires_grad_()
        start = torch.stack([point, point], dim=1)
        found = integrate(both, start, s, t, rule=solver.type, steps=solver.steps, step_size=solver.step_size)
        difference = found.average_velocity[:, 0] - found.average_velocity[:, 1]
        # towards the state alone: a backward pass would leave gradients in the auxiliary for its next update
        (gradient,) = torch.autograd.grad(0.5 * difference.square().sum(), point)
        teacher = found.average_velocity[:, 1].detach()
        return teacher + gradient, teacher


def vsd_of(settings: MfdSettings) -> MeanFlowDistillation:
    """VSD at the same times: one Euler step an interval, whose velocity is the one at s."""
    return MeanFlowDistillation(settings.model_copy(update={"solver": Solver(steps=1)}))


@dataclass(frozen=True)
class States:
    """Where directions are taken: X_s = (1 - s) X_0 + s X_1 [B, ...] of the student's X_1, over [s, t], [B] each."""

    batch: Batch
    x: Tensor
    s: Tensor
    t: Tensor

    @classmethod
    def of(cls, batch: Batch, data: Tensor, times: Times) -> States:
        """States of given samples X_1 [B, ...], with the batch's noise and times."""
        s, t = intervals(batch.random, times)
        return cls(batch, interpolate(batch.random.normal("x0", batch.shape), data, s), s, t)

    def direction(self, method: MeanFlowDistillation) -> Tensor:
        """A method's D [B, ...] here."""
        return method.direction(self.batch, self.x, self.s, self.t)


@dataclass(frozen=True)
class Probe:
    """A run's networks as they are now, with noise apart from the noise that they are trained on.

    Attributes:
        workshop: the run's.
        rows: samples of a minibatch.
    """

    workshop: Workshop
    rows: int

    @classmethod
    def of(cls, workshop: Workshop) -> Probe:
        """With minibatches as large as the recipe's."""
        return cls(workshop, workshop.recipe.train.batch_size)

    def batch(self, index: int) -> Batch:
        """Minibatch number `index`: the same noise, times and conditions whatever the networks."""
        workshop = self.workshop
        batches = replace(workshop.batches, seed=_MEASURING, batch_size=self.rows, parts=1)
        counts = {name: Evaluations() for name in ("student", "aux", "teacher")}
        fields = Fields(workshop.recipe, workshop.method, workshop.teacher, workshop.roles, batches, counts)
        return fields.batch(index, 0, is_student=True, update=0)

    @torch.no_grad()
    def samples(self, index: int) -> Tensor:
        """The student's samples X_1 [rows, ...] of a minibatch."""
        return self.batch(index).generate()

    def states(self, index: int, times: Times) -> States:
        """States of a minibatch of its own samples."""
        return States.of(self.batch(index), self.samples(index), times)

    def gradient(self, method: Method, index: int) -> tuple[Tensor, float]:
        """The student's flat gradient [P] from one minibatch, and the loss that the method reports."""
        loss = method.student_loss(self.batch(index))
        parts = torch.autograd.grad(loss.value, self.workshop.roles.student.parameters)
        return torch.cat([part.flatten() for part in parts]), loss.shown.item()


def jacobian_cosines(probe: Probe, settings: MfdSettings, minibatches: int) -> dict[str, Any]:
    """The student's gradient with the integration's Jacobian held against the one without it, on the same noise.

    Returns:
        `samples`: cosine, for each generated sample, of the gradients with respect to that sample (what the student's
        own network does with them is the same for both); `batches`: of the gradients with respect to its weights, one
        for each minibatch; `mean` and `mean_error`: of the expected gradients, unbiased (so that noise may take it past
        1), with its jackknife error; `ratio`: length of the mean gradient with the Jacobian over that without.
    """
    kept, omitted = KeptJacobian(settings), MeanFlowDistillation(settings)
    by_sample, pairs = [], []
    for index in range(minibatches):
        states = probe.states(index, settings.times)
        both = [states.direction(method).flatten(1).double() for method in (kept, omitted)]
        by_sample.append(cosine_similarity(*both))
        pairs.append(torch.stack([probe.gradient(method, index)[0] for method in (kept, omitted)]))
    with_it, without = torch.stack(pairs, dim=1).double()
    mean = statistics(with_it, without)["cosine"]
    return {
        "samples": torch.cat(by_sample).tolist(),
        "batches": cosine_similarity(with_it, without).tolist(),
        "mean": mean.value,
        "mean_error": mean.error,
        "ratio": (with_it.mean(0).norm() / without.mean(0).norm()).item(),
    }


def score(field: Field, x: Tensor, t: Tensor) -> Tensor:
    """Grad log p_t(x) = (t u(x, t) - x) / (1 - t) [B, D] of an exact velocity field, t [B] below 1."""
    return (per_row(t, x) * field(x, t) - x) / per_row(1 - t, x)


def density_of(samples: Tensor) -> MixtureField:
    """The exact velocity field of samples [M, D] that are mixed with noise: a mixture of points without extent."""
    count = len(samples)
    return MixtureField(samples, samples.new_zeros(count), samples.new_full((count,), 1 / count))


def reverse_kl_direction(student: Field, teacher: Field, x: Tensor, s: Tensor) -> Tensor:
    """Gradient with respect to X_1 of the reverse KL divergence of the noised distributions, one draw of it [B, D]:

        grad of  E_s w(s) KL(p_s || q_s)  =  E[ w(s) s (grad log p_s - grad log q_s)(X_s) ],    w(s) = (1 - s) / s

    With this weight it equals s (v_p - u_q), the direction of VSD under a perfect auxiliary.

    Args:
        student: exact velocity of the student's samples.
        teacher: exact velocity of the target.
        x: X_s [B, D].
        s: times [B] in (0, 1).
    """
    weight = (1 - s) / s
    return per_row(weight * s, x) * (score(student, x, s) - score(teacher, x, s))


@torch.no_grad()
def direction_fields(probe: Probe, settings: MfdSettings, draws: int, density: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Where each method moves the student's samples: -s D, averaged over X_0 and times, at the probe's `rows` samples.

    Args:
        probe: a run whose samples are points.
        settings: MFD's.
        draws: of (X_0, s, t) for each sample, rounded down to an even number.
        density: samples that stand for the student's distribution, other ones than those that are moved.

    Returns:
        The samples [B, D], and for each method its directions from either half of the draws [2, B, D]. The reverse
        KL's is there if the teacher is exact.
    """
    points, teacher = probe.samples(0), probe.workshop.teacher.network
    methods = {"MFD": MeanFlowDistillation(settings), "VSD": vsd_of(settings)}
    exact = density_of(Probe(probe.workshop, density).samples(_DENSITY)) if isinstance(teacher, MixtureField) else None
    sums = {name: points.new_zeros(2, *points.shape) for name in [*methods, *(["reverse KL"] if exact else [])]}
    for draw in range(draws // 2 * 2):
        states = States.of(probe.batch(1 + draw), points, settings.times)
        for name, method in methods.items():
            sums[name][draw % 2] -= per_row(states.s, points) * states.direction(method)
        if exact is not None:
            sums["reverse KL"][draw % 2] -= _exact_direction(exact, teacher, states)  # type: ignore[arg-type]
    return points, {name: total / (draws // 2) for name, total in sums.items()}


def _exact_direction(student: Field, teacher: Field, states: States) -> Tensor:
    # double: the difference of scores near s = 1 is one of large numbers
    pairs = zip(states.x.double().split(_AT_ONCE), states.s.double().split(_AT_ONCE), strict=True)
    return torch.cat([reverse_kl_direction(student, teacher, x, s) for x, s in pairs]).float()


def field_cosines(fields: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Mean cosine over samples of every two direction fields [2, B, D], and of each one's halves with each other.

    The halves differ by the noise of their draws alone: a cosine near 1 says that the field stands out from it. Two
    fields have the same noise, and so may agree better with each other than each with itself.
    """
    names = list(fields)
    rows = []
    for place, first in enumerate(names):
        rows.append({"fields": f"{first}, halves", **_cosine(*fields[first])})
        for second in names[place + 1 :]:
            rows.append({"fields": f"{first}, {second}", **_cosine(fields[first].mean(0), fields[second].mean(0))})
    return rows


def _cosine(first: Tensor, second: Tensor) -> dict[str, float]:
    cosines = cosine_similarity(first.double(), second.double())
    ratio = first.square().sum() / second.square().sum()
    negative = (cosines < 0).double().mean()
    return {"mean": cosines.mean().item(), "negative": negative.item(), "length": ratio.sqrt().item()}


def loss_and_norm(probe: Probe, method: Method, minibatches: int) -> dict[str, list[float]]:
    """Reported loss, mean 1/2 D^2, and norm of the student's gradient, for each minibatch."""
    pairs = [probe.gradient(method, index) for index in range(minibatches)]
    return {"loss": [loss for _, loss in pairs], "gradient norm": [gradient.norm().item() for gradient, _ in pairs]}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Quantiles, mean and standard deviation of numbers."""
    numbers = torch.tensor(values, dtype=torch.float64)
    quantiles = torch.quantile(numbers, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    spread = numbers.std().item() if len(numbers) > 1 else math.nan
    named = {f"{share:.0%}": value for share, value in zip(QUANTILES, quantiles, strict=True)}
    return {**named, "mean": numbers.mean().item(), "std": spread}


def flow_distance(probe: Probe, settings: MfdSettings, minibatches: int) -> tuple[float, float]:
    """E |U_phi - U_teacher|^2, summed over elements, at the student's X_s over sorted uniform [s, t]: mean and error.

    The noise and times of minibatches are fixed, so that moments and runs differ by their networks alone.
    """
    method, found = MeanFlowDistillation(settings), []
    for index in range(minibatches):
        found.append(probe.states(index, Times()).direction(method).flatten(1).double().square().sum(1))
    distances = torch.cat(found)
    return distances.mean().item(), (distances.std() / math.sqrt(len(distances))).item()


def spread_out(total: int, count: int) -> list[int]:
    """`count` updates up to the last, closer together at the beginning, where students move most."""
    return sorted({max(1, round(total * ((place + 1) / count) ** 2)) for place in range(count)})


def overrides(args: Any, seed: int, solver: str) -> list[str]:
    """The changes of the recipe that a run is made with."""
    return [*args.overrides, "method.type=mfd", f"method.solver={solver}", f"seed={seed}"]


def workshop_of(args: Any, seed: int, solver: str) -> Workshop:
    """Everything that a run needs, before its first step."""
    return build(load_recipe(args.recipe, overrides(args, seed, solver)), args.device)


def judge_for(args: Any, workshop: Workshop) -> Judge:
    """What all students are judged by, on the same noise and conditions."""
    return judge_of(workshop.data, args.num or workshop.recipe.evaluate.num or 10_000, 0)


def metrics(judge: Judge, workshop: Workshop, *, teacher: bool = False) -> dict[str, float]:
    """Every metric of a run's student as it is now, or of its teacher at its own steps."""
    sampler = workshop.samplers()[0 if teacher else 1]
    found = judge.judge(sampler, steps=None, batch_size=workshop.recipe.evaluate.batch_size)
    return {name: figure.value for name, figure in found.items()}


def watched(
    workshop: Workshop, updates: Collection[int], look: Callable[[Workshop], dict[str, Any]]
) -> tuple[list[dict[str, Any]], str | None]:
    """Trains and looks at each of the updates; also what was not finite, if that ended it early."""
    rows: list[dict[str, Any]] = []
    try:
        for update in stages(workshop.trainer(), sorted(updates)):
            console.note(f"looking at update {update}")
            rows.append({"update": update, **look(workshop)})
    except MfdError as problem:
        return rows, problem.found
    return rows, None


def trainings(
    args: Any,
    kinds: dict[str, tuple[str, bool]],
    updates: Collection[int],
    look: Callable[[Workshop], dict[str, Any]],
) -> list[dict[str, Any]]:
    """A training of each kind, a solver and whether the Jacobian is kept, with each seed, looked at on the way.

    Raises:
        MfdError: none of them reached the first look.
    """
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        for name, (solver, kept) in kinds.items():
            console.note(f"{name}, seed {seed}")
            workshop = workshop_of(args, seed, solver)
            if kept:
                workshop.method = KeptJacobian(workshop.recipe.method)
            looks, stopped = watched(workshop, updates, look)
            if stopped is not None:
                console.warn(f"{name}, seed {seed}, ended early: {stopped}")
            runs.append({"kind": name, "seed": seed, "looks": looks, "stopped": stopped})
    if not any(training["looks"] for training in runs):
        raise MfdError(f"no training reached update {min(updates)}: {runs[0]['stopped']}")
    return runs


def trained(workshop: Workshop, judge: Judge) -> dict[str, Any]:
    """A whole training: what it took, and its student's metrics unless a value was not finite."""
    trainer, began = workshop.trainer(), time.process_time()
    _, stopped = _attempt(lambda: trainer.run(lambda trainer, stopping: False))
    spent = time.process_time() - began
    found, unusable = (None, stopped) if stopped else _attempt(lambda: metrics(judge, workshop))
    progress = trainer.snapshot()
    return {
        "seconds": progress.seconds, "processor_seconds": spent, "evaluations": sum(progress.evaluations.values()),
        "metrics": found or {}, "stopped": unusable,
    }  # fmt: skip


def _attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """What the action returns, or what was found that ended it."""
    try:
        return action(), None
    except MfdError as problem:
        return None, problem.found


def outcome(training: dict[str, Any]) -> str:
    """What became of a training, in words."""
    looks = training["looks"]
    if training["stopped"] is not None:
        return f"diverged: {training['stopped']}"
    name = next(iter(looks[0]["metrics"]))
    before, after = looks[0]["metrics"][name], looks[-1]["metrics"][name]
    better = after > before if higher_is_better(name) else after < before
    return f"{'improved' if better else 'ended no better than it began'}: {name} from {before:.4g} to {after:.4g}"
