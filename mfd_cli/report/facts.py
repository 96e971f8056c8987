"""The page's tables: what was distilled from what, speed and quality by row, environment, and commands to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mfd_cli.config.load import dump
from mfd_cli.inference.benchmark import headline
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.report.gather import Gathered
from mfd_cli.report.verdict import Comparison, plural, teacher_at, the_student, with_error

Facts = list[tuple[str, str]]


class Table(NamedTuple):
    """A table: a caption, names of columns, rows whose first cell names them, and which columns hold numbers."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def origin(run: Gathered) -> Facts:
    """What was distilled from what, by which method, for how long."""
    recipe, student = run.recipe, run.student.get("student") or {}
    teacher = recipe.get("teacher") or run.student.get("teacher") or {}
    asked = recipe.get("student") or {}
    alone = recipe.get("network") is not None and "method" in recipe
    weights = student.get("weights") or asked.get("weights")
    lora = student.get("lora") or asked.get("lora") or {}
    identity = run.record.get("teacher") or run.student.get("identity") or {}
    found = {
        "teacher": "none: the student was trained from nothing" if alone else _teacher(teacher),
        "teacher's weights": "" if alone else ", ".join(f"{name} {_hash(value)}" for name, value in identity.items()),
        "method": str(
            recipe.get("method", {}).get("type") or run.record.get("method") or run.student.get("method", "")
        ),
        "student": _student(student or asked, weights, lora, run.record.get("parameters")),
        "data": str((recipe.get("data") or run.student.get("data") or {}).get("type", "")),
        "updates": _updates(run),
        "network evaluations": ", ".join(
            f"{name} {count:,}" for name, count in (run.record.get("evaluations") or {}).items()
        ),
        "time": _seconds(run.record.get("seconds")),
        "shown here": run.which or "",
    }
    return [(name, text) for name, text in found.items() if text]


def environment(run: Gathered) -> Facts:
    """What the run was trained with."""
    record = run.record
    versions = record.get("versions") or {}
    found = {
        "device": record.get("device"),
        "processes": record.get("processes"),
        "threads": record.get("threads"),
        "precision": (run.recipe.get("train") or {}).get("precision"),
        "begun": record.get("started"),
        "ended": record.get("finished") or record.get("stopped"),
        "status": run.status,
        **{f"{name}": version for name, version in versions.items()},
        "recipe, SHA-256": record.get("recipe_sha256"),
    }
    return [(name, str(value)) for name, value in found.items() if value is not None]


def measures(found: Sequence[Comparison], report: Mapping[str, Any] | None) -> Table | None:
    """Every measure of the student beside its teacher's, with what the rule says; None without any."""
    student, teacher = the_student(report or {}), teacher_at(report or {})
    if not found or student is None or teacher is None:
        return None
    many, few = (plural(steps, "step") for steps in (teacher["steps"], student["steps"]))
    split = any(one.few is not None for one in found)
    columns = ["measure", "student is", f"student, {few}", f"teacher, {many}"]
    columns += ["gap recovered", f"teacher, {few}"] if split else []
    rows = []
    for one in found:
        row = [f"{one.metric} ({'more' if one.higher else 'less'} is better)"]
        row += [one.standing, with_error(one.student), with_error(one.teacher)]
        if split:
            row.append("no gap" if one.recovered is None else f"{one.recovered:.2f}")
            row.append("-" if one.few is None else with_error(one.few))
        rows.append(row)
    judged = f"; {report['num']:,} samples a model, ± one standard error" if report and report.get("num") else ""
    caption = f"The student in {few} against the teacher in {many}{judged}"
    return Table(caption, columns, rows, [False, False, *[True] * (len(columns) - 2)])


def speeds(report: Mapping[str, Any] | None) -> Table | None:
    """Speed of every model and number of steps; None if nothing was timed."""
    rows = [row for row in (report or {}).get("rows") or [] if row.get("fps") is not None]
    if not rows or report is None:
        return None
    framed = any("frames_per_second" in row for row in rows)
    columns = ["model", "evaluations a sample", "samples/s", *(["frames/s"] if framed else [])]
    columns += ["latency, ms (10 to 90 %)", "of it decoding", *(["end to end, ms"] if framed else []), "memory, MB"]
    cells = []
    for row in rows:
        spread = row["latency_ms"]
        line = [_model(row), f"{row['evaluations']:,}", f"{row['fps']:.4g}"]
        line += [_number(row.get("frames_per_second"))] if framed else []
        line += [f"{spread['median']:.3g} ({spread['p10']:.3g} to {spread['p90']:.3g})", _number(row["decode_ms"], 3)]
        line += [_number(row.get("end_to_end_ms"))] if framed else []
        cells.append([*line, _number(row["peak_memory_mb"])])
    threads = report.get("threads")
    where = [report.get("device"), report.get("dtype"), f"{plural(threads, 'thread')}" if threads else None]
    caption = ", ".join(str(part) for part in [*where, f"batch size {rows[0]['batch_size']}"] if part)
    return Table(caption, columns, cells, [False, *[True] * (len(columns) - 1)])


