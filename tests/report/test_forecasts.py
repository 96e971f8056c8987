"""Forecasts on the page: a table of frames for each clip, beside what followed."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mfd_cli.inference.models import Models
from mfd_cli.inference.occupancy_pictures import COLOURS, birds_eye
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from mfd_cli.report.gather import Gathered
from mfd_cli.report.page import render
from mfd_cli.report.samples import Samples, draw
from teachers.occfm.classes import CLASSES, FREE
from teachers.occfm.driving import DrivingData, DrivingSettings, TinySettings, TinyTeacher


@pytest.fixture(scope="module")
def forecasts(tiny_occfm: Path) -> tuple[Models, Samples]:
    """A teacher of two steps and a student that is the same network."""
    adapter = TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(tiny_occfm), steps=2))
    data = DrivingData.load(DrivingSettings(type="driving", scenes=1, held_out=2, frames=13), adapter)
    adapter.clips = data.held_out
    teacher = teacher_sampler(adapter)
    assert adapter.network is not None
    models = Models(Sampler("student", adapter, adapter.network, 1), teacher, data)
    return models, draw(models)


def test_every_clip_has_its_truth_and_every_model(forecasts: tuple[Models, Samples]) -> None:
    _, found = forecasts
    assert found.kind == "occupancy" and len(found.clips) == 3
    titles = [strip.title for strip in found.clips[0].strips]
    assert titles == ["what followed", "teacher, 2 steps, guidance 2", "teacher, 1 step, guidance 2", "student, 1 step"]
    for clip in found.clips:
        assert clip.times == ["now", "+0.5 s", "+1.0 s", "+1.5 s", "+2.0 s", "+2.5 s", "+3.0 s"]
        assert all(len(strip.pictures) == 7 for strip in clip.strips)


def test_frames_are_the_truth_from_above_and_the_legend_names_their_classes(forecasts: tuple[Models, Samples]) -> None:
    models, found = forecasts
    assert models.student is not None and models.student.teacher.clips is not None
    number = int(found.clips[1].title.rsplit(" ", 1)[1])
    import torch

    truth = models.student.teacher.clips().truth(torch.tensor([number]))[0]
    shown = found.clips[1].strips[0].pictures[3]
    content = Image.open(io.BytesIO(base64.b64decode(shown.uri.split(",")[1])))
    assert np.array_equal(np.asarray(content), birds_eye(truth[2]))
    assert shown.alt == f"what followed, clip {number}, +1.5 s"
    names = {name for _, name in found.legend}
    assert {CLASSES[label].replace("_", " ") for label in np.unique(truth).tolist() if label != FREE} <= names
    assert CLASSES[FREE] not in names and len(found.legend) < len(COLOURS)


def test_the_page_says_which_frame_is_which(forecasts: tuple[Models, Samples]) -> None:
    text = render(Gathered("made", "made"), forecasts[1])
    assert text.count("<img ") == 3 * 4 * 7 and 'alt="student, 1 step, clip' in text
    assert 'aria-label="Colours of classes"' in text and 'fill="rgb(255,0,255)"' in text
