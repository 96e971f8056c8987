"""Figures of a report's models, measured anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mfd_cli.config.schema import Evaluate
from mfd_cli.errors import MfdError
from mfd_cli.inference.benchmark import Contestant, Effort, Say, contestants, report
from mfd_cli.inference.models import Models
from mfd_cli.inference.quality import Judge, judge_of
from mfd_cli.inference.sampler import Sampler
from teachers.base import TeacherError


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
    effort = models.effort(num=num, seed=seed)
    counts = list(dict.fromkeys([student.steps, *(steps or ([2, 4] if student.any_steps else []))]))
    rows = [Contestant(student, count, student.config.get("method")) for count in counts]
    notes = list(models.notes)
    judge = _judge(models, effort, num is not None, notes)
    further = teacher_steps or _powers(models.teacher)
    everyone = contestants(models.teacher, rows, further)
    return report(everyone, data, effort, reference=judge, recipe=models.recipe.get("name"), notes=notes, say=say)


def _judge(models: Models, effort: Effort, asked: bool, notes: list[str]) -> Judge | None:
    """What quality is held against; None, with a note, if the data have nothing. Raises MfdError for too few asked."""
    assert models.student is not None and models.data is not None
    listed = Evaluate.model_validate({"metrics": models.evaluate.get("metrics") or []}).metrics
    try:
        return judge_of(models.data, effort.num, effort.seed, listed, models.student.device, models.teacher)
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