def qualities(report: Mapping[str, Any] | None) -> Table | None:
    """Every measure of every row, as drawn in the plots; None if quality was not measured."""
    rows = [row for row in (report or {}).get("rows") or [] if row["metrics"]]
    if not rows or report is None:
        return None
    names = headline(dict.fromkeys(name for row in rows for name in row["metrics"]))
    cells = []
    for row in rows:
        errors = row["standard_errors"]
        figures = [(row["metrics"].get(name), errors.get(name) or 0.0) for name in names]
        cells.append([_model(row), *("-" if value is None else with_error((value, error)) for value, error in figures)])
    for what, found in (report.get("baselines") or {}).items():
        cells.append([what, *(_number(found.get(name)) for name in names)])
    columns = ["model", *(f"{name} ({'more' if higher_is_better(name) else 'less'} is better)" for name in names)]
    against = "what followed" if report.get("baselines") else f"{report.get('reference_num') or 0:,} real ones"
    caption = f"{report['num']:,} samples a model against {against}; ± one standard error"
    return Table(caption, columns, cells, [False, *[True] * len(names)])


def commands(run: Gathered) -> list[tuple[str, str]]:
    """What each command does, and the command, ready for a shell."""
    place = shlex.quote(run.place)
    found = []
    if run.recipe:
        name = f"{run.recipe.get('name') or run.name}.yaml"
        found.append(("the run again, from the recipe below", f"mfd distill {shlex.quote(name)}"))
    if run.status in ("interrupted", "stopped", "failed", "running"):
        found.append(("its continuation", f"mfd distill {place}/recipe.yaml -o {place} --resume"))
    if run.stored is not None:
        found += [
            ("samples of student and teacher", f"mfd sample {place} --teacher"),
            ("speed and quality", f"mfd benchmark {place}"),
        ]
    return [*found, ("this page", f"mfd report {place} --force")]


def recipe_text(run: Gathered) -> str:
    """The whole recipe as YAML; empty without one."""
    return dump(run.recipe) if run.recipe else ""


def _teacher(settings: Mapping[str, Any]) -> str:
    parts = [str(settings.get("type", "unknown"))]
    parts += [str(settings[key]) for key in ("model", "weights") if isinstance(settings.get(key), str)]
    if settings.get("steps"):
        parts.append(plural(settings["steps"], "step"))
    guidance = settings.get("guidance", 1.0)
    parts.append("unguided" if guidance == 1.0 else f"guidance {guidance:g}")
    parts += [f"time shift {settings['shift']:g}"] if settings.get("shift", 1.0) != 1.0 else []
    parts += [f"guided against the weaker {settings['weak']}"] if settings.get("weak") else []
    return ", ".join(parts)


def _student(settings: Mapping[str, Any], weights: Any, lora: Mapping[str, Any], parameters: int | None) -> str:
    parts = [plural(settings["steps"], "step")] if settings.get("steps") else []
    parts.append("unguided")
    if weights == "lora":
        parts.append(f"an adapter (LoRA) of rank {lora.get('rank')} on the teacher's network")
    elif weights:
        parts.append("a network of its own")
    parts += [f"{parameters:,} parameters"] if parameters and weights != "lora" else []
    return ", ".join(parts)


def _updates(run: Gathered) -> str:
    train = run.recipe.get("train") or {}
    done, wanted = run.updates, train.get("updates")
    if done is None:
        return ""
    text = f"{done:,}" if wanted in (None, done) else f"{done:,} of {wanted:,}"
    return text + (f", of {train['batch_size']} samples" if train.get("batch_size") else "")


def _hash(value: Any) -> str:
    """A hash, cut to what tells it from others."""
    text = str(value)
    return f"{text[:16]}..." if len(text) > 40 and text.isalnum() else text


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s of training" if seconds < 180 else f"{minutes // 60} h {minutes % 60} min of training"


def _model(row: Mapping[str, Any]) -> str:
    guided = "" if row.get("guidance", 1.0) == 1.0 else f", guidance {row['guidance']:g}"
    return f"{row['model']}, {plural(row['steps'], 'step')}{guided}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"
