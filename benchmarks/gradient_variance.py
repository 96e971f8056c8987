"""Is the student's gradient quieter under MFD than under VSD? Same student, auxiliary and noise for both.

    python benchmarks/gradient_variance.py [--recipe toy] [--updates 25 300] [--minibatches 200] [--json PATH]
                                           [--plot PATH] [--quick]

A recipe is trained up to each of `--updates`; there student and auxiliary are frozen. The auxiliary is looked at twice:
retrained to convergence on the frozen student, and lagging, as training left it before a student update. Then

1. student gradients g_i of M minibatches of 64, by every estimator from the same z, X_0, s (and t):
       tr Cov = sum_i |g_i - mean|^2 / (M - 1)        |mean|^2 = |sum_i g_i / M|^2 - tr Cov / M  (unbiased)
       NSR = tr Cov / |mean|^2, free of scale          cosine of the mean with a finely integrated MFD gradient's mean
   at equal batch, and for VSD also at a batch with MFD's number of network evaluations;
2. the same with an error added to the auxiliary: independent noise at every evaluation, or an oscillation in time;
3. per generated sample, without the network's Jacobian: variance over (X_0, s, t) of the direction s D.

Errors are jackknife standard errors over minibatches (1, 2) or standard errors over samples (3). VSD is given with
uniform times, as it is usually run, and with MFD's own times (the smaller of two uniform ones): only the latter
compares an average over [s, t] with its value at s.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jackknife import statistics
from matplotlib.figure import Figure
from torch import Tensor, nn
from workbench import check_targets, deliver, machine, options, run, trainer_of

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.flow import interpolate, per_row
from mfd_cli.methods.base import Batch, Method
from mfd_cli.methods.diff_instruct import DiffInstruct, DiffInstructSettings, StartTimes
from mfd_cli.methods.matching import flow_matching_loss
from mfd_cli.methods.mfd import MeanFlowDistillation, MfdSettings, Solver
from mfd_cli.methods.times import intervals
from mfd_cli.networks.roles import build_optimizer, learning_rate
from mfd_cli.seeds import Stream
from mfd_cli.training.batches import Batches
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop
from teachers import conditions
from teachers.guidance import Evaluations, VelocityField

BATCH = 64
DEVIATION, AMPLITUDE, FREQUENCY = 2.0, 2.0, 20.0

#: seeds of the measurements' own noise, apart from the run's
_RETRAINING, _GRADIENTS, _SAMPLES, _NOISE = 1001, 1002, 1003, 1004

#: a student's forward and backward pass, in forward passes
_FORWARD_BACKWARD = 3


class Disturbed:
    """A velocity field with an error: Gaussian noise at every evaluation, or an oscillation in time, in every element.

    Args:
        field: the true field.
        kind: "noise" (independent, standard deviation 2) or "oscillation" (2 sin(2 pi 20 t)).
        generator: source of the noise.
    """

    def __init__(self, field: VelocityField, kind: str, generator: torch.Generator) -> None:
        self._field, self._kind, self._generator = field, kind, generator

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The field plus its error."""
        velocity = self._field(x, t)
        if self._kind == "noise":
            noise = torch.randn(velocity.shape, generator=self._generator)
            return velocity + DEVIATION * noise.to(velocity.device)
        return velocity + per_row(AMPLITUDE * torch.sin(2 * math.pi * FREQUENCY * t), velocity)

    def rows(self, index: Tensor | slice) -> Disturbed:
        """The same field for some of the rows."""
        return Disturbed(self._field.rows(index), self._kind, self._generator)


@dataclass(frozen=True)
class Scene:
    """A frozen moment of a run: student and auxiliary as they were, and an error of the auxiliary if there is one."""

    workshop: Workshop
    student: nn.Module
    auxiliary: nn.Module
    disturbance: str | None = None

    def batch(self, seed: int, index: int, rows: int, repeats: int = 1) -> tuple[Batch, Evaluations]:
        """What a method's losses need, and a counter of the auxiliary's and teacher's evaluations.

        With `repeats`, every row's condition stands for that many consecutive rows of the stream.
        """
        workshop, count = self.workshop, Evaluations()
        teacher, device = workshop.teacher, workshop.accelerator.device
        batches = Batches(workshop.data, seed, rows, 1, 0, 1, device)
        random, condition = batches.stream(index, 0), batches.condition(index, 0)
        if repeats > 1:
            random = Stream(seed, index, 0, rows * repeats, device)
            condition = conditions.rows(condition, torch.arange(rows, device=device).repeat_interleave(repeats))
        auxiliary: Any = VelocityField(teacher, self.auxiliary, condition, evaluations=count)
        if self.disturbance is not None:
            generator = torch.Generator().manual_seed(_NOISE + index)
            auxiliary = Disturbed(auxiliary, self.disturbance, generator)
        assert teacher.network is not None
        guided = VelocityField(teacher, teacher.network, condition, teacher.settings.guidance, count)
        student = VelocityField(teacher, self.student, condition)
        return Batch(random, teacher.sample_shape, torch.tensor([0.0, 1.0]), student, auxiliary, guided), count


