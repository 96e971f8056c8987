"""Distills one teacher with every method at an equal budget, over seeds, and compares the students.

    python benchmarks/compare_methods.py digits --budget 180 [--unit seconds|evaluations] [--methods mfd dmd2 ...]
                                         [--seeds 0 1 2] [--steps 1 2 4] [--num 10000] [--set key=value]...
                                         [--output DIR] [--costs PATH] [--json PATH] [--plot PATH] [--quick]

The budget is processor seconds of training, or network evaluations (forward passes, one per row). What an update of
each method costs is measured first (contestants.py), or read from --costs; a run's length follows from that, and all
seconds told are updates times that cost, so that other work on the machine does not favour anyone. A method whose
student is made for any number of steps is distilled once and judged at each; the others are distilled anew for each
number of steps, at the same budget. Every run is a `mfd distill` of its own process. Students are judged here, on the
same noise and conditions, at the end and at the checkpoints on the way; the noise of their gradients
(benchmarks/gradient_noise.py) is measured halfway.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contestants import ROUNDS, Contestant, Cost, contestants, costs_of, read_costs, require_known, tuned
from gradient_noise import gradient_noise
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from workbench import check_targets, deliver, machine, options, run

from mfd_cli import console
from mfd_cli.errors import MfdError
from mfd_cli.inference.quality import Judge, gap_recovered, judge_of
from mfd_cli.inference.sampler import load_data, load_student, load_teacher
from mfd_cli.methods.registry import methods
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.metrics.uncertainty import Measured
from mfd_cli.report.verdict import plural
from mfd_cli.store.checkpoint import verify
from mfd_cli.store.layout import RunFolder

_BATCH = 500
#: checkpoints on the way at which students are judged, and the share of the samples they are judged by
_POINTS, _SHARE = 6, 4
#: runs a command and tells its peak memory; a process begins with the peak of the one that starts it: this one is small
_WATCHED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
#: minibatches that the noise of a gradient is taken from
_MINIBATCHES = 32
#: shares of the gap whose cost is told
LEVELS = (0.5, 0.8, 0.9)


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        who: what is distilled with.
        seed: of the run.
        overrides: of the recipe.
        folder: the run's.
        cost: of an update.
    """

    who: Contestant
    seed: int
    overrides: tuple[str, ...]
    folder: Path
    cost: Cost


