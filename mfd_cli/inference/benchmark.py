"""Teacher against student: one row for each model and number of steps, with speed, quality and what follows from them.

`mfd benchmark` and the check that ends `mfd distill` are the same report; docs/benchmark.md defines its figures.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mfd_cli import __version__
from mfd_cli.errors import MfdError
from mfd_cli.inference.differences import difference_line, differences, directions, gap_errors, model_lines
from mfd_cli.inference.quality import Judge, gap_recovered, judge_of
from mfd_cli.inference.sampler import Sampler
from mfd_cli.inference.timing import Timing, measure, timed_sampler
from mfd_cli.metrics.uncertainty import Measured
from teachers.base import Data
from teachers.conditions import to as condition_to

SCHEMA = 1

#: p90 over median latency from which speeds are not worth quoting
_UNSTEADY = 1.5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Contestant:
    """One row to fill.

    Attributes:
        sampler: teacher or student; its `name` says which.
        steps: Euler steps.
        method: method that made a student.
        run: where a student comes from.
    """

    sampler: Sampler
    steps: int
    method: str | None = None
    run: str | None = None

    @property
    def label(self) -> str:
        """The row's name in messages: "student, 1 step"."""
        return f"{self.sampler.name}, {self.steps} step{'s' if self.steps > 1 else ''}"


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        fps: whether speed is timed.
        timed_batch: samples per timed run.
        num: samples each model is judged by.
        batch_size: samples generated at once while judging.
        seed: names noise, conditions and reference of the judged samples.
        min_seconds: least timed seconds of each model.
        max_seconds: timed seconds of each model after which the least number of runs is enough.
    """

    fps: bool = True
    timed_batch: int = 1
    num: int = 10_000
    batch_size: int = 500
    seed: int = 0
    min_seconds: float = 2.0
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("timed_batch", "num", "batch_size"):
            if getattr(self, name) < 1:
                raise MfdError(f"{name.replace('_', ' ')} {getattr(self, name)}", allowed="at least 1")


def contestants(
    teacher: Sampler | None, students: Sequence[Contestant], teacher_steps: Sequence[int] = ()
) -> list[Contestant]:
    """All rows: the teacher at its own and at every student's number of steps, and as asked; then the students."""
    if teacher is None:
        return list(students)
    counts = {teacher.steps, *(student.steps for student in students), *teacher_steps}
    return [*(Contestant(teacher, steps) for steps in sorted(counts)), *students]