@dataclass(frozen=True)
class Estimator:
    """A student gradient: a method at a multiple of the usual batch."""

    name: str
    method: Method
    larger: int = 1

    def gradient(self, scene: Scene, index: int) -> tuple[Tensor, int]:
        """Flat gradient of one minibatch, and its auxiliary and teacher evaluations."""
        batch, count = scene.batch(_GRADIENTS, index, BATCH * self.larger)
        parameters = [value for value in scene.student.parameters() if value.requires_grad]
        parts = torch.autograd.grad(self.method.student_loss(batch).value, parameters)
        return torch.cat([part.flatten() for part in parts]), count.rows


def vsd(times: str) -> Method:
    """VSD with uniform times ("uniform") or MFD's starts ("sorted-pair")."""
    return DiffInstruct(DiffInstructSettings(type="diff-instruct", times=StartTimes(type=times)))  # type: ignore[arg-type]


def mfd(**solver: Any) -> Method:
    """MFD with sorted uniform times."""
    return MeanFlowDistillation(MfdSettings(type="mfd", solver=Solver(**solver)))


def estimators(quick: bool) -> list[Estimator]:
    """What is compared; a VSD batch x8 has the auxiliary and teacher evaluations of MFD with n = 8, x4 about all."""
    few = [
        Estimator("VSD, s uniform", vsd("uniform")),
        Estimator("VSD, s as MFD", vsd("sorted-pair")),
        Estimator("MFD n=2", mfd(steps=2)),
        Estimator("MFD n=8", mfd(steps=8)),
    ]
    return few if quick else [
        *few,
        Estimator("MFD h=0.02", mfd(step_size=0.02)),
        Estimator("VSD, s uniform, batch x8", vsd("uniform"), 8),
        Estimator("VSD, s as MFD, batch x4", vsd("sorted-pair"), 4),
        Estimator("VSD, s as MFD, batch x8", vsd("sorted-pair"), 8),
    ]  # fmt: skip


def stages(trainer: Trainer, updates: Sequence[int]) -> Iterator[int]:
    """Trains to each of the updates, and on to the border before the next student update."""
    for wanted in sorted(updates):
        while trainer.update < wanted or trainer.inside < trainer.schedule.cycle - 1:
            trainer.step()
        yield wanted


def retrained(scene: Scene, updates: int) -> tuple[Scene, dict[str, float]]:
    """The scene with an auxiliary trained on its student, and its loss on one large batch, before and after.

    Both losses hold the same irreducible part, the variance of X_1 - X_0 given X_t.
    """
    recipe, network = scene.workshop.recipe, copy.deepcopy(scene.auxiliary)
    settings = recipe.optim.aux.model_copy(update={"schedule": "cosine", "final": 0.01, "warmup": 0})
    optimizer, found = build_optimizer(network, settings), replace(scene, auxiliary=network)

    @torch.no_grad()
    def loss() -> float:
        return flow_matching_loss(found.batch(_RETRAINING, updates, 16 * BATCH)[0]).value.item()

    before = loss()
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = learning_rate(settings, update, updates)
        flow_matching_loss(found.batch(_RETRAINING, update, recipe.train.batch_size)[0]).value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return found, {"before": before, "after": loss()}


def gradient_table(
    scene: Scene, compared: Sequence[Estimator], minibatches: int, reference: Tensor
) -> list[dict[str, Any]]:
    """One row per estimator, with the ratio of its tr Cov and NSR to VSD's at MFD's times."""
    found, rows = {}, []
    for estimator in compared:
        gradients, evaluations = _gradients(scene, estimator, minibatches)
        found[estimator.name] = statistics(gradients, reference)
        generated = BATCH * estimator.larger
        rows.append(
            {
                "estimator": estimator.name,
                "batch": generated,
                "evaluations": evaluations,
                "evaluations_with_student": evaluations + _FORWARD_BACKWARD * generated,
            }
        )
    base = found["VSD, s as MFD"]
    for row in rows:
        mine = found[row["estimator"]]
        shown = mine | {"tr_cov_ratio": mine["tr_cov"] / base["tr_cov"], "nsr_ratio": mine["nsr"] / base["nsr"]}
        row |= {name: {"value": figure.value, "error": figure.error} for name, figure in shown.items()}
    return rows


