"""Run folders made by hand, so that every state of a run can be shown without a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.config.load import dump, load_recipe
from mfd_cli.store.files import write_json
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student


def row(
    model: str, steps: int, metrics: dict[str, tuple[float, float]] | None = None, **changes: Any
) -> dict[str, Any]:
    """A row of a report of `mfd benchmark`; `metrics` are values with standard errors."""
    metrics = metrics or {}
    found = {
        "model": model, "run": None, "method": None, "steps": steps, "own_steps": 10 if model == "teacher" else steps,
        "guidance": 1.0, "evaluations": steps, "batch_size": 1, "fps": 1000.0 / steps,
        "latency_ms": {"median": 1.0 * steps, "p10": 0.9 * steps, "p90": 1.1 * steps}, "decode_ms": 0.01,
        "peak_memory_mb": None, "timed_runs": 50, "metrics": {name: value for name, (value, _) in metrics.items()},
        "standard_errors": {name: error for name, (_, error) in metrics.items()},
    }  # fmt: skip
    return found | changes


def figures(
    student: dict[str, tuple[float, float]],
    teacher: dict[str, tuple[float, float]],
    few: dict[str, tuple[float, float]] | None = None,
    recovered: dict[str, float | None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A report of a student of one step, its teacher of 10 steps and the same in 1 step."""
    rows = [row("teacher", 1, few)] if few is not None else []
    rows += [row("teacher", 10, teacher), row("student", 1, student, run="runs/made")]
    return {
        "schema": 1, "run": "runs/made", "recipe": "toy", "device": "cpu", "dtype": "float32", "threads": 1,
        "versions": {}, "seed": 0, "num": 1000, "reference_num": 1000, "rows": rows,
        "speedup": {"student_steps": 1, "teacher_steps": 10, "value": 10.0}, "gap_recovered": recovered or {},
        "baselines": {}, "notes": [],
    } | changes  # fmt: skip


Made = Callable[..., RunFolder]


@pytest.fixture(name="row")
def _row() -> Callable[..., dict[str, Any]]:
    return row


@pytest.fixture(name="figures")
def _figures() -> Callable[..., dict[str, Any]]:
    return figures


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes a run folder `runs/made` of the toy in a working folder of its own, finished unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def make(
        status: str = "finished",
        *,
        student: bool = True,
        report: dict[str, Any] | None = None,
        lines: int = 6,
        overrides: tuple[str, ...] = (),
        **record: Any,
    ) -> RunFolder:
        run = RunFolder(Path("runs/made"))
        run.root.mkdir(parents=True)
        small = ("teacher.network={width: 16, depth: 1, frequencies: 2}", "train.updates=60", *overrides)
        loaded = load_recipe("toy", small)
        run.recipe.write_text(dump(loaded.resolved), encoding="utf-8")
        run.update_record(**{
            "status": status, "schema": 1, "recipe": "toy", "method": "mfd", "versions": {"mfd": "0.1.0"},
            "device": "cpu", "processes": 1, "threads": 1, "parameters": 100, "started": "2026-01-01T00:00:00Z",
            "update": 10 * lines, "seconds": 8.4, "evaluations": {"student": 600, "teacher": 300}, **record,
        })  # fmt: skip
        run.metrics.write_text("".join(f"{json.dumps(_line(number))}\n" for number in range(1, lines + 1)))
        if report is not None:
            write_json(run.report, report)
        if student:
            _save_student(run.student, loaded.resolved)
        return run

    return make


def _line(number: int) -> dict[str, Any]:
    return {
        "update": 10 * number, "loss": 1 / number, "aux_loss": 2.0, "grad_norm": 0.5 / number, "aux_grad_norm": 1.0,
        "lr": 1e-3, "aux_lr": 2e-3, "seconds": 0.1 * number, "evaluations": 1000 * number,
    }  # fmt: skip


def _save_student(folder: Path, recipe: dict[str, Any]) -> None:
    import torch

    from teachers.gmm import GaussianMixtureSettings, GaussianMixtureTeacher

    torch.manual_seed(0)
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings.model_validate(recipe["teacher"]))
    config = {
        "mfd_version": "0.1.0", "teacher": recipe["teacher"], "architecture": teacher.architecture,
        "student": {"steps": 1, "shift": 1.0, "sampler": "euler", "grid": [0.0, 1.0]}, "data": recipe["data"],
        "method": "mfd", "update": 60, "ema": None, "identity": teacher.identity(), "recipe": recipe,
    }  # fmt: skip
    save_student(folder, config, teacher.build_network().state_dict())
