"""`mfd distill --dry-run`: builds everything and runs updates of each kind, measured; nothing is written."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from mfd_cli.config.load import LoadedRecipe
from mfd_cli.errors import MfdError
from mfd_cli.inference.benchmark import device_name
from mfd_cli.inference.memory import peak_memory_mb, reset_peak, total_memory_mb
from mfd_cli.store.files import free_bytes, human
from mfd_cli.store.layout import RUNS
from mfd_cli.training.batches import Batches
from mfd_cli.training.folder import describe
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop, build
from teachers.conditions import Condition

#: updates of a kind are repeated until so many seconds or updates are measured, since intervals differ in length
_SECONDS, _UPDATES = 10.0, 20
#: an update that takes longer than this is not run once more to warm up
_SLOW = 5.0
#: share of the memory from which a run is called tight
_TIGHT = 0.9


@dataclass
class Phase:
    """One part of a run, as measured.

    Attributes:
        name: what is done.
        seconds: of one time.
        count: how often the run does it.
        peak_mb: largest memory while it was done; None where nobody tells.
        evaluations: forward passes a sample; None where no network is trained.
    """

    name: str
    seconds: float
    count: int
    peak_mb: float | None
    evaluations: float | None = None


@dataclass
class Rehearsal:
    """What was measured.

    Attributes:
        title: what would be done.
        facts: rows (what, value).
        phases: measured parts.
        advice: what to change if it does not fit, the largest saving first.
        tight: whether the memory is nearly used up.
    """

    title: str
    facts: list[list[Any]] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    tight: bool = False

    def table(self) -> list[list[Any]]:
        """A row for each phase."""
        return [
            [
                phase.name, f"{phase.seconds:.4g}", phase.count, duration(phase.seconds * phase.count),
                "-" if phase.evaluations is None else f"{phase.evaluations:.3g}",
                "unknown" if phase.peak_mb is None else human(phase.peak_mb * 1e6),
            ]
            for phase in self.phases
        ]  # fmt: skip


def rehearse(loaded: LoadedRecipe, device: str | None = None, *, random_weights: bool = False) -> Rehearsal:
    """Builds what a recipe names, runs updates of each kind and a preview, and tells what the run will cost.

    Args:
        loaded: the recipe.
        device: "cpu" or "cuda"; what Accelerate finds if None.
        random_weights: whether the teacher gets random weights of the right shapes instead of its own.

    Raises:
        MfdError: what would stop the run itself, memory that does not suffice among it.
    """
    result = Rehearsal(describe(loaded.recipe), advice=savings(loaded.recipe))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with _measured(result, "load", 1, place):
        workshop = build(loaded, device, random_weights=random_weights)
    _measure_data(result, workshop)
    workshop.batches = _SameConditions(
        **{entry.name: getattr(workshop.batches, entry.name) for entry in fields(Batches)}
    )
    trainer = workshop.trainer()
    student = loaded.recipe.train.updates
    _measure_update(result, workshop, trainer, "auxiliary update", 0, student * loaded.recipe.method.aux_updates)
    _measure_update(result, workshop, trainer, "student update", trainer.cycle - 1, student)
    with _measured(result, "preview picture", _previews(loaded.recipe), place):
        _preview(workshop)
    result.facts = _facts(workshop, result)
    peak, total = max((phase.peak_mb or 0 for phase in result.phases), default=0), total_memory_mb(place)
    result.tight = total is not None and peak > _TIGHT * total
    return result


def savings(recipe: Any) -> list[str]:
    """Settings that would save memory and are not used yet, the largest saving first."""
    train, student, teacher = recipe.train, recipe.student, recipe.teacher
    found = []
    if student.weights == "full":
        found.append("student.weights=lora: adapters on one frozen network instead of three networks with optimizers")
    if train.batch_size > train.accumulation:
        found.append(f"train.accumulation={train.batch_size}: the same batch in parts of one sample, slower")
    if not train.checkpointing:
        found.append("train.checkpointing=true: activations computed anew, about a third slower")
    if student.steps > 1 and student.gradient == "chain":
        found.append(f"student.gradient=one-step: activations of one step instead of {student.steps}, noisier")
    if getattr(teacher, "dtype", None) == "fp32":
        found.append("teacher.dtype=bf16: half the memory for frozen weights")
    if train.precision == "fp32":
        found.append("train.precision=bf16: half the memory for most activations")
    if "adamw8bit" not in (recipe.optim.student.type, recipe.optim.aux.type):
        found.append("optim.student.type=adamw8bit and optim.aux.type=adamw8bit: a quarter of the optimizers' memory")
    if student.adapters is not None and student.adapters.rank > 16:
        found.append(f"student.lora.rank={student.adapters.rank // 2}: half the memory for adapters and optimizers")
    if getattr(teacher, "resolution", None) is not None or hasattr(teacher, "vae_tiling"):
        found.append("teacher.resolution: half the side is a quarter of the activations")
    if train.ema is not None:
        found.append("train.ema=null: one copy of the trained weights less")
    return found


def duration(seconds: float) -> str:
    """Seconds for people: 2 h 5 min."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def _measured(result: Rehearsal, name: str, count: int, device: torch.device) -> Iterator[None]:
    """Adds a phase for the work inside the block.

    Raises:
        MfdError: the device's memory does not suffice.
    """
    fresh = reset_peak(device)
    began = time.perf_counter()
    try:
        yield
    except torch.OutOfMemoryError as error:
        total = total_memory_mb(device)
        size = f" of {human(total * 1e6)}" if total else ""
        raise MfdError(
            f"out of memory{size} on {device_name(device)} in: {name}",
            do="change with --set, largest saving first:\n  " + "\n  ".join(result.advice),
        ) from error
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    peak = peak_memory_mb(device) if fresh or not result.phases else None
    result.phases.append(Phase(name, time.perf_counter() - began, count, peak))


