"""Pictures while training: teacher and student on the same seeds, from update 0 on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mfd_cli.inference.pictures import comparison, extent, save_png, wrapped
from mfd_cli.inference.sampler import Sampler
from teachers.base import Data, TeacherError

_SEED = 0  # the same in every preview, so that pictures of different updates can be laid side by side
_POINTS = 2000
_TITLE, _MARGIN, _INK = 14, 12, (25, 25, 25)  # font size, pixels, colour


def save_preview(
    path: Path | None,
    teacher: Sampler | None,
    student: Sampler,
    data: Data,
    update: int,
    num: int | None = None,
    quality: str | None = None,
) -> None:
    """Draws teacher (its own steps and the student's) and student from the same noise.

    Args:
        path: PNG to write; None on a process that only takes part in sampling sharded networks.
        teacher: the teacher, guided and stepped as its settings say, if there is one.
        student: the student as it would be saved now.
        data: for the target's modes and, with points, its samples.
        update: student updates done, kept in the picture's metadata.
        num: samples shown; the family's choice if None.
        quality: a line about the student's quality, for the title; None where it was not judged.
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
    if path is None:
        return
    path.parent.mkdir(exist_ok=True)
    title = quality or f"update {update}"
    save_png(
        path, headed(picture, title), {"update": update, "seed": _SEED} | ({"quality": quality} if quality else {})
    )


def headed(picture: Image.Image, title: str) -> Image.Image:
    """The picture below a line of text."""
    font = ImageFont.load_default(size=_TITLE)
    text = wrapped(title, font, picture.width - 2 * _MARGIN, 3)
    head = extent(text, font)[1] + _MARGIN
    page = Image.new("RGB", (picture.width, picture.height + head), "white")
    ImageDraw.Draw(page).multiline_text((_MARGIN, _MARGIN), text, _INK, font)
    page.paste(picture, (0, head))
    return page
