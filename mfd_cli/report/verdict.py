"""What the figures say, in two sentences: what the student costs against its teacher, and where it is better or worse.

One rule decides: two figures differ if they lie more than two standard errors of their difference apart, and are
"within error" otherwise. Models are judged on the same noise, so the report's `differences` have paired errors, which
are used. Where a report has none, the standard error of a difference is taken as sqrt(e_1^2 + e_2^2): the true one is
smaller as a rule, so the rule then errs towards "within error".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mfd_cli.inference.benchmark import headline
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.report.gather import Gathered

#: how many standard errors of a difference are within error
ERRORS = 2.0

Standing = Literal["better", "worse", "within error", "of unknown error"]
_ORDER: tuple[Standing, ...] = ("worse", "of unknown error", "better", "within error")


@dataclass(frozen=True)
class Comparison:
    """One measure of the student beside its teacher.

    Attributes:
        metric: the measure's name.
        higher: whether more is better.
        student: its figure and standard error.
        teacher: those of the teacher at its own number of steps.
        few: those of the teacher at the student's number of steps; None if that is its own, or was not measured.
        standing: of the student against the teacher at its own number of steps.
        against_few: of the student against the teacher at the student's number of steps; None without that.
        recovered: share of the gap between the two teachers; None if there is no gap or it is not known.
    """

    metric: str
    higher: bool
    student: tuple[float, float]
    teacher: tuple[float, float]
    few: tuple[float, float] | None
    standing: Standing
    against_few: Standing | None
    recovered: float | None


@dataclass(frozen=True)
class Verdict:
    """The two sentences, and the comparisons that the second one sums up."""

    cost: str
    quality: str
    comparisons: list[Comparison]


def verdict(run: Gathered) -> Verdict:
    """What a run's figures say; where there are none, why."""
    report = run.benchmark or {}
    student = the_student(report)
    if student is None:
        return Verdict(_unmeasured(run), _how_to_measure(run), [])
    teacher, few = teacher_at(report), teacher_at(report, student["steps"])
    few = None if few is teacher else few
    found = compare(student, teacher, few, report.get("gap_recovered") or {})
    return Verdict(_cost(student, teacher), _quality(student, teacher, found, report), found)


