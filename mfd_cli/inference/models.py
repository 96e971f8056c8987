"""The models that a report is about: student, teacher and data of a stored student, as far as they are here."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfd_cli.errors import MfdError
from mfd_cli.inference.benchmark import Effort, Say
from mfd_cli.inference.sampler import Sampler, load_data, load_student, load_teacher
from teachers.base import Data

_NUM, _BATCH = 10_000, 500  # where the recipe's `evaluate` block does not say


@dataclass
class Models:
    """What could be loaded.

    Attributes:
        student: None if it could not be.
        teacher: None if its weights are missing, or the student was trained from nothing.
        data: None if its files are missing.
        notes: why something is None, or not what it should be.
    """

    student: Sampler | None = None
    teacher: Sampler | None = None
    data: Data | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> dict[str, Any]:
        """The blocks of the recipe that made the student; empty where it does not say."""
        return (self.student.config.get("recipe") or {}) if self.student is not None else {}

    @property
    def evaluate(self) -> dict[str, Any]:
        """The recipe's `evaluate` block."""
        return self.recipe.get("evaluate") or {}

    def effort(self, *, num: int | None, seed: int, batch_size: int | None = None, **speed: Any) -> Effort:
        """How much to measure: as asked, and as the recipe's `evaluate` block says where nothing is asked.

        Args:
            num: samples each model is judged by.
            seed: names noise, conditions and reference.
            batch_size: samples generated at once while judging.
            speed: how speed is timed.
        """
        return Effort(
            num=num or self.evaluate.get("num") or _NUM,
            batch_size=batch_size or self.evaluate.get("batch_size") or _BATCH,
            seed=seed,
            **speed,
        )


def load_models(
    stored: str | Path,
    *,
    device: str,
    dtype: str,
    required: Collection[str] = (),
    stand_in: bool = False,
    say: Say = lambda text: None,
) -> Models:
    """Student, teacher and data of a stored student. What is missing is a note, unless it is required.

    Args:
        stored: run folder, checkpoint or export.
        device: where they compute.
        dtype: precision of their networks: fp32, bf16 or fp16.
        required: of "student", "teacher" and "data", those without which there is nothing to do.
        stand_in: whether data whose files are missing are replaced by what is enough to time with.
        say: is told every note.

    Raises:
        MfdError: something required is missing, or no such precision.
    """
    models = Models()

    def note(text: str) -> None:
        models.notes.append(text)
        say(text)

    @contextlib.contextmanager
    def unless_missing(name: str, consequence: str) -> Iterator[None]:
        try:
            yield
        except MfdError as error:
            if name in required:
                raise
            note(f"{consequence}: {error.found}")

    with unless_missing("student", "the student cannot be loaded"):
        models.student = load_student(stored, device=device, dtype=dtype)
    if models.student is None:
        return models
    with unless_missing("teacher", "the teacher is left out"):
        models.teacher = load_teacher(stored, device=device, dtype=dtype)
    if models.teacher is not None and _other(models.student, models.teacher):
        note("the teacher's weights here are not those that the student was distilled from")
    adapter = (models.teacher or models.student).teacher
    with unless_missing("data", "timed with stand-in conditions" if stand_in else "the data are left out"):
        models.data = load_data(models.student.config, adapter)
    if models.data is None and stand_in:
        models.data = load_data(models.student.config, adapter, stand_in=True)
    return models


def _other(student: Sampler, teacher: Sampler) -> bool:
    """Whether these are known not to be the weights that the student was distilled from."""
    return student.config.get("identity") not in (None, teacher.teacher.whole_identity())
