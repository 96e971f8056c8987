"""Curves from metrics.jsonl."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mfd_cli.report.curves import curve_of, grouped, quantile, windows

LINE = {"loss": 1.0, "grad_norm": 0.5, "lr": 1e-3, "aux_loss": 2.0, "aux_grad_norm": 3.0, "aux_lr": 2e-3,
        "critic_loss": 0.1, "in_play": 4.0, "seconds": 1.0, "evaluations": 10}  # fmt: skip


def test_numbers_are_grouped_by_kind_the_students_first() -> None:
    groups = grouped([{"update": 1, **LINE}, {"update": 2, **LINE}])
    assert [(group.title, [curve.name for curve in group.curves]) for group in groups] == [
        ("Losses", ["critic_loss", "loss", "aux_loss"]),
        ("Gradient norms", ["grad_norm", "aux_grad_norm"]),
        ("Learning rates", ["lr", "aux_lr"]),
        ("Network evaluations", ["evaluations"]),
        ("Other numbers", ["in_play"]),
    ]
    assert grouped([]) == []


def test_what_is_no_finite_number_is_left_out() -> None:
    lines = [{"update": update, "loss": loss} for update, loss in enumerate([1.0, math.nan, None, "x", 2.0, math.inf])]
    curve = curve_of(lines, "loss")
    assert curve is not None and (curve.updates, curve.values) == ([0.0, 4.0], [1.0, 2.0])
    assert curve_of(lines, "other") is None and curve_of(lines[1:4], "loss") is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_quantiles_are_numpys(share: float) -> None:
    values = sorted(np.random.default_rng(0).normal(size=13).tolist())
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)))


def test_windows_hold_the_spread_of_neighbours() -> None:
    updates, values = list(range(10, 410, 10)), [float(number % 5) for number in range(40)]
    found = windows(updates, values)
    assert len(found) == 8
    assert found[0] == (30.0, pytest.approx(0.4), 2.0, pytest.approx(3.6))
    assert windows(updates[:39], values[:39]) == [], "seven stretches are too few to be called a course"
    many = windows(list(range(10_000)), [0.0] * 10_000)
    assert len(many) == 40
