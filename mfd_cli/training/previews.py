"""Pictures while training: teacher and student on the same seeds, from update 0 on."""

from __future__ import annotations

from pathlib import Path

from mfd_cli.inference.pictures import comparison, save_png
from mfd_cli.inference.sampler import Sampler
from teachers.base import Data, TeacherError

_SEED = 0  # the same in every preview, so that pictures of different updates can be laid side by side
_POINTS = 2000


def save_preview(
    path: Path, teacher: Sampler | None, student: Sampler, data: Data, update: int, num: int | None = None
) -> None:
    """Draws teacher (its own steps and the student's) and student from the same noise.

    Args:
        path: PNG to write.
        teacher: the teacher, guided and stepped as its settings say, if there is one.
        student: the student as it would be saved now.
        data: for the target's modes and, with points, its samples.
        update: student updates done, kept in the picture's metadata.
        num: samples shown; the family's choice if None.
    """
    family = student.teacher
    count = num or (_POINTS if family.sample_kind == "points" else family.shown)
    target = None
    if family.sample_kind == "points":
        try:
            target = data.reference(count, _SEED)
        except TeacherError:
            target = None
    training = student.network.training
    student.network.eval()
    shown = [] if teacher is None else [(teacher, teacher.steps), (teacher, student.steps)]
    picture = comparison(
        [*shown, (student, student.steps)],
        count=count, seed=_SEED, modes=data.modes(), target=target,
    )  # fmt: skip
    student.network.train(training)
    path.parent.mkdir(exist_ok=True)
    save_png(path, picture, {"update": update, "seed": _SEED})