def distill(job: Job, recipe: str) -> float:
    """Runs `mfd distill`; returns the largest resident memory of its process in MB.

    Raises:
        MfdError: the command failed.
    """
    command = [sys.executable, "-m", "mfd_cli", "distill", recipe, "-o", str(job.folder)]
    command += [part for text in (*job.overrides, f"seed={job.seed}") for part in ("--set", text)]
    done = subprocess.run([sys.executable, "-c", _WATCHED, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MfdError(f"`{' '.join(command[2:])}` ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return float(done.stdout) / 1024


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Distills, judges, prints and writes; returns the report."""
    args = _arguments(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.output or Path(temporary)
        jobs = _plan(args, root)
        teacher = _teacher(args)
        report = _report(args, jobs, teacher)
        for number, job in enumerate(jobs, 1):
            console.note(f"[{number}/{len(jobs)}] {job.who.name}, {job.who.steps} steps, seed {job.seed}")
            memory = distill(job, args.recipe)
            report["rows"] += _judged(job, memory, args, teacher)
            if args.json != "-":
                console.emit_json(report, args.json)  # a comparison that is stopped leaves what it has
    _print(report)
    return deliver(report, args, lambda figure: draw(figure, report))


def _report(args: Any, jobs: Sequence[Job], teacher: dict[str, Any]) -> dict[str, Any]:
    """The report before the first run."""
    return {
        "schema": 2, "recipe": args.recipe, "budget": args.budget, "unit": args.unit, "overrides": args.overrides,
        "num": args.num, "seeds": args.seeds, **teacher["machine"],
        "costs": {str(job.who): vars(job.cost) for job in jobs},
        "tuning": {name: tuned(args.recipe, name) for name in args.methods},
        "teacher": {str(steps): _values(found) for steps, found in teacher["metrics"].items()},
        "teacher_steps": teacher["own"], "rows": [],
    }  # fmt: skip


def _plan(args: Any, root: Path) -> list[Job]:
    """Every run."""
    given = {who: who.overrides(args.recipe, args.overrides) for who in contestants(args.methods, args.steps)}
    stored = read_costs(args.costs)
    costs = costs_of({who: changes for who, changes in given.items() if str(who) not in stored}, args)
    jobs = []
    for who, changes in given.items():
        cost = stored.get(str(who)) or costs[who]
        updates = max(2, round(args.budget / (cost.seconds if args.unit == "seconds" else cost.evaluations)))
        if args.quick:
            updates = 2
        console.note(f"{who.name}, {who.steps} steps: {cost.seconds:.3g} s an update, {updates} updates")
        overrides = [
            *changes, f"train.updates={updates}", f"log.checkpoint_every={max(1, updates // _POINTS)}",
            f"log.keep={_POINTS + 2}", "log.preview_every=0", "evaluate.num=0",
        ]  # fmt: skip
        for seed in args.seeds:
            jobs.append(Job(who, seed, tuple(overrides), root / f"{who.name}-{who.steps}-seed{seed}", cost))
    return jobs


def _teacher(args: Any) -> dict[str, Any]:
    """The teacher's metrics at every number of steps that students are judged at, and at its own."""
    sampler = load_teacher(args.recipe)
    data = load_data(sampler.config, sampler.teacher)
    judge = judge_of(data, args.num, 0)
    counts = sorted({*args.steps, sampler.steps})
    console.note(f"judging the teacher at {', '.join(map(str, counts))} steps")
    metrics = {steps: judge.judge(sampler, steps=steps, batch_size=_BATCH) for steps in counts}
    return {
        "judge": judge, "rough_judge": judge_of(data, max(2, args.num // _SHARE), 1), "metrics": metrics,
        "own": sampler.steps, "machine": machine(sampler),
    }  # fmt: skip


def _judged(job: Job, memory: float, args: Any, teacher: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each number of steps that the student is judged at."""
    student, judge, run_folder = load_student(job.folder), teacher["judge"], RunFolder(job.folder)
    torch.set_num_threads(run_folder.read_record()["threads"])
    last = verify(_checkpoints(run_folder)[-1]).state["progress"]
    checkpoints = _checkpoints(run_folder)
    halfway, count = checkpoints[(len(checkpoints) - 1) // 2], 3 if args.quick else _MINIBATCHES
    noise = vars(gradient_noise(run_folder, halfway, count, args.device))
    rows = []
    for steps in args.steps if student.any_steps else [job.who.steps]:
        found = judge.judge(student, steps=steps, batch_size=_BATCH)
        rows.append(
            {"method": job.who.name, "steps": steps, "seed": job.seed, "metrics": _values(found),
             "standard_errors": {name: figure.standard_error for name, figure in found.items()},
             "gap_recovered": gap_recovered(teacher["metrics"][steps], found, teacher["metrics"][teacher["own"]]),
             "seconds": job.cost.seconds * _updates(last, job), "evaluations": sum(last["evaluations"].values()),
             "peak_memory_mb": memory, "gradient_noise": noise,
             "curve": _curve(run_folder, job, steps, teacher["rough_judge"]) if steps == job.who.steps else []}
        )  # fmt: skip
    return rows


def _updates(progress: Mapping[str, Any], job: Job) -> float:
    """Student updates done at a checkpoint's position."""
    return sum(progress["evaluations"].values()) / job.cost.evaluations


def _curve(run_folder: RunFolder, job: Job, steps: int, judge: Judge) -> list[dict[str, Any]]:
    """Metrics at the checkpoints on the way."""
    points = []
    for path in _checkpoints(run_folder):
        progress = verify(path).state["progress"]
        found = judge.judge(load_student(path), steps=steps, batch_size=_BATCH)
        points.append(
            {"seconds": job.cost.seconds * _updates(progress, job),
             "evaluations": sum(progress["evaluations"].values()), "metrics": _values(found)}
        )  # fmt: skip
    return points


def _checkpoints(run_folder: RunFolder) -> list[Path]:
    return sorted(path for path in run_folder.checkpoints.iterdir() if path.name.startswith("update-"))


def reached(report: dict[str, Any], row: dict[str, Any], name: str, level: float, unit: str) -> float | None:
    """Seconds or evaluations at the first checkpoint whose gap recovered is at least `level`; None if none is."""
    few, many = (report["teacher"][str(steps)][name] for steps in (row["steps"], report["teacher_steps"]))
    for point in row["curve"]:
        if few != many and (few - point["metrics"][name]) / (few - many) >= level:
            return point[unit]
    return None


def groups(report: dict[str, Any]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Rows of the same method and number of steps, one for each seed."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault((row["steps"], row["method"]), []).append(row)
    return dict(sorted(groups.items()))


def _values(found: dict[str, Measured]) -> dict[str, float]:
    return {name: figure.value for name, figure in found.items()}


def _arguments(arguments: Sequence[str] | None) -> Any:
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", default="digits", help="recipe file or name (default: digits)")
    parser.add_argument(
        "--methods", nargs="+", default=methods.names(), help="methods and variants (default: all methods)"
    )
    parser.add_argument("--budget", type=float, default=180.0, help="what each run may cost")
    parser.add_argument("--unit", choices=["seconds", "evaluations"], default="seconds", help="of the budget")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of distillation")
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="steps that students are judged at")
    parser.add_argument("--num", type=int, default=10_000, help="samples that each model is judged by")
    parser.add_argument("--costs", type=Path, help="JSON of contestants.py, whose costs of updates are taken")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="windows that a cost is measured in")
    parser.add_argument("--output", type=Path, help="keep the runs in this folder (left out: they are removed)")
    args = parser.parse_args(arguments)
    check_targets(args)
    require_known(args.recipe, args.methods)
    if args.quick:
        args.num, args.seeds, args.steps = min(args.num, 300), args.seeds[:1], args.steps[:2]
    return args


def _print(report: dict[str, Any]) -> None:
    names = list(report["rows"][0]["metrics"])
    title = (
        f"{report['recipe']}: {report['budget']:g} {report['unit']} each, {len(report['seeds'])} seeds, "
        f"{report['num']} samples; mean ± spread"
    )
    lines: list[list[object]] = [
        ["teacher", steps, None, None, None, None, *(f"{metrics[name]:.4g}" for name in names)]
        for steps, metrics in report["teacher"].items()
    ]
    lines += [
        [method, steps, *(_spread([row[key] for row in rows]) for key in ("seconds", "evaluations", "peak_memory_mb")),
         _spread([row["gradient_noise"]["value"] for row in rows]),
         *(_spread([row["metrics"][name] for row in rows]) for name in names)]
        for (steps, method), rows in groups(report).items()
    ]  # fmt: skip
    console.table(title, ["model", "steps", "seconds", "evaluations", "peak MB", "NSR", *names], lines)
    gaps: list[list[object]] = [
        [method, steps, *(_spread([row["gap_recovered"][name] for row in rows]) for name in names)]
        for (steps, method), rows in groups(report).items()
    ]
    console.table(f"gap recovered, teacher of {report['teacher_steps']} steps", ["method", "steps", *names], gaps)
    main_metric = names[0]
    for unit in ("seconds", "evaluations"):
        found: list[list[object]] = [
            [method, steps,
             *(_first([reached(report, row, main_metric, level, unit) for row in rows]) for level in LEVELS)]
            for (steps, method), rows in groups(report).items()
            if rows[0]["curve"]
        ]  # fmt: skip
        heads = [f"{level:.0%} of the gap" for level in LEVELS]
        console.table(f"{unit} to a given {main_metric}, by checkpoints", ["method", "steps", *heads], found)


def _spread(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = statistics.mean(known)
    return f"{mean:.4g}" if len(known) < 2 else f"{mean:.4g} ± {statistics.stdev(known):.2g}"


def _first(values: Sequence[float | None]) -> str:
    """Mean over seeds; says where some never got there."""
    known = [value for value in values if value is not None]
    if not known:
        return "not reached"
    return f"{statistics.mean(known):.3g}" + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def draw(figure: Figure, report: dict[str, Any]) -> None:
    """A line for each number of steps: metrics by method, and the first of them on the way."""
    names, found = list(report["rows"][0]["metrics"])[:3], groups(report)
    counts = sorted({steps for steps, _ in found})
    colours = {method: f"C{number}" for number, method in enumerate(dict.fromkeys(method for _, method in found))}
    figure.set_size_inches(4 * (len(names) + 1), 3.8 * len(counts))
    lines = figure.subplots(len(counts), len(names) + 1, squeeze=False)
    for steps, (*panels, course) in zip(counts, lines, strict=True):
        of_steps = {method: rows for (count, method), rows in found.items() if count == steps}
        for panel, name in zip(panels, names, strict=True):
            _draw_metric(panel, report, of_steps, name, steps)
        panels[0].legend(fontsize=7)
        _draw_course(course, of_steps, names[0], report["unit"], colours)


def _draw_metric(
    panel: Any, report: dict[str, Any], found: dict[str, list[dict[str, Any]]], name: str, steps: int
) -> None:
    """Bars of means, a dot for every seed."""
    many, values = report["teacher_steps"], [[row["metrics"][name] for row in rows] for rows in found.values()]
    panel.bar(list(found), list(map(statistics.mean, values)), color="0.8")
    for place, each in enumerate(values):
        panel.plot([place] * len(each), each, "k.", markersize=4)
    panel.axhline(report["teacher"][str(many)][name], color="C0", linewidth=1, label=f"teacher, {many} steps")
    panel.set_ylim(top=1.12 * panel.get_ylim()[1])  # room for the legend
    better = "more" if higher_is_better(name) else "less"
    panel.set_title(f"{plural(steps, 'step')}: {name} ({better} is better)", fontsize=9)
    panel.tick_params(axis="x", rotation=90, labelsize=7)


def _draw_course(
    panel: Any, found: dict[str, list[dict[str, Any]]], name: str, unit: str, colours: Mapping[str, str]
) -> None:
    """A metric over the training of students that were judged on the way: means over seeds, and all that they span."""
    judged = {method: rows for method, rows in found.items() if all(row["curve"] for row in rows)}
    if not judged:
        panel.set_axis_off()
        return
    for method, rows in judged.items():
        points = list(zip(*(row["curve"] for row in rows), strict=False))  # by checkpoint, then by seed
        spent = [statistics.mean(point[unit] for point in each) for each in points]
        values, colour = [[point["metrics"][name] for point in each] for each in points], colours[method]
        panel.plot(spent, list(map(statistics.mean, values)), color=colour, linewidth=1.2, label=method)
        panel.fill_between(spent, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15)
    if not higher_is_better(name):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    panel.set_xlabel(f"{unit} of training", fontsize=8)
    panel.set_title(f"{name} on the way", fontsize=9)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


if __name__ == "__main__":
    run(main)
