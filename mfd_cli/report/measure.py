"""The models of a report: what can be loaded of student, teacher and data, and their figures measured anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfd_cli.config.schema import Evaluate
from mfd_cli.errors import MfdError
from mfd_cli.inference.benchmark import Contestant, Effort, Say, contestants, report
from mfd_cli.inference.quality import Judge, judge_of
from mfd_cli.inference.sampler import Sampler, load_data, load_student, load_teacher
from teachers.base import Data, TeacherError

_NUM, _BATCH = 10_000, 500  # where the recipe's `evaluate` block does not say


@dataclass
class Models:
    """What could be loaded.

    Attributes:
        student: None if it could not be.
        teacher: None if its weights are missing, or the student was trained from nothing.
        data: None if its files are missing.
        notes: why something is None.
    """

    student: Sampler | None = None
    teacher: Sampler | None = None
    data: Data | None = None
    notes: list[str] = field(default_factory=list)


def load_models(stored: Path, *, device: str, dtype: str) -> Models:
    """Student, teacher and data of a stored student, as far as they are here.

    Raises:
        MfdError: no such precision.
    """
    models = Models()
    try:
        models.student = load_student(stored, device=device, dtype=dtype)
    except MfdError as error:
        models.notes.append(f"the student cannot be loaded: {error.found}")
        return models
    try:
        models.teacher = load_teacher(stored, device=device, dtype=dtype)
    except MfdError as error:
        models.notes.append(f"the teacher is left out: {error.found}")
    else:
        if models.student.config.get("identity") not in (None, models.teacher.teacher.whole_identity()):
            models.notes.append("the teacher's weights here are not those that the student was distilled from")
    try:
        models.data = load_data(models.student.config, (models.teacher or models.student).teacher)
    except MfdError as error:
        models.notes.append(f"the data are left out: {error.found}")
    return models


def measured(
    models: Models,
    *,
    steps: Sequence[int] = (),
    teacher_steps: Sequence[int] = (),
    num: int | None = None,
    seed: int = 0,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """A report as `mfd benchmark` makes it, with as many rows as a curve needs.

    Args:
        models: what was loaded; a student at least.
        steps: further steps of the student; of one made for any number, 2 and 4, if empty.
        teacher_steps: further steps of the teacher; powers of two below its own if empty.
        num: samples each model is judged by; the recipe's `evaluate.num` if None.
        seed: names noise, conditions and reference.
        say: is told what is being measured.

    Raises:
        MfdError: no student or no data to measure with, or too few samples.
    """
    student, data = models.student, models.data
    if student is None or data is None:
        raise MfdError(f"--benchmark: {'; '.join(models.notes)}", do="put the files there, or leave out --benchmark")
    blocks = student.config.get("recipe") or {}
    evaluate = blocks.get("evaluate") or {}
    effort = Effort(
        num=num or evaluate.get("num") or _NUM, batch_size=evaluate.get("batch_size") or _BATCH, seed=seed
    )  # fmt: skip
    counts = list(dict.fromkeys([student.steps, *(steps or ([2, 4] if student.any_steps else []))]))
    rows = [Contestant(student, count, student.config.get("method")) for count in counts]
    notes = list(models.notes)
    listed = Evaluate.model_validate({"metrics": evaluate.get("metrics") or []}).metrics
    judge = _judge(data, effort, listed, student, num is not None, notes)
    further = teacher_steps or _powers(models.teacher)
    everyone = contestants(models.teacher, rows, further)
    return report(everyone, data, effort, reference=judge, recipe=blocks.get("name"), notes=notes, say=say)


def _judge(
    data: Data, effort: Effort, listed: Sequence[Any], student: Sampler, asked: bool, notes: list[str]
) -> Judge | None:
    """What quality is held against; None, with a note, if the data have nothing. Raises MfdError for too few asked."""
    try:
        return judge_of(data, effort.num, effort.seed, listed, student.device)
    except TeacherError as error:
        notes.append(f"quality was not measured: {error.found}")
    except MfdError as error:
        if asked:
            raise
        notes.append(f"quality was not measured: {error.found}")
    return None


def _powers(teacher: Sampler | None) -> list[int]:
    """1, 2, 4 ... below the teacher's own number of steps."""
    own = 1 if teacher is None else teacher.steps
    return [2**power for power in range(own.bit_length()) if 2**power < own]
