"""`mfd distill --dry-run`: builds everything and runs updates of each kind, measured; nothing is written."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
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
from mfd_cli.training import strategy
from mfd_cli.training.batches import Batches
from mfd_cli.training.folder import describe
from mfd_cli.training.preflight import refuse_missing
from mfd_cli.training.savings import out_of_memory, savings
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop, build
from teachers.conditions import Condition, rows
from teachers.guidance import VelocityField

#: updates of a kind are repeated until so many seconds or updates are measured, since intervals differ in length
_SECONDS, _UPDATES = 10.0, 20
#: an update that takes longer than this is not run once more to warm up
_SLOW = 5.0
#: evaluations a sample that a student update is guessed to take, and seconds of an update that are worth a warning
_TYPICAL_EVALUATIONS, _LONG = 25, 120.0
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
        say: is told what is being measured.
    """

    title: str
    facts: list[list[Any]] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    tight: bool = False
    say: Callable[[str], None] = lambda text: None

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


def rehearse(
    loaded: LoadedRecipe,
    device: str | None = None,
    *,
    random_weights: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Rehearsal:
    """Builds what a recipe names, runs updates of each kind and a preview, and tells what the run will cost.

    Args:
        loaded: the recipe.
        device: "cpu" or "cuda"; what Accelerate finds if None.
        random_weights: whether the teacher gets random weights of the right shapes instead of its own.
        say: is told what is being measured.

    Raises:
        MfdError: what would stop the run itself, memory that does not suffice among it.
    """
    if strategy.asked() is not None:
        raise MfdError(
            "--dry-run with an accelerate config of shards: a dry run measures whole networks in one process",
            do="run it without `accelerate launch`; docs/scale.md says what shards need",
        )
    result = Rehearsal(describe(loaded.recipe), advice=savings(loaded.recipe), say=say)
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    with _measured(result, "load", 1, place):
        workshop = build(loaded, device, random_weights=random_weights)
    _measure_data(result, workshop, random_weights)
    workshop.batches = _SameConditions(
        **{entry.name: getattr(workshop.batches, entry.name) for entry in fields(Batches)}
    )
    _forewarn(result, workshop)
    trainer = workshop.trainer()
    student = loaded.recipe.train.updates
    schedule = trainer.schedule
    if schedule.aux_updates:
        _measure_update(result, workshop, trainer, "auxiliary update", schedule.steps, schedule.aux_total(student))
    _measure_update(result, workshop, trainer, "student update", lambda number: schedule.steps(number + 1) - 1, student)
    _measure_preview(result, workshop)
    result.facts = [*_facts(workshop, result), ["closing check", _closing_check(workshop, random_weights)]]
    if (quick := loaded.recipe.evaluate).every:
        count = student // quick.every + 1 + bool(student % quick.every)
        result.facts.append(["quick judgements", f"{count} of {quick.quick_num} samples, not measured here"])
    if random_weights:
        result.facts.append(["missing for the run itself", _missing(loaded.recipe)])
    peak, total = max((phase.peak_mb or 0 for phase in result.phases), default=0), total_memory_mb(place)
    result.tight = total is not None and peak > _TIGHT * total
    return result


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
    result.say(f"measuring: {name}")
    fresh = reset_peak(device)
    began = time.perf_counter()
    try:
        yield
    except torch.OutOfMemoryError as error:
        problem = out_of_memory(name, device, result.advice)
        raise MfdError(problem.found, do=problem.do) from error
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


def _measure_data(result: Rehearsal, workshop: Workshop, random_weights: bool) -> None:
    """Conditions of one batch: for prompts that are not cached yet, this runs the text encoder, unless it is random."""
    needed = 0 if random_weights else workshop.data.unprepared()
    with _measured(
        result, "encode a prompt" if needed else "read conditions", max(1, needed), workshop.accelerator.device
    ):
        workshop.batches.condition(0, 0)
        workshop.teacher.encode(workshop.teacher.examples(_shown(workshop)))
    result.phases[-1].seconds /= workshop.batches.rows + _shown(workshop) if needed else 1
    workshop.data.release()


def _forewarn(result: Rehearsal, workshop: Workshop) -> None:
    """Says so before updates are run that will take minutes, by the time of a single evaluation."""
    condition = workshop.batches.condition(0, 0)
    network = workshop.roles.student.network if workshop.teacher.network is None else workshop.teacher.network
    velocity = VelocityField(workshop.teacher, network, rows(condition, slice(0, 1)))  # type: ignore[arg-type]
    device, batch = workshop.accelerator.device, workshop.recipe.train.batch_size
    x, t = torch.zeros(1, *workshop.teacher.sample_shape, device=device), torch.zeros(1, device=device)
    began = time.perf_counter()
    with torch.no_grad(), workshop.accelerator.autocast():
        float(velocity(x, t).sum())
    seconds = time.perf_counter() - began
    if seconds * batch * _TYPICAL_EVALUATIONS > _LONG:
        result.say(
            f"an evaluation of one sample takes {seconds:.2g} s here, so an update of {batch} about "
            f"{duration(seconds * batch * _TYPICAL_EVALUATIONS)}; --set train.batch_size=1 shortens the rehearsal"
        )


def _measure_update(
    result: Rehearsal, workshop: Workshop, trainer: Trainer, name: str, place: Callable[[int], int], count: int
) -> None:
    """Mean of some updates of one kind, each in a cycle of its own: `place` gives its step by its number."""
    before = sum(trainer.snapshot().evaluations.values())

    def once(number: int) -> None:
        trainer.progress.step = place(number)
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


def _measure_preview(result: Rehearsal, workshop: Workshop) -> None:
    """What a preview computes: teacher and student on the same noise, decoded. One sample in one step stands for all
    where updates are slow.
    """
    teacher, student = workshop.samplers()
    rows = [(student, student.steps)]
    if teacher is not None:
        rows = [(teacher, teacher.steps), (teacher, student.steps), *rows]
    slow = max(phase.seconds for phase in result.phases[1:]) > _SLOW
    with _measured(result, "preview picture", _previews(workshop.recipe), workshop.accelerator.device):
        for sampler, steps in rows[-2:][:1] if slow else rows:
            sampler.sample(1 if slow else _shown(workshop), steps=1 if slow else steps)
    workshop.teacher.rest()
    if slow:
        result.phases[-1].seconds *= _shown(workshop) * sum(steps for _, steps in rows)


def _facts(workshop: Workshop, result: Rehearsal) -> list[list[Any]]:
    roles, device = workshop.roles, workshop.accelerator.device
    network = workshop.teacher.network
    # adapters lie inside the teacher's network, but are not its own
    frozen = (
        [value for name, value in network.named_parameters() if ".lora_" not in name] if network is not None else []
    )
    names = {"aux": "auxiliary"}
    trained = {names.get(role.name, role.name): role.network for role in roles.trained()}
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


def _closing_check(workshop: Workshop, random_weights: bool) -> str:
    """What a finished run would be judged by, or why it would not be."""
    data, num = workshop.data.held_out(), workshop.recipe.evaluate.num
    if not num:
        return "none (evaluate.num: 0)"
    if not data.paired or random_weights:
        return f"{num} samples"
    try:
        data.truth(torch.zeros(1, dtype=torch.long))
    except MfdError as error:
        return f"quality cannot be measured: {error.found}"
    return f"{min(num, data.size or num)} samples against what followed"


def _missing(recipe: Any) -> str:
    try:
        refuse_missing(recipe)
    except MfdError as error:
        return error.found
    return "nothing"


def _size(parameters: Iterable[nn.Parameter]) -> str:
    """Parameters and their bytes."""
    values = list(parameters)
    size = human(sum(value.numel() * value.element_size() for value in values))
    return f"{sum(value.numel() for value in values):,} ({size})"