def the_student(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of the student that a report is about."""
    return next((row for row in report.get("rows") or () if row["model"] == "student"), None)


def teacher_at(report: Mapping[str, Any], steps: int | None = None) -> Mapping[str, Any] | None:
    """The row of the teacher at so many steps; at its own number of steps if None."""
    rows = [row for row in report.get("rows") or () if row["model"] == "teacher"]
    return next((row for row in rows if row["steps"] == (row["own_steps"] if steps is None else steps)), None)


def compare(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
    few: Mapping[str, Any] | None,
    recovered: Mapping[str, float | None],
) -> list[Comparison]:
    """The measures that a table has room for, the student's beside the teacher's; those it is worse by come first."""
    if teacher is None:
        return []
    found = []
    for metric in headline(name for name in student["metrics"] if name in teacher["metrics"]):
        higher, mine, theirs = higher_is_better(metric), _figure(student, metric), _figure(teacher, metric)
        fewer = _figure(few, metric) if few is not None and metric in few["metrics"] else None
        against = standing(mine, fewer, higher) if fewer is not None else None
        share = recovered.get(metric) if fewer is not None else None
        paired = (student.get("differences") or {}).get(metric)
        error = paired["standard_error"] if paired else None
        found.append(
            Comparison(metric, higher, mine, theirs, fewer, standing(mine, theirs, higher, error), against, share)
        )
    return sorted(found, key=lambda one: _ORDER.index(one.standing))


def standing(
    mine: tuple[float, float], theirs: tuple[float, float], higher: bool, paired: float | None = None
) -> Standing:
    """How a figure stands to another, each with its standard error; see the module's rule.

    Args:
        mine: value and standard error.
        theirs: what it is held against.
        higher: whether more is better.
        paired: standard error of the difference, where it is known.
    """
    difference = mine[0] - theirs[0]
    error = math.hypot(mine[1], theirs[1]) if paired is None else paired
    if not math.isfinite(difference) or (error == 0 and difference != 0):
        return "of unknown error"
    if abs(difference) <= ERRORS * error:
        return "within error"
    return "better" if (difference > 0) == higher else "worse"


def with_error(figure: tuple[float, float]) -> str:
    """A value and its standard error with as many digits as two of the error allow: "0.1650 ± 0.0038".

    An error that none of the value's first five digits would show is left out, as is one of 0.
    """
    value, error = figure
    if not (math.isfinite(error) and error > 1e-5 * abs(value)):
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > 6 or abs(value) >= 1e6:
        return f"{value:.4g} ± {error:.2g}"
    return f"{value:.{places}f} ± {error:.{places}f}"


def plural(count: int | float, noun: str) -> str:
    """A number with its noun: "1 step", "10 steps"."""
    return f"{count:,g} {noun}{'s'[: count != 1]}"


def _figure(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    value, error = row["metrics"][metric], row["standard_errors"].get(metric)
    return math.nan if value is None else value, error or 0.0


def _cost(student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    evaluations = "" if student["evaluations"] is None else f" ({plural(student['evaluations'], 'network evaluation')})"
    opening = f"In {plural(student['steps'], 'step')}{evaluations} the student"
    if teacher is None:
        speed = "is not timed" if student["fps"] is None else f"makes {student['fps']:,.4g} samples a second"
        return f"{opening} {speed}; there is no teacher here to hold it against."
    costs = "" if teacher["evaluations"] is None else f" ({plural(teacher['evaluations'], 'evaluation')})"
    against = f"its teacher in {plural(teacher['steps'], 'step')}{costs}"
    if student["fps"] is None or teacher["fps"] is None:
        return f"{opening} stands beside {against}; speed was not measured."
    speed = f"{_rate(student)} samples a second against {_rate(teacher)} at batch size {student['batch_size']}"
    return f"{opening} is {_faster(student, teacher)} {against}: {speed}."


def _faster(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    factor = student["fps"] / teacher["fps"]
    mine, theirs = student["latency_ms"], teacher["latency_ms"]
    if mine["p10"] <= theirs["p90"] and theirs["p10"] <= mine["p90"]:
        return f"{factor:.2g} times as fast, within the spread of the timing, as"
    return f"{factor:.1f} times as fast as" if factor >= 1 else f"slower, {factor:.2g} times as fast as"


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['fps']:,.0f}" if row["fps"] >= 1000 else f"{row['fps']:.3g}"


def _quality(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
    found: Sequence[Comparison],
    report: Mapping[str, Any],
) -> str:
    if not student["metrics"]:
        why = next((note for note in report.get("notes") or () if note.startswith("quality was not measured")), None)
        return f"{why[0].upper()}{why[1:].rstrip('.')}." if why else "Its quality was not measured."
    if teacher is None or not found:
        figures = (f"{name} {with_error(_figure(student, name))}" for name in headline(student["metrics"]))
        return f"Its quality: {', '.join(figures)}."
    groups = {kind: [one for one in found if one.standing == kind] for kind in _ORDER}
    parts = []
    for kind, members in groups.items():
        if members:
            parts.append(f"{_LEADS[kind]} {_listed([_measure(one, student, teacher) for one in members])}")
    many = plural(teacher["steps"], "step")
    return f"Against the teacher in {many} it is {'; it is '.join(parts)}."


_LEADS: dict[Standing, str] = {
    "worse": "worse in",
    "of unknown error": "different, with no standard error to judge that by, in",
    "better": "better in",
    "within error": "no different within two standard errors in",
}


def _measure(one: Comparison, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """A measure with both figures, and what the table's share of the gap would not tell."""
    facts = [f"{with_error(one.student)} against {with_error(one.teacher)}"]
    few = plural(student["steps"], "step")
    if one.few is not None and one.against_few == "worse":
        facts.append(f"worse also than the teacher in {few}: {with_error(one.few)}")
    elif one.few is not None and one.recovered is None:
        facts.append(f"no gap: the teacher is no better in {plural(teacher['steps'], 'step')} than in {few}")
    return f"{one.metric} ({', '.join(facts)})"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


_ENDED = {
    "running": "This run is not finished: it is still going on, or was killed",
    "interrupted": "This run was interrupted",
    "stopped": "This run stopped itself",
    "failed": "This run failed",
}


def _unmeasured(run: Gathered) -> str:
    if run.status in _ENDED:
        wanted = (run.recipe.get("train") or {}).get("updates")
        at = "" if run.updates is None else f" after update {run.updates}" + (f" of {wanted}" if wanted else "")
        return f"{_ENDED[run.status]}{at}{': ' + str(run.reason).rstrip('.') if run.reason else ''}."
    steps = (run.student.get("student") or {}).get("steps")
    made = f"makes a sample in {plural(steps, 'step')}; it" if steps else ""
    return f"The student {made} has not been measured against its teacher."


def _how_to_measure(run: Gathered) -> str:
    if run.stored is None:
        return "It left no student, so there is nothing to measure."
    return f"No figures of the {run.which} are known; --benchmark measures them."