def report(
    rows: Sequence[Contestant],
    data: Data,
    effort: Effort,
    *,
    reference: Judge | None,
    recipe: str | None = None,
    notes: Sequence[str] = (),
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """The complete report, as `mfd benchmark --json` writes it.

    Args:
        rows: models; the first student is the one that `speedup` and `gap_recovered` are about.
        data: source of conditions.
        effort: how much to measure.
        reference: what quality is held against; None leaves quality out.
        recipe: name of the student's recipe.
        notes: what the reader should be told besides.
        say: is told what is being measured.

    Raises:
        MfdError: too few samples or runs, or samples that are not finite.
    """
    speeds = timings(rows, data, effort, say) if effort.fps else [None] * len(rows)
    judged = [_judged(row, effort, reference, say) for row in rows]
    filled = [_row(row, effort, timing, *verdict) for row, timing, verdict in zip(rows, speeds, judged, strict=True)]
    measured = [verdict[0] for verdict in judged]
    student = next((index for index, row in enumerate(rows) if row.sampler.name == "student"), None)
    for index, row in enumerate(rows):
        if row.sampler.name == "student":
            filled[index]["speedup"] = _speedup(rows, speeds, index)
            filled[index] |= _against_teacher(rows, measured, index)
    return {
        "schema": SCHEMA,
        "run": None if student is None else rows[student].run,
        "recipe": recipe,
        **environment(rows[0 if student is None else student].sampler),
        "seed": effort.seed,
        "num": reference.num if reference is not None else None,
        "reference_num": (reference.count or None) if reference is not None else None,
        "rows": filled,
        "speedup": None if student is None else filled[student]["speedup"],
        "gap_recovered": {} if student is None else filled[student]["gap_recovered"],
        "better": directions(measured),
        "metric_details": reference.described() if reference is not None else {},
        "baselines": {name: _values(found) for name, found in (reference.baselines() if reference else {}).items()},
        "notes": list(notes),
    }


def closing_report(
    teacher: Sampler | None,
    student: Sampler,
    data: Data,
    *,
    num: int,
    batch_size: int,
    seed: int = 0,
    method: str | None = None,
    recipe: str | None = None,
    run: str | Path | None = None,
    timed_batch: int = 1,
    seconds: float = 1.0,
    metrics: Sequence[Any] = (),
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """The report that ends a run: about `seconds` of timing a model, and quality where the data allows it.

    `metrics` are the settings of `evaluate.metrics`. Data without reference samples, too few samples for a metric, or
    weights that are gone by now, is a note in the report and no error, since a finished run should not fail at its last
    step.
    """
    effort = Effort(True, timed_batch, num, batch_size, seed, min_seconds=seconds, max_seconds=5 * seconds)
    rows = contestants(teacher, [Contestant(student, student.steps, method, None if run is None else str(run))])
    reference, notes = None, []
    try:
        reference = judge_of(data, num, seed, metrics, student.device, teacher)
    except MfdError as error:
        notes.append(f"quality was not measured: {error.found}")
    return report(rows, data, effort, reference=reference, recipe=recipe, notes=notes, say=say)


def table(report: dict[str, Any]) -> tuple[str, list[str], list[list[object]]]:
    """Title, columns and rows of the report, for people."""
    rows = report["rows"]
    timed = any(row["fps"] is not None for row in rows)
    several = len({row["run"] for row in rows if row["model"] == "student"}) > 1
    names = headline(dict.fromkeys(name for row in rows for name in row["metrics"]))
    framed = timed and any("frames_per_second" in row for row in rows)
    columns = ["model", *(["run"] if several else []), "method", "steps", "evaluations"]
    columns += ["fps", *(["frames/s"] if framed else []), "latency ms (p10 - p90)", "decode ms"] if timed else []
    columns += ["end to end ms"] if framed else []
    cells = []
    for row in rows:
        line: list[object] = [row["model"], *([row["run"] or "-"] if several else []), row["method"] or "-"]
        line += [row["steps"], row["evaluations"]]
        if timed:
            spread = row["latency_ms"]
            line += [row["fps"], *([row["frames_per_second"]] if framed else [])]
            line += [f"{spread['median']:.4g} ({spread['p10']:.4g} - {spread['p90']:.4g})", row["decode_ms"]]
            line += [row["end_to_end_ms"]] if framed else []
        cells.append(line + [_with_error(row, name) for name in names])
    for name, found in report.get("baselines", {}).items():
        line = [name, *["-"] * (len(columns) - 1)]
        cells.append([*line, *(f"{found[metric]:.4g}" for metric in names)])
    facts = [report["recipe"], report["device"], report["dtype"], f"{report['threads']} threads"]
    if timed:
        facts.append(f"batch size {rows[0]['batch_size']}")
    if report["num"]:
        against = "what followed" if report.get("baselines") else f"{report['reference_num']} real ones"
        held = f" against {against}" if report["reference_num"] else ""
        facts.append(f"{report['num']} samples{held}")
    return ", ".join(fact for fact in facts if fact), [*columns, *names], cells


def headline(names: Iterable[str]) -> list[str]:
    """The metrics that a table has room for: of those of single moments, none."""
    return [name for name in names if not re.search(r"_\d+\.\d+s$", name)]


def summary(report: dict[str, Any]) -> list[str]:
    """The lines below the table: what the first student gained, and what to know when quoting it."""
    lines = []
    teacher = next((row for row in report["rows"] if row["model"] == "teacher"), None)
    student = next((row for row in report["rows"] if row["model"] == "student"), None)
    gained = []
    if report["speedup"] is not None:
        gained.append(f"{report['speedup']['value']:.1f} times faster")
    if report["gap_recovered"]:
        shares = (
            f"{name} {'no gap' if value is None else format(value, '.2f')}"
            for name, value in report["gap_recovered"].items()
            if name in headline(report["gap_recovered"])
        )
        gained.append(f"gap recovered: {', '.join(shares)}")
    if gained and teacher is not None and student is not None:
        lines.append(f"{teacher['own_steps']}-step teacher -> {student['steps']}-step student: {'; '.join(gained)}")
    if teacher is not None and student is not None:
        line = difference_line(student, teacher["own_steps"], headline(student.get("differences") or {}))
        lines += [line] if line else []
    lines += model_lines(report.get("metric_details", {}))
    if teacher is not None and (teacher["evaluations"] or 0) > teacher["steps"]:
        lines.append(
            f"The teacher is guided (scale {teacher['guidance']:g}, two evaluations a step), the student is not: "
            "up to a factor 2 of the speed-up is guidance."
        )
    if any(
        row["latency_ms"] and row["latency_ms"]["p90"] > _UNSTEADY * row["latency_ms"]["median"]
        for row in report["rows"]
    ):
        lines.append("The timing is unsteady (p90 far above the median): something else was using this machine.")
    return lines + report["notes"]


def environment(sampler: Sampler) -> dict[str, Any]:
    """Device, dtype, threads and versions that figures of a sampler are valid for."""
    return {
        "device": device_name(sampler.device),
        "dtype": str(sampler.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"mfd": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def timings(rows: Sequence[Contestant], data: Data, effort: Effort, say: Say) -> list[Timing | None]:
    """Speed of every row at the effort's batch size, in turns."""
    say(f"timing {len(rows)} models in turns, batch size {effort.timed_batch}")
    items = torch.arange(effort.timed_batch)
    items = items if data.size is None else items % data.size
    condition = data.condition(items)
    runs = [
        timed_sampler(
            row.sampler,
            condition_to(condition, row.sampler.device),
            steps=row.steps,
            batch_size=effort.timed_batch,
            fetch=(lambda: data.condition(items)) if row.sampler.teacher.frames > 1 else None,
        )
        for row in rows
    ]
    device = rows[0].sampler.device
    return list(measure(runs, device=device, min_seconds=effort.min_seconds, max_seconds=effort.max_seconds))


def _judged(row: Contestant, effort: Effort, judge: Judge | None, say: Say) -> tuple[dict[str, Measured], int | None]:
    """Metrics of one row, and the evaluations a sample took."""
    if judge is None:
        return {}, None
    say(f"judging {row.label}: {judge.num} samples")
    before = row.sampler.evaluations.rows
    found = judge.judge(row.sampler, steps=row.steps, batch_size=effort.batch_size)
    return found, (row.sampler.evaluations.rows - before) // judge.num


def _row(
    row: Contestant, effort: Effort, timing: Timing | None, metrics: dict[str, Measured], evaluations: int | None
) -> dict[str, Any]:
    latency = None
    if timing is not None:
        latency = {"median": timing.median, "p10": timing.p10, "p90": timing.p90}
        evaluations = timing.evaluations
    return {
        "model": row.sampler.name,
        "run": row.run,
        "method": row.method,
        "steps": row.steps,
        "own_steps": row.sampler.steps,
        "guidance": row.sampler.guidance,
        "evaluations": evaluations,
        "batch_size": effort.timed_batch,
        "fps": timing.fps if timing else None,
        "latency_ms": latency,
        "decode_ms": timing.decode if timing else None,
        "peak_memory_mb": timing.peak_memory_mb if timing else None,
        "timed_runs": timing.runs if timing else None,
        "warm_up_s": timing.warm_up if timing else None,
        **_in_frames(row.sampler.teacher.frames, timing),
        "metrics": _values(metrics),
        "standard_errors": {name: figure.standard_error for name, figure in metrics.items()},
    }


def _in_frames(frames: int, timing: Timing | None) -> dict[str, Any]:
    """For samples of several frames: frames per second, and the time with reading and copying to and fro."""
    if frames == 1:
        return {}
    return {
        "frames_per_second": timing.fps * frames if timing else None,
        "end_to_end_ms": timing.end_to_end if timing else None,
    }


def _values(metrics: dict[str, Measured]) -> dict[str, float]:
    return {name: figure.value for name, figure in metrics.items()}


def _teacher_at(rows: Sequence[Contestant], steps: int | None = None) -> int | None:
    """Index of the teacher's row at `steps`, or at its own number of steps."""
    for index, row in enumerate(rows):
        if row.sampler.name == "teacher" and row.steps == (row.sampler.steps if steps is None else steps):
            return index
    return None


def _speedup(rows: Sequence[Contestant], timings: Sequence[Timing | None], student: int) -> dict[str, Any] | None:
    teacher = _teacher_at(rows)
    fast = timings[student]
    slow = timings[teacher] if teacher is not None else None
    if teacher is None or fast is None or slow is None:
        return None
    return {
        "student_steps": rows[student].steps,
        "teacher_steps": rows[teacher].steps,
        "value": fast.fps / slow.fps,
    }


def _against_teacher(
    rows: Sequence[Contestant], measured: Sequence[dict[str, Measured]], student: int
) -> dict[str, Any]:
    """What a student's row says of it and its teacher."""
    few, many = _teacher_at(rows, rows[student].steps), _teacher_at(rows)
    if few is None or many is None:
        return {"gap_recovered": {}, "gap_recovered_errors": {}, "differences": {}}
    three = measured[few], measured[student], measured[many]
    return {
        "gap_recovered": gap_recovered(*three),
        "gap_recovered_errors": gap_errors(*three),
        "differences": differences(measured[student], measured[many]),
    }


def _with_error(row: dict[str, Any], name: str) -> str:
    if name not in row["metrics"]:
        return "-"
    return f"{row['metrics'][name]:.4g} ± {row['standard_errors'][name]:.1g}"


def device_name(device: torch.device) -> str:
    """What a device is, for people: "cpu (AMD EPYC)"."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu" and (name := _processor()):
        return f"cpu ({name})"
    return device.type


def _processor() -> str:
    """The processor's name; what Python's platform module says is empty or only a family on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
