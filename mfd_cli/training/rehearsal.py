"""`mfd distill --dry-run`: builds everything and runs one update of each kind; nothing is written."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from mfd_cli.config.load import LoadedRecipe
from mfd_cli.methods.registry import methods
from mfd_cli.store.files import human
from mfd_cli.training.folder import describe
from mfd_cli.training.trainer import Trainer
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
    method = methods.get(recipe.method.type)(recipe.method)
    trainer = Trainer(recipe, method, workshop.teacher, roles, workshop.batches, workshop.accelerator)
    seconds = {"auxiliary": 0.0, "student": 0.0}
    for cycle in range(2):
        for inside in range(trainer.cycle):
            kind = "student" if inside == trainer.cycle - 1 else "auxiliary"
            began = time.perf_counter()
            trainer.step()
            if cycle and kind == "student":
                seconds[kind] += time.perf_counter() - began
            elif cycle:
                seconds[kind] += (time.perf_counter() - began) / (trainer.cycle - 1)
    evaluations = {name: rows // (2 * recipe.train.batch_size) for name, rows in trainer.snapshot().evaluations.items()}
    whole = recipe.train.updates * (seconds["student"] + recipe.method.aux_updates * seconds["auxiliary"])
    parameters = sum(value.numel() for value in roles.student.network.parameters())
    shown = ", ".join(f"{name} {count}" for name, count in evaluations.items())
    return Rehearsal(
        describe(recipe),
        [
            ["device", str(workshop.accelerator.device)],
            ["parameters of student and auxiliary, each", f"{parameters:,}"],
            ["forward passes per sample and student update", f"{sum(evaluations.values())} ({shown})"],
            ["seconds per auxiliary update", f"{seconds['auxiliary']:.4f}"],
            ["seconds per student update", f"{seconds['student']:.4f}"],
            ["training time", _duration(whole)],
            ["peak memory", human(_peak(workshop.accelerator.device))],
            ["disk", human(workshop.bytes_needed())],
        ],
    )


def _peak(device: torch.device) -> float:
    """Peak bytes: of the device's allocator, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
