"""What the training loop costs beyond the network evaluations it contains.

    python benchmarks/loop_overhead.py [digits] [--rounds 20] [--clock wall|cpu] [--set key=value]... [--json PATH]
                                       [--plot PATH] [--quick]

Every step of a number of cycles (`aux_updates` auxiliary updates and one student update) is timed, and right next to it
the network evaluations that this very step contains, replayed alone: the same calls with the same rows, in the same
order; forward where the loop computes without gradient, forward and backward of the output's sum where it learns. Step
and replay take turns at being first, so that a drifting clock favours neither.

    ratio = time of the step / time of its evaluations            limit: 1.10

The optimizer's own step is no network evaluation: it is part of the step's time and not of the evaluations'. The ratio
without it is given beside. `--clock cpu` reads the process's CPU time instead of the wall's, for a machine that is
shared; with several threads it adds up theirs. A student of several steps back-propagates through a chain of
evaluations; the replay runs each link's forward and backward by itself.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from workbench import check_targets, deliver, machine, options, run, trainer_of

import mfd_cli.methods.base
import mfd_cli.methods.mfd
import mfd_cli.training.trainer
from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.seeds import Stream
from mfd_cli.training.batches import Batches
from mfd_cli.training.trainer import Trainer
from teachers.base import Teacher
from teachers.conditions import Condition
from teachers.guidance import VelocityField

LIMIT = 1.10
KINDS = ("auxiliary", "student")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Clock = Callable[[], float]


@dataclass(frozen=True)
class Call:
    """One network evaluation of a step: its network, its inputs and whether it learns."""

    network: nn.Module
    x: Tensor
    t: Tensor
    condition: Condition
    learns: bool


@dataclass
class Timed:
    """Seconds of one step, of its optimizer's step, and of its evaluations alone."""

    kind: str
    step: float = 0.0
    optimizer: float = 0.0
    evaluations: float = 0.0


