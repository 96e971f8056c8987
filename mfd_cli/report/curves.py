"""From lines of metrics.jsonl to curves: which numbers there are, and how they spread between neighbouring lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: lines of metrics.jsonl of which a spread is taken, at least; windows that a curve is cut into, at least and at most
_FEWEST, _LEAST_WINDOWS, _WINDOWS = 5, 8, 40
#: keys of a line that are positions or are drawn apart
_POSITION = frozenset({"update", "seconds", "evaluations"})


class Curve(NamedTuple):
    """One number over updates.

    Attributes:
        name: key in metrics.jsonl.
        updates: where it was logged.
        values: what was logged, each a mean over the updates since the line before.
        windows: of stretches of neighbouring lines, the middle update and the 10 %, 50 % and 90 % quantile of their
            values; empty where there are too few lines.
    """

    name: str
    updates: list[float]
    values: list[float]
    windows: list[tuple[float, float, float, float]]


class Group(NamedTuple):
    """Curves of one kind, in one section of the page."""

    title: str
    curves: list[Curve]


def grouped(lines: Sequence[Mapping[str, Any]]) -> list[Group]:
    """All numbers of metrics.jsonl as curves: losses, gradient norms, learning rates, evaluations, and others."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in _POSITION))
    kinds: dict[str, list[str]] = {"Losses": [], "Gradient norms": [], "Learning rates": [], "Other numbers": []}
    for name in names:
        kinds[_kind(name)].append(name)
    groups = [
        Group(kind, [curve for name in sorted(members, key=_student_first) if (curve := curve_of(lines, name))])
        for kind, members in kinds.items()
    ]
    spent = curve_of(lines, "evaluations")
    groups.insert(3, Group("Network evaluations", [] if spent is None else [spent._replace(windows=[])]))
    return [group for group in groups if group.curves]


def curve_of(lines: Sequence[Mapping[str, Any]], name: str) -> Curve | None:
    """One number over updates; None if no line has it as a finite number."""
    points = [
        (float(line["update"]), float(line[name]))
        for line in lines
        if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
    ]
    if not points:
        return None
    updates, values = [update for update, _ in points], [value for _, value in points]
    return Curve(name, updates, values, windows(updates, values))


def windows(updates: Sequence[float], values: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Stretches of neighbouring values, at most 40 and of at least 5 values each, with their quantiles.

    Returns:
        Middle update, 10 % quantile, median, 90 % quantile of each; empty if fewer than 8 stretches come out.
    """
    size = max(_FEWEST, -(-len(values) // _WINDOWS))
    found = []
    for start in range(0, len(values) - size + 1, size):
        stretch = sorted(values[start : start + size])
        middle = (updates[start] + updates[start + size - 1]) / 2
        found.append((middle, *(quantile(stretch, share) for share in (0.1, 0.5, 0.9))))
    return found if len(found) >= _LEAST_WINDOWS else []  # type: ignore[return-value]


def quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile of rising values, linear between neighbours."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _kind(name: str) -> str:
    if "grad_norm" in name:
        return "Gradient norms"
    if name == "lr" or name.endswith("_lr"):
        return "Learning rates"
    return "Losses" if "loss" in name else "Other numbers"


def _student_first(name: str) -> tuple[bool, str]:
    return name.startswith("aux_"), name
