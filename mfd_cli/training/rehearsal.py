"""`mfd distill --dry-run`: builds everything and runs one update of each kind; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mfd_cli.config.load import LoadedRecipe
from mfd_cli.inference.timing import peak_memory_mb
from mfd_cli.store.files import human
from mfd_cli.training.folder import describe
from mfd_cli.training.workshop import build


@dataclass(frozen=True)
class Rehearsal:
    """What was measured: a title, and rows of (what, value)."""

    title: str
    rows: list[list[Any]]


def rehearse(loaded: LoadedRecipe, device: str | None = None) -> Rehearsal:
    """Runs one cycle of updates after one to warm up, and tells what the run will cost.

    Raises:
        MfdError: what would stop the run itself.
    """
    workshop = build(loaded, device)
    recipe, roles = workshop.recipe, workshop.roles
    trainer = workshop.trainer()
    for _ in range(trainer.cycle):  # warm up
        trainer.step()
    *auxiliary, student = (_seconds(trainer.step) for _ in range(trainer.cycle))
    each = sum(auxiliary) / len(auxiliary)
    whole = recipe.train.updates * (student + recipe.method.aux_updates * each)
    evaluations = {name: rows // (2 * recipe.train.batch_size) for name, rows in trainer.snapshot().evaluations.items()}
    parameters = sum(value.numel() for value in roles.student.network.parameters())
    memory = peak_memory_mb(workshop.accelerator.device)
    shown = ", ".join(f"{name} {count}" for name, count in evaluations.items())
    return Rehearsal(
        describe(recipe),
        [
            ["device", str(workshop.accelerator.device)],
            ["parameters of student and auxiliary, each", f"{parameters:,}"],
            ["forward passes per sample and student update", f"{sum(evaluations.values())} ({shown})"],
            ["seconds per auxiliary update", f"{each:.4f}"],
            ["seconds per student update", f"{student:.4f}"],
            ["training time", _duration(whole)],
            ["peak memory", "unknown" if memory is None else human(memory * 1e6)],
            ["disk", human(workshop.bytes_needed())],
        ],
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
