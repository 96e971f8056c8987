"""Distills a recipe once per seed and judges every student against the teacher.

    python benchmarks/seeds.py digits [--seeds 0 1 2] [--set key=value]... [--steps 1 10 50] [--num 10000]
                               [--output DIR] [--json PATH] [--plot PATH] [--quick]

Each run is a `mfd distill` of its own process, so that its wall time is a user's: from the command to the finished
student on disk (imports, loading, training, previews, checkpoints), and to the command's end (closing check included).
Teacher and students are judged here, on the same noise and conditions. The teacher does not depend on the seed of
distillation and is judged once. Spread is the standard deviation over seeds (divisor N - 1).

The floor is what real data score against real data: random halves, ten splits. A half is smaller than what models are
judged on, which makes the floor of a Fréchet distance larger than a perfect sampler's value.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from workbench import check_targets, deliver, machine, options, run

from mfd_cli import console
from mfd_cli.errors import MfdError
from mfd_cli.inference.quality import Judge, gap_recovered, judge_of
from mfd_cli.inference.sampler import load_data, load_student, load_teacher
from mfd_cli.metrics.frechet import frechet_distance
from mfd_cli.metrics.sliced import sliced_wasserstein
from mfd_cli.metrics.uncertainty import Measured
from mfd_cli.seeds import order
from mfd_cli.store.layout import RunFolder
from teachers.base import Data

SPLITS = 10
_BATCH = 500
QUICK = ["train.updates=2", "evaluate.num=0"]


def distilled(recipe: str, seed: int, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Runs `mfd distill` into a folder; returns seconds from the command to the student's files, and to its end.

    Raises:
        MfdError: the command failed.
    """
    command = [sys.executable, "-m", "mfd_cli", "distill", recipe, "-o", str(folder)]
    command += [part for text in (*overrides, f"seed={seed}") for part in ("--set", text)]
    began = time.time()  # the clock that files are stamped with
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    ended = time.time()
    if done.returncode:
        raise MfdError(f"`{' '.join(command[2:])}` ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    saved = max(file.stat().st_mtime for file in RunFolder(folder).student.iterdir())
    return {"student_seconds": saved - began, "total_seconds": ended - began}


def floor(data: Data, splits: int) -> dict[str, float] | None:
    """Every distance between two random halves of the real data, mean over splits; None where there is none to draw."""
    if data.size is None or data.paired:
        return None
    samples = data.reference(None, 0)
    spaces = {name: _whole(space, samples) for name, space in data.spaces().items()}
    half = len(samples) // 2
    found: dict[str, list[float]] = {name: [] for name in (*spaces, "sliced_wasserstein")}
    for split in range(splits):
        first, second = order(split, len(samples), 0, 2 * half).split(half)
        for name, features in spaces.items():
            found[name].append(frechet_distance(features[first], features[second]))
        flat = samples.flatten(1)
        found["sliced_wasserstein"].append(sliced_wasserstein(flat[first], flat[second]))
    return {name: statistics.mean(values) for name, values in found.items()}


def judged(folder: Path, judge: Judge) -> dict[str, Measured]:
    """Every metric of a run's student."""
    return judge.judge(load_student(folder), steps=None, batch_size=_BATCH)


def gaps(
    teacher: dict[int, dict[str, Measured]], student: dict[str, Measured], steps: int
) -> dict[str, dict[str, float | None]]:
    """Gap recovered by a student of `steps`, against the teacher at each larger number of steps."""
    return {
        str(many): gap_recovered(teacher[steps], student, teacher[many])
        for many in sorted(teacher)
        if many > steps
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Distills, judges, prints and writes; returns the report."""
    args = _arguments(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.output or Path(temporary)
        folders = {seed: root / f"seed-{seed}" for seed in args.seeds}
        seconds = {}
        for seed, folder in folders.items():
            console.note(f"distilling {args.recipe} with seed {seed}")
            seconds[seed] = distilled(args.recipe, seed, args.overrides, folder)
        report = _report(args, folders, seconds)
    _print(report)
    return deliver(report, args, lambda figure: _draw(figure, report))


def _report(args: Any, folders: dict[int, Path], seconds: dict[int, dict[str, float]]) -> dict[str, Any]:
    first = next(iter(folders.values()))
    teacher, student = load_teacher(first), load_student(first)
    data = load_data(student.config, teacher.teacher)
    judge = judge_of(data, args.num, args.judging_seed)
    counts = sorted({*args.steps, student.steps})
    console.note(f"judging the teacher at {', '.join(map(str, counts))} steps and {len(folders)} students")
    by_steps = {count: judge.judge(teacher, steps=count, batch_size=_BATCH) for count in counts}
    runs = []
    for seed, folder in folders.items():
        found = judged(folder, judge)
        runs.append(
            {"seed": seed, **seconds[seed], "metrics": _values(found), "standard_errors": _errors(found),
             "gap_recovered": gaps(by_steps, found, student.steps)}
        )  # fmt: skip
    return {
        "schema": 1,
        "recipe": args.recipe,
        "overrides": args.overrides,
        **machine(student),
        "distill_threads": RunFolder(first).read_record()["threads"],
        "num": args.num,
        "reference_num": judge.count,
        "judging_seed": args.judging_seed,
        "student_steps": student.steps,
        "teacher": [
            {"steps": count, "metrics": _values(found), "standard_errors": _errors(found)}
            for count, found in by_steps.items()
        ],
        "floor": floor(data, 2 if args.quick else SPLITS),
        "runs": runs,
    }


def _arguments(arguments: Sequence[str] | None) -> Any:
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", default="digits", help="recipe file or name (default: digits)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of distillation")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 50], help="Euler steps of the teacher")
    parser.add_argument("--num", type=int, default=10_000, help="samples that each model is judged by")
    parser.add_argument("--judging-seed", type=int, default=0, help="seed of those samples")
    parser.add_argument("--output", type=Path, help="keep the runs in this folder (left out: they are removed)")
    args = parser.parse_args(arguments)
    check_targets(args)
    if args.quick:
        args.overrides, args.num = [*args.overrides, *QUICK], min(args.num, 300)
        args.seeds, args.steps = args.seeds[:2], [min(steps, 3) for steps in args.steps]
    return args


def _print(report: dict[str, Any]) -> None:
    names = list(report["runs"][0]["metrics"])
    lines: list[list[object]] = [
        [f"teacher, {row['steps']} steps", None, None, *(_with_error(row, name) for name in names)]
        for row in report["teacher"]
    ]
    lines += [
        [f"student, seed {row['seed']}", row["student_seconds"], row["total_seconds"],
         *(_with_error(row, name) for name in names)]
        for row in report["runs"]
    ]  # fmt: skip
    spread = [_spread([row["metrics"][name] for row in report["runs"]]) for name in names]
    whole = [_spread([row[name] for row in report["runs"]]) for name in ("student_seconds", "total_seconds")]
    lines.append(["student, mean ± spread", *whole, *spread])
    if report["floor"] is not None:
        lines.append(["floor: real halves", None, None, *(report["floor"].get(name) for name in names)])
    title = (
        f"{report['recipe']}: distilled with {report['distill_threads']} threads; "
        f"{report['num']} samples against {report['reference_num']} real ones"
    )
    console.table(title, ["model", "s to student", "s to end", *names], lines)
    rows = [
        [many, *(_gap([row["gap_recovered"][many][name] for row in report["runs"]]) for name in names)]
        for many in report["runs"][0]["gap_recovered"]
    ]
    console.table("gap recovered, mean ± spread over seeds", ["against teacher of steps", *names], rows)


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    names = list(report["runs"][0]["metrics"])
    figure.set_size_inches(2.6 * len(names), 3.2)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    seeds = [str(row["seed"]) for row in report["runs"]]
    for panel, name in zip(panels, names, strict=True):
        heights, errors = ([row[part][name] for row in report["runs"]] for part in ("metrics", "standard_errors"))
        panel.bar(seeds, heights, yerr=errors, capsize=3, color="0.7")
        for index, row in enumerate(report["teacher"]):
            panel.axhline(row["metrics"][name], color=f"C{index}", linewidth=1, label=f"teacher, {row['steps']} steps")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("student's seed", fontsize=8)
    panels[0].legend(fontsize=6)


def _whole(space: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    with torch.inference_mode():
        return space(samples)


def _values(found: dict[str, Measured]) -> dict[str, float]:
    return {name: figure.value for name, figure in found.items()}


def _errors(found: dict[str, Measured]) -> dict[str, float]:
    return {name: figure.standard_error for name, figure in found.items()}


def _with_error(row: dict[str, Any], name: str) -> str:
    return f"{row['metrics'][name]:.4g} ± {row['standard_errors'][name]:.1g}"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def _gap(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _spread(known) if len(known) == len(values) else "no gap"


if __name__ == "__main__":
    run(main)
