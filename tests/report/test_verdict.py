"""The two sentences, in every case that they can be about."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from mfd_cli.report.gather import Gathered
from mfd_cli.report.verdict import standing, verdict, with_error

Figures = Callable[..., dict[str, Any]]


def said(report: dict[str, Any] | None, **changes: Any) -> tuple[str, str]:
    settings: dict[str, Any] = {"status": "finished", "which": "finished student"} | changes
    found = verdict(Gathered("made", "runs/made", benchmark=report, **settings))
    return found.cost, found.quality


@pytest.mark.parametrize(
    ("mine", "theirs", "higher", "found"),
    [
        ((1.0, 0.1), (2.0, 0.1), False, "better"),
        ((1.0, 0.1), (2.0, 0.1), True, "worse"),
        ((2.0, 0.1), (1.0, 0.1), False, "worse"),
        ((2.0, 0.1), (1.0, 0.1), True, "better"),
        ((1.0, 0.3), (2.0, 0.4), False, "within error"),  # exactly two errors of 0.5 apart
        ((0.99, 0.3), (2.0, 0.4), False, "better"),
        ((1.0, 0.0), (1.0, 0.0), True, "within error"),
        ((1.0, 0.0), (0.9, 0.0), True, "of unknown error"),
        ((math.nan, 0.1), (0.9, 0.1), True, "of unknown error"),
    ],
)
def test_two_standard_errors_of_the_difference_decide(
    mine: tuple[float, float], theirs: tuple[float, float], higher: bool, found: str
) -> None:
    assert standing(mine, theirs, higher) == found


def test_a_paired_error_decides_where_there_is_one(figures: Figures) -> None:
    assert standing((1.0, 0.3), (1.5, 0.4), False) == "within error"
    assert standing((1.0, 0.3), (1.5, 0.4), False, 0.1) == "better"
    report = figures({"frechet": (1.0, 0.3)}, {"frechet": (1.5, 0.4)})
    assert "no different within two standard errors" in said(report)[1]
    student = next(row for row in report["rows"] if row["model"] == "student")
    student["differences"] = {"frechet": {"value": -0.5, "standard_error": 0.1, "within_error": False}}
    assert "it is better in frechet" in said(report)[1]


def test_a_student_that_is_better(figures: Figures) -> None:
    report = figures(
        {"frechet": (0.1, 0.01)}, {"frechet": (0.2, 0.01)}, {"frechet": (5.0, 0.1)}, {"frechet": 1.02}
    )  # fmt: skip
    cost, quality = said(report)
    assert cost == (
        "In 1 step (1 network evaluation) the student is 10.0 times as fast as its teacher in 10 steps "
        "(10 evaluations): 1,000 samples a second against 100 at batch size 1."
    )
    assert quality == "Against the teacher in 10 steps it is better in frechet (0.100 ± 0.010 against 0.200 ± 0.010)."


def test_what_the_student_is_worse_in_is_said_first(figures: Figures) -> None:
    student = {"frechet": (0.1, 0.01), "in_mode": (0.8, 0.02), "mode_coverage": (0.9, 0.04)}
    teacher = {"frechet": (0.2, 0.01), "in_mode": (0.9, 0.01), "mode_coverage": (0.9, 0.03)}
    quality = said(figures(student, teacher))[1]
    assert quality == (
        "Against the teacher in 10 steps it is worse in in_mode (0.800 ± 0.020 against 0.900 ± 0.010); it is better "
        "in frechet (0.100 ± 0.010 against 0.200 ± 0.010); it is no different within two standard errors in "
        "mode_coverage (0.900 ± 0.040 against 0.900 ± 0.030)."
    )


def test_a_difference_within_error_is_said_to_be_one(figures: Figures) -> None:
    quality = said(figures({"frechet": (0.21, 0.01)}, {"frechet": (0.2, 0.01)}))[1]
    assert "no different within two standard errors in frechet" in quality
    assert "better" not in quality and "worse" not in quality


def test_no_gap_between_the_teachers_is_said(figures: Figures) -> None:
    same = {"in_mode": (0.9, 0.01)}
    quality = said(figures({"in_mode": (0.8, 0.01)}, same, same, {"in_mode": None}))[1]
    assert "worse also than the teacher in 1 step: 0.900 ± 0.010" in quality
    better = figures({"in_mode": (0.99, 0.001)}, {"in_mode": (0.9, 0.01)}, {"in_mode": (0.91, 0.01)}, {"in_mode": None})
    assert "no gap: the teacher is no better in 10 steps than in 1 step" in said(better)[1]


def test_a_student_without_gap_to_its_own_teacher_says_nothing_of_one(figures: Figures) -> None:
    found = figures({"in_mode": (0.8, 0.01)}, {"in_mode": (0.9, 0.01)})
    found["rows"][0]["steps"] = found["rows"][0]["own_steps"] = 1
    quality = said(found)[1]
    assert "gap" not in quality and "worse also" not in quality and "Against the teacher in 1 step" in quality


def test_a_worse_student_than_the_teacher_in_as_few_steps(figures: Figures) -> None:
    report = figures({"frechet": (9.0, 0.1)}, {"frechet": (1.0, 0.1)}, {"frechet": (5.0, 0.1)}, {"frechet": -1.0})
    assert "worse also than the teacher in 1 step: 5.00 ± 0.10" in said(report)[1]


def test_several_measures_of_a_kind_are_listed(figures: Figures) -> None:
    names = ("frechet", "frechet_features", "sliced_wasserstein")
    quality = said(figures(dict.fromkeys(names, (2.0, 0.1)), dict.fromkeys(names, (1.0, 0.1))))[1]
    assert quality.count("2.00 ± 0.10 against 1.00 ± 0.10") == 3
    assert ", frechet_features (" in quality and " and sliced_wasserstein (" in quality


def test_an_unknown_error_is_no_verdict(figures: Figures) -> None:
    quality = said(figures({"iou": (50.0, 0.0)}, {"iou": (60.0, 0.0)}))[1]
    assert "different, with no standard error to judge that by, in iou (50 against 60)" in quality


def test_a_student_that_is_no_faster_and_one_within_the_spread(figures: Figures, row: Any) -> None:
    slow = figures({}, {})
    slow["rows"][1] |= {"fps": 50.0, "latency_ms": {"median": 20.0, "p10": 19.0, "p90": 21.0}}
    assert "is slower, 0.5 times as fast as its teacher" in said(slow)[0]
    near = figures({}, {})
    near["rows"][1] |= {"fps": 110.0, "latency_ms": {"median": 9.1, "p10": 8.0, "p90": 9.5}}
    assert "1.1 times as fast, within the spread of the timing, as its teacher" in said(near)[0]


def test_what_was_not_measured_is_said(figures: Figures) -> None:
    untimed = figures({"frechet": (0.1, 0.01)}, {"frechet": (0.2, 0.01)})
    for one in untimed["rows"]:
        one |= {"fps": None, "latency_ms": None}
    assert said(untimed)[0].endswith("speed was not measured.")
    unjudged = figures({}, {}, notes=["quality was not measured: no real samples"])
    assert said(unjudged)[1] == "Quality was not measured: no real samples."
    assert said(figures({}, {}))[1] == "Its quality was not measured."
    alone = figures({"frechet": (0.1, 0.01)}, {})
    alone["rows"] = alone["rows"][-1:]
    cost, quality = said(alone)
    assert "there is no teacher here" in cost and quality == "Its quality: frechet 0.100 ± 0.010."


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("stopped", "This run stopped itself after update 20 of 60: loss is nan."),
        ("failed", "This run failed after update 20 of 60: loss is nan."),
        ("interrupted", "This run was interrupted after update 20 of 60: loss is nan."),
        (
            "running",
            "This run is not finished: it is still going on, or was killed after update 20 of 60: loss is nan.",
        ),
    ],
)
def test_a_run_that_did_not_finish_says_how_it_ended(status: str, words: str) -> None:
    run = {"status": status, "reason": "loss is nan.", "record": {"update": 20}, "recipe": {"train": {"updates": 60}}}
    cost, quality = said(None, **run)
    assert cost == words and quality == "It left no student, so there is nothing to measure."


def test_a_student_without_figures_says_how_to_get_them(tmp_path: Any) -> None:
    cost, quality = said(None, student={"student": {"steps": 4}}, stored=tmp_path)
    assert cost == "The student makes a sample in 4 steps; it has not been measured against its teacher."
    assert quality == "No figures of the finished student are known; --benchmark measures them."


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ((0.16517, 0.00382), "0.1652 ± 0.0038"),
        ((57.31, 2.94), "57.3 ± 2.9"),
        ((5731.2, 29.4), "5731 ± 29"),
        ((0.0, 0.001), "0.0000 ± 0.0010"),
        ((16.2, 3e-9), "16.2"),
        ((0.5, 0.0), "0.5"),
        ((3e-9, 1e-9), "3e-09 ± 1e-09"),
    ],
)
def test_digits_follow_from_the_error(figure: tuple[float, float], text: str) -> None:
    assert with_error(figure) == text
