"""How far a student is from its teacher, metric by metric, and whether the samples can tell the two apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mfd_cli.metrics.uncertainty import Difference, Measured, difference, recovered

Figures = Mapping[str, Measured]


def differences(student: Figures, teacher: Figures) -> dict[str, dict[str, Any]]:
    """Student - teacher of every metric that both have, as a report holds it.

    Both were judged on the same noise and conditions, so the standard error is that of the paired difference.
    """
    return {name: _entry(difference(student[name], teacher[name])) for name in student if name in teacher}


def gap_errors(few: Figures, student: Figures, many: Figures) -> dict[str, float | None]:
    """Standard error of every `gap_recovered`; None where there is no gap."""
    found = {name: recovered(few[name], student[name], many[name]) for name in student if name in few and name in many}
    return {name: None if share is None else share.standard_error for name, share in found.items()}


def directions(measured: Sequence[Figures]) -> dict[str, str]:
    """Whether "more" or "less" of each metric is better."""
    return {
        name: "more" if figure.more_is_better else "less" for figures in measured for name, figure in figures.items()
    }


def difference_line(row: Mapping[str, Any], teacher_steps: int, names: Iterable[str]) -> str | None:
    """A student's differences from its teacher for people; None where there are none.

    Args:
        row: a student's row of a report.
        teacher_steps: steps of the teacher it is held against.
        names: the metrics to show.
    """
    found = row.get("differences") or {}
    parts = [_words(name, found[name]) for name in names if name in found]
    return f"student - {teacher_steps}-step teacher: {', '.join(parts)}" if parts else None


def model_lines(details: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What figures hold for, of those that come from a model: figures of different models do not compare."""
    by_model: dict[str, list[str]] = {}
    for name, detail in details.items():
        if "model" in detail:
            by_model.setdefault(str(detail["model"]), []).append(name)
    return [f"{', '.join(names)}: by {model}" for model, names in by_model.items()]


def _entry(found: Difference) -> dict[str, Any]:
    return {
        "value": found.value,
        "standard_error": found.standard_error,
        "within_error": found.within_error,
    }


def _words(name: str, entry: Mapping[str, Any]) -> str:
    text = f"{name} {entry['value']:+.3g} ± {entry['standard_error']:.1g}"
    return f"{text} (within error)" if entry["within_error"] else text