@dataclass
class Stopwatch:
    """Exclusive time by name: what a timed function spends in other timed functions is theirs."""

    clock: Clock
    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def around(self, places: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Times functions, given as (object, attribute, name), while the block runs."""
        before = [(owner, attribute, owner.__dict__.get(attribute)) for owner, attribute, _ in places]
        try:
            for owner, attribute, name in places:
                setattr(owner, attribute, self._timed(getattr(owner, attribute), name))
            yield
        finally:
            for owner, attribute, original in before:
                if original is None:
                    delattr(owner, attribute)
                else:
                    setattr(owner, attribute, original)

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.clock()
            self._open.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = self.clock() - began
                inner = self._open.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + spent - inner
                if self._open:
                    self._open[-1] += spent

        return timed


def kind_of(trainer: Trainer) -> str:
    """Which network the next step updates."""
    return KINDS[trainer.is_student]


def recorded(trainer: Trainer, steps: int) -> list[list[Call]]:
    """Runs steps and returns the network evaluations each of them contained.

    Raises:
        RuntimeError: the recorded rows are not those that the loop itself counts.
    """
    teacher, found, calls = trainer.teacher, [], []
    velocity = teacher.velocity

    def record(network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        calls.append(Call(network, x.detach().clone(), t.clone(), dict(condition), torch.is_grad_enabled()))
        return velocity(network, x, t, condition)

    before = sum(trainer.snapshot().evaluations.values())
    teacher.velocity = record  # type: ignore[method-assign]
    try:
        for _ in range(steps):
            trainer.step()
            found.append(list(calls))
            calls.clear()
    finally:
        del teacher.velocity  # type: ignore[method-assign]
    rows = sum(len(call.x) for step in found for call in step)
    counted = sum(trainer.snapshot().evaluations.values()) - before
    if rows != counted:
        raise RuntimeError(f"recorded {rows} rows of evaluations, but the loop counted {counted}")
    return found


def replay(teacher: Teacher, calls: Sequence[Call]) -> None:
    """The evaluations of a step and nothing else."""
    for call in calls:
        with torch.set_grad_enabled(call.learns):
            velocity = teacher.velocity(call.network, call.x, call.t, call.condition)
            if call.learns:
                velocity.sum().backward()


def compare(trainer: Trainer, plan: Sequence[Sequence[Call]], clock: Clock = time.perf_counter) -> list[Timed]:
    """Every step of the plan and its evaluations, timed next to each other."""
    measured = _waiting(clock, trainer.accelerator.device)
    found = []
    for index, calls in enumerate(plan):
        timed = Timed(kind_of(trainer))
        role = trainer.roles.student if timed.kind == "student" else trainer.roles.auxiliary

        def evaluate(calls: Sequence[Call] = calls, timed: Timed = timed, role: Any = role) -> None:
            timed.evaluations = measured(lambda: replay(trainer.teacher, calls))
            role.optimizer.zero_grad(set_to_none=True)

        # cycles have an odd number of steps as often as not, so the order changes by cycle too
        first = (index + index // trainer.schedule.cycle) % 2 == 0
        if first:
            evaluate()
        watch = Stopwatch(clock)
        with watch.around([(role.optimizer, "step", "optimizer")]):
            timed.step = measured(trainer.step)
        timed.optimizer = watch.seconds["optimizer"]
        if not first:
            evaluate()
        found.append(timed)
    return found


def breakdown(trainer: Trainer, steps: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Milliseconds per cycle by what they were spent on, from further steps with a timer in every function."""
    watch, roles, average = Stopwatch(clock), trainer.roles, trainer.roles.average
    places = [
        (trainer.teacher, "velocity", "network, forward"),
        (trainer.accelerator, "backward", "network and loss, backward"),
        (Stream, "normal", "noise"),
        (Stream, "uniform", "noise"),
        (Batches, "condition", "items and conditions"),
        (VelocityField, "__call__", "guidance and counting"),
        (VelocityField, "rows", "guidance and counting"),
        (mfd_cli.methods.mfd, "integrate", "solver arithmetic"),
        (mfd_cli.methods.base, "integrate_grid", "solver arithmetic"),
        (trainer.method, "student_loss", "path and loss arithmetic"),
        (trainer.method, "auxiliary_loss", "path and loss arithmetic"),
        (mfd_cli.training.trainer, "_clip", "gradient norm and clipping"),
        (trainer, "_check", "finite check"),
        (roles.student.optimizer, "step", "optimizer step"),
        (roles.auxiliary.optimizer, "step", "optimizer step"),
        (trainer, "_note", "noting metrics"),
        (trainer, "step", "rest of the step"),
        *([(average, "update", "average of the weights")] if average is not None else []),
    ]
    with watch.around(places):
        for _ in range(steps):
            trainer.step()
    cycles = steps / trainer.schedule.cycle
    ordered = sorted(watch.seconds.items(), key=lambda item: -item[1])
    return {name: 1000 * seconds / cycles for name, seconds in ordered}


def ratios(timed: Sequence[Timed], cycle: int) -> dict[str, dict[str, float]]:
    """Ratios of auxiliary steps, student steps and whole cycles: medians with 10th and 90th percentiles."""
    rounds = [timed[start : start + cycle] for start in range(0, len(timed), cycle)]
    groups = {kind: [[one] for one in timed if one.kind == kind] for kind in KINDS} | {"whole cycle": rounds}
    return {name: _summary(group) for name, group in groups.items()}


def _summary(rounds: Sequence[Sequence[Timed]]) -> dict[str, float]:
    step = [sum(one.step for one in group) for group in rounds]
    optimizer = [sum(one.optimizer for one in group) for group in rounds]
    evaluations = [sum(one.evaluations for one in group) for group in rounds]
    ratio = torch.tensor([a / b for a, b in zip(step, evaluations, strict=True)], dtype=torch.float64)
    p10, median, p90 = ratio.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    without = [(a - o) / b for a, o, b in zip(step, optimizer, evaluations, strict=True)]
    return {
        "step_ms": 1000 * statistics.median(step),
        "optimizer_ms": 1000 * statistics.median(optimizer),
        "evaluations_ms": 1000 * statistics.median(evaluations),
        "ratio": median,
        "ratio_p10": p10,
        "ratio_p90": p90,
        "ratio_without_optimizer": statistics.median(without),
        "rounds": len(rounds),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", default="digits", help="recipe file or name (default: digits)")
    parser.add_argument("--rounds", type=int, default=20, help="cycles timed (default: 20)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall or CPU time (default: wall)")
    args = parser.parse_args(arguments)
    check_targets(args)
    workshop, trainer = trainer_of(load_recipe(args.recipe, args.overrides), args.device)
    where = machine(workshop.samplers()[1])
    steps = (2 if args.quick else args.rounds) * trainer.schedule.cycle
    plan = recorded(trainer, steps)
    # noise and times are functions of the step's number, so going back repeats the recorded calls
    trainer.progress.step -= steps
    found = ratios(compare(trainer, plan, CLOCKS[args.clock]), trainer.schedule.cycle)
    parts = breakdown(trainer, steps, CLOCKS[args.clock])
    per_cycle = sum(len(call.x) for step in plan for call in step) * trainer.schedule.cycle / steps
    report = {
        "schema": 1, "recipe": args.recipe, **where, "clock": args.clock,
        "batch_size": workshop.recipe.train.batch_size,
        "aux_updates": trainer.schedule.cycle - 1, "rows_per_cycle": per_cycle, "limit": LIMIT, "ratios": found,
        "breakdown_ms_per_cycle": parts,
    }  # fmt: skip
    _print(report)
    return deliver(report, args, lambda figure: _draw(figure, report))


def _print(report: dict[str, Any]) -> None:
    console.table(
        f"{report['recipe']}: batch {report['batch_size']}, {report['aux_updates']} auxiliary updates a cycle, "
        f"{report['rows_per_cycle']:,.0f} forward passes a cycle",
        ["what", "step ms", "evaluations ms", "optimizer ms", "ratio (p10 - p90)", "without optimizer", "rounds"],
        [
            [
                name, row["step_ms"], row["evaluations_ms"], row["optimizer_ms"],
                f"{row['ratio']:.3f} ({row['ratio_p10']:.3f} - {row['ratio_p90']:.3f})",
                f"{row['ratio_without_optimizer']:.3f}", row["rounds"],
            ]
            for name, row in report["ratios"].items()
        ],
    )  # fmt: skip
    parts = report["breakdown_ms_per_cycle"]
    whole = sum(parts.values())
    console.table(
        "where a cycle's time goes (timers included)",
        ["what", "ms per cycle", "share"],
        [[name, milliseconds, f"{milliseconds / whole:.1%}"] for name, milliseconds in parts.items()],
    )
    ratio = report["ratios"]["whole cycle"]["ratio"]
    verdict = "within" if ratio <= LIMIT else "ABOVE"
    console.out.print(f"whole cycle: {ratio:.3f} times its network evaluations, {verdict} the limit of {LIMIT:.2f}")


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    figure.set_size_inches(9, 3.5)
    left, right = figure.subplots(1, 2)
    names = list(report["ratios"])
    rows = [report["ratios"][name] for name in names]
    spread = [[r["ratio"] - r["ratio_p10"] for r in rows], [r["ratio_p90"] - r["ratio"] for r in rows]]
    left.bar(names, [row["ratio"] for row in rows], yerr=spread, capsize=4)
    left.axhline(LIMIT, color="black", linestyle="--", linewidth=1)
    left.set_ylabel("step / its evaluations")
    parts = dict(reversed(report["breakdown_ms_per_cycle"].items()))
    right.barh(list(parts), list(parts.values()))
    right.set_xlabel("ms per cycle")
    right.tick_params(axis="y", labelsize=7)


def _waiting(clock: Clock, device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """What times a function, waiting for the device before each reading of the clock."""
    wait = (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))

    def seconds(function: Callable[[], Any]) -> float:
        wait()
        began = clock()
        function()
        wait()
        return clock() - began

    return seconds


if __name__ == "__main__":
    run(main)