def _gradients(scene: Scene, estimator: Estimator, minibatches: int) -> tuple[Tensor, float]:
    """Gradients [M, P] and the mean number of auxiliary and teacher evaluations of one."""
    pairs = [estimator.gradient(scene, index) for index in range(minibatches)]
    return torch.stack([gradient for gradient, _ in pairs]), sum(rows for _, rows in pairs) / minibatches


@torch.no_grad()
def direction_variance(scene: Scene, method: Method, samples: int, draws: int) -> tuple[float, float]:
    """Variance of s D over (X_0, s, t) at a fixed generated sample, summed over elements: mean over samples, error."""
    latent, _ = scene.batch(_SAMPLES, 0, samples)
    batch, _ = scene.batch(_SAMPLES, 0, samples, repeats=draws)
    data = latent.generate().repeat_interleave(draws, dim=0)
    if isinstance(method, MeanFlowDistillation):
        s, t = intervals(batch.random, method.settings.times)
        x_s = interpolate(batch.random.normal("x0", batch.shape), data, s)
        direction = method.direction(batch, x_s, s, t)
    else:
        assert isinstance(method, DiffInstruct)
        s = method.start_times(batch)
        direction = method.direction(batch, interpolate(batch.random.normal("x0", batch.shape), data, s), s)
    moved = (per_row(s, direction) * direction).flatten(1).reshape(samples, draws, -1)
    spread = moved.double().var(dim=1).sum(dim=1)
    return spread.mean().item(), (spread.std() / math.sqrt(samples)).item()


def direction_table(scene: Scene, compared: Sequence[Estimator], samples: int, draws: int) -> list[dict[str, Any]]:
    """Variance of the update direction by estimator, for the clean auxiliary and both errors."""
    rows = []
    for estimator in compared:
        row: dict[str, Any] = {"estimator": estimator.name}
        for kind in ("clean", "noise", "oscillation"):
            disturbed = replace(scene, disturbance=None if kind == "clean" else kind)
            value, error = direction_variance(disturbed, estimator.method, samples, draws)
            row[kind] = {"value": value, "error": error}
        rows.append(row)
    return rows


def measure(scene: Scene, args: Any, lagging: bool) -> dict[str, Any]:
    """Every table of one scene; the errors are added to a converged auxiliary only."""
    compared = estimators(args.quick)
    reference, _ = _gradients(scene, Estimator("", mfd(type="midpoint", steps=args.fine)), args.minibatches)
    kinds = (None,) if lagging else (None, "noise", "oscillation")
    found: dict[str, Any] = {
        "gradients": {
            kind or "clean": gradient_table(replace(scene, disturbance=kind), compared, args.minibatches, reference)
            for kind in kinds
        }
    }
    if not lagging:
        plain = [estimator for estimator in compared if estimator.larger == 1]
        found["directions"] = direction_table(scene, plain, args.samples, args.draws)
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    args = _arguments(arguments)
    workshop, trainer = trainer_of(load_recipe(args.recipe, args.overrides), args.device)
    report: dict[str, Any] = {
        "schema": 1, "recipe": args.recipe, **machine(workshop.samplers()[1]), "batch": BATCH,
        "minibatches": args.minibatches, "samples": args.samples, "draws": args.draws, "stages": [],
    }  # fmt: skip
    for update in stages(trainer, args.updates):
        student, auxiliary = (
            copy.deepcopy(role.network) for role in (workshop.roles.student, workshop.roles.auxiliary)
        )
        lagging = Scene(workshop, student, auxiliary)
        converged, losses = retrained(lagging, args.retrain)
        stage = {
            "updates": update, "auxiliary_loss": losses, "converged": measure(converged, args, lagging=False),
            "lagging": measure(lagging, args, lagging=True),
        }  # fmt: skip
        _print(stage)
        report["stages"].append(stage)
    return deliver(report, args, lambda figure: _draw(figure, report))


def _arguments(arguments: Sequence[str] | None) -> Any:
    parser = options(__doc__)
    parser.add_argument("--recipe", default="toy", help="recipe file or name (default: toy)")
    parser.add_argument("--updates", type=int, nargs="+", default=[25, 300], help="student updates to freeze at")
    parser.add_argument("--retrain", type=int, default=1500, help="updates that bring the auxiliary to convergence")
    parser.add_argument("--minibatches", type=int, default=200, help="M")
    parser.add_argument("--samples", type=int, default=512, help="generated samples whose direction is followed")
    parser.add_argument("--draws", type=int, default=32, help="draws of (X_0, s, t) for each of them")
    parser.add_argument("--fine", type=int, default=8, help="midpoint steps of the reference gradient")
    args = parser.parse_args(arguments)
    check_targets(args)
    if args.quick:
        args.updates, args.retrain, args.minibatches, args.samples, args.draws, args.fine = [1], 3, 3, 8, 4, 1
    return args