class _SameConditions(Batches):
    """Batches with noise and times of their own and all with the first one's conditions, so that nothing is encoded."""

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one object, for the length of a rehearsal)
    def condition(self, step: int, part: int) -> Condition:
        """The first part's."""
        return super().condition(0, 0)


def _measure_data(result: Rehearsal, workshop: Workshop) -> None:
    """Conditions of one batch: for prompts that are not cached yet, this runs the text encoder."""
    needed = workshop.data.unprepared()
    with _measured(
        result, "encode a prompt" if needed else "read conditions", max(1, needed), workshop.accelerator.device
    ):
        workshop.batches.condition(0, 0)
        workshop.teacher.encode(workshop.teacher.examples(_shown(workshop)))
    result.phases[-1].seconds /= workshop.batches.rows + _shown(workshop) if needed else 1
    workshop.data.release()


def _measure_update(result: Rehearsal, workshop: Workshop, trainer: Trainer, name: str, first: int, count: int) -> None:
    """Mean of some updates of one kind, each at its own place of the run, so that intervals differ in length."""
    before = sum(trainer.snapshot().evaluations.values())

    def once(number: int) -> None:
        trainer.progress.step = first + number * trainer.cycle
        trainer.step()

    with _measured(result, name, count, workshop.accelerator.device):
        once(0)
    done = 1
    if result.phases[-1].seconds < _SLOW:
        before = sum(trainer.snapshot().evaluations.values())
        result.phases.pop()  # it was the warm-up
        done, began = 0, time.perf_counter()
        with _measured(result, name, count, workshop.accelerator.device):
            while done < _UPDATES and time.perf_counter() - began < _SECONDS:
                done += 1
                once(done)
    phase = result.phases[-1]
    phase.seconds /= done
    phase.evaluations = (
        (sum(trainer.snapshot().evaluations.values()) - before) / done / workshop.recipe.train.batch_size
    )


def _previews(recipe: Any) -> int:
    return 2 + (recipe.train.updates - 1) // recipe.log.preview_every if recipe.log.preview_every else 2


def _shown(workshop: Workshop) -> int:
    return workshop.recipe.log.preview_num or workshop.teacher.shown


def _preview(workshop: Workshop) -> None:
    """What a preview computes: teacher and student on the same noise, decoded."""
    teacher, student = workshop.samplers()
    for sampler, steps in ((teacher, teacher.steps), (teacher, student.steps), (student, student.steps)):
        sampler.sample(_shown(workshop), steps=steps)
    workshop.teacher.rest()


def _facts(workshop: Workshop, result: Rehearsal) -> list[list[Any]]:
    roles, device = workshop.roles, workshop.accelerator.device
    assert workshop.teacher.network is not None, "the teacher has no weights"
    # adapters lie inside the teacher's network, but are not its own
    frozen = [value for name, value in workshop.teacher.network.named_parameters() if ".lora_" not in name]
    trained = {"student": roles.student.network, "auxiliary": roles.auxiliary.network}
    trained |= {"averaged student": roles.average.network} if roles.average is not None else {}
    total, needed = total_memory_mb(device), workshop.bytes_needed()
    peak = max((phase.peak_mb or 0 for phase in result.phases), default=0)
    return [
        ["device", device_name(device)],
        ["parameters, teacher (frozen)", _size(frozen)],
        *([f"parameters, {name}", _size(network.parameters())] for name, network in trained.items()),
        ["whole run", duration(sum(phase.seconds * phase.count for phase in result.phases))],
        ["peak memory", f"{human(peak * 1e6)} of {human(total * 1e6)}" if peak and total else "unknown"],
        ["disk", f"{human(needed)} of {human(free_bytes(RUNS))} free"],
    ]


def _size(parameters: Iterable[nn.Parameter]) -> str:
    """Parameters and their bytes."""
    values = list(parameters)
    size = human(sum(value.numel() * value.element_size() for value in values))
    return f"{sum(value.numel() for value in values):,} ({size})"