def _print(stage: dict[str, Any]) -> None:
    losses = stage["auxiliary_loss"]
    console.out.print(
        f"\nafter {stage['updates']} student updates; retraining the auxiliary took its loss "
        f"from {losses['before']:.4f} to {losses['after']:.4f}"
    )
    for state in ("converged", "lagging"):
        for kind, rows in stage[state]["gradients"].items():
            _print_gradients(f"gradients, {state} auxiliary, {_NAMES[kind]}", rows)
    console.table(
        "variance of the direction s D for one generated sample, converged auxiliary",
        ["estimator", *_NAMES.values()],
        [
            [row["estimator"], *(_shown(row[kind]) for kind in _NAMES)]
            for row in stage["converged"]["directions"]
        ],
    )  # fmt: skip
    for line in findings(stage):
        console.out.print(f"- {line}")


def _print_gradients(title: str, rows: Sequence[dict[str, Any]]) -> None:
    console.table(
        title,
        ["estimator", "evaluations (+ student)", "tr Cov", "ratio", "NSR", "ratio", "|mean|^2", "cosine"],
        [
            [
                row["estimator"], f"{row['evaluations']:.0f} ({row['evaluations_with_student']:.0f})",
                *(_shown(row[name]) for name in ("tr_cov", "tr_cov_ratio", "nsr", "nsr_ratio", "signal", "cosine")),
            ]
            for row in rows
        ],
    )  # fmt: skip


def findings(stage: dict[str, Any]) -> list[str]:
    """What the figures say of MFD n=8 against VSD, in words chosen by the figures."""
    lines = []
    for state in ("converged", "lagging"):
        for kind, rows in stage[state]["gradients"].items():
            named = {row["estimator"]: row for row in rows}
            ratio = named["MFD n=8"]["nsr_ratio"]
            line = (
                f"{state} auxiliary, {_NAMES[kind]}: NSR of MFD n=8 is {_shown(ratio)} times that of VSD at the same "
                f"times and batch ({_verdict(ratio['value'], ratio['error'])})"
            )
            if (larger := named.get("VSD, s as MFD, batch x8")) is not None:
                line += f"; VSD's with MFD's evaluations spent on a larger batch, {_shown(larger['nsr_ratio'])} times"
            lines.append(line)
    by_name = {row["estimator"]: row for row in stage["converged"]["directions"]}
    vsd_row, mfd_row = by_name["VSD, s as MFD"], by_name["MFD n=8"]
    for kind in ("noise", "oscillation"):
        first, second = (row[kind]["value"] - row["clean"]["value"] for row in (vsd_row, mfd_row))
        lines.append(
            f"{_NAMES[kind]} adds {first:.3f} to the direction's variance under VSD and {second:.3f} under MFD n=8; "
            f"the mean of eight VSD draws, which costs the same, has {vsd_row[kind]['value'] / 8:.3f} in all, "
            f"MFD n=8 {mfd_row[kind]['value']:.3f}"
        )
    return lines


_NAMES = {
    "clean": "no added error",
    "noise": f"noise of sd {DEVIATION:g}",
    "oscillation": f"{AMPLITUDE:g} sin(2 pi {FREQUENCY:g} t)",
}


def _verdict(ratio: float, error: float) -> str:
    if not abs(ratio - 1) > 2 * error:
        return "no difference beyond two standard errors"
    return "MFD is quieter" if ratio < 1 else "VSD is quieter"


def _shown(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3g} ± {figure['error']:.1g}"


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    figure.set_size_inches(4.6 * len(report["stages"]) + 1, 3.6)
    panels = figure.subplots(1, len(report["stages"]), squeeze=False, sharey=True)[0]
    for panel, stage in zip(panels, report["stages"], strict=True):
        rows = stage["converged"]["directions"]
        width = 0.8 / len(rows)
        for index, row in enumerate(rows):
            at = [position + (index - (len(rows) - 1) / 2) * width for position in range(len(_NAMES))]
            heights, errors = ([row[kind][part] for kind in _NAMES] for part in ("value", "error"))
            panel.bar(at, heights, width, yerr=errors, capsize=2, label=row["estimator"])
        panel.set_xticks(range(len(_NAMES)), list(_NAMES.values()), fontsize=8)
        panel.set_title(f"after {stage['updates']} updates", fontsize=10)
    panels[0].set_ylabel("variance of s D per generated sample")
    panels[0].legend(fontsize=7)


if __name__ == "__main__":
    run(main)
