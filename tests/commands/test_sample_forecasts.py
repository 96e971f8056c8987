"""`mfd sample` of forecasts: pictures, films and numbers, of which clips, and beside the teacher where it is there."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mfd_cli.commands.sample import sample
from mfd_cli.errors import MfdError
from mfd_cli.inference import forecast_pictures
from mfd_cli.inference.sampler import load_student, load_teacher
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student, student_tensors
from teachers.base import TeacherError
from teachers.occfm.driving import DrivingClips, TinySettings, TinyTeacher


@pytest.fixture
def run(tiny_occfm, tmp_path, monkeypatch):
    """A finished run whose student is its teacher, as runs/here; the teacher's weights lie beside it."""
    monkeypatch.chdir(tmp_path)
    weights = shutil.copy(tiny_occfm, tmp_path / "teacher.safetensors")
    teacher = TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(weights), steps=2))
    folder = RunFolder(tmp_path / "runs" / "here")
    folder.root.mkdir(parents=True)
    folder.update_record(status="done")
    config = {
        "teacher": teacher.settings.model_dump(),
        "architecture": teacher.architecture,
        "student": {"steps": 1, "shift": 1.0},
        "data": {"type": "driving", "scenes": 1, "held_out": 2, "frames": 13},
        "recipe": {"name": "small"},
    }
    save_student(folder.student, config, student_tensors(teacher.network, teacher.carried()))
    return folder.root


@pytest.fixture
def quick_films(monkeypatch):
    """Films that are not drawn."""
    monkeypatch.setattr(forecast_pictures, "film", lambda forecasts, index: b"film")


def numbers(path):
    return np.load(path, allow_pickle=False)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_everything_is_written_and_the_teacher_shown_by_default(run, quick_films, capsys):
    path = sample(num=2, seed=1)
    assert path.resolve() == run / "samples" / "small-steps1-seed1.png"
    stem = "small-steps1-seed1"
    assert names(run / "samples") == [f"{stem}-clip1.gif", f"{stem}-clip3.gif", f"{stem}.npz", f"{stem}.png"]
    with Image.open(path) as picture:
        assert picture.info["models"] == "teacher, 2 steps, guidance 2; student, 1 step"
    found = numbers(path.with_suffix(".npz"))
    assert found["clips"].tolist() == [1, 3] and found["truth"].shape == (2, 6, 32, 32, 16)
    assert np.array_equal(found["samples"], load_student(run).sample(2, seed=1))
    assert np.array_equal(found["teacher_samples"], load_teacher(run).sample(2, seed=1))
    said = capsys.readouterr().err
    assert "teacher: 2 samples, 2 steps, 4 evaluations each" in said and "student: 2 samples, 1 step" in said


def test_clips_are_asked_for_by_number(run):
    found = numbers(sample(clip=[2, 0], num=3, teacher=False, output="x/some.npz"))
    assert found["clips"].tolist() == [2, 0, 2] and "teacher_samples" not in found
    student = load_student(run)
    assert np.array_equal(found["samples"], student.sample(3, asked=[2, 0, 2]))
    assert np.array_equal(found["truth"], student.teacher.clips().truth(torch.tensor([2, 0, 2])))
    assert names(run.parent.parent / "x") == ["some.npz"]


def test_without_the_teacher_s_weights_the_student_forecasts_alone(run, tmp_path, capsys):
    (tmp_path / "teacher.safetensors").unlink()
    found = numbers(sample(num=1, output="a.npz"))
    assert "teacher_samples" not in found and found["samples"].shape == (1, 6, 32, 32, 16)
    assert "the teacher is left out" in capsys.readouterr().err
    with pytest.raises(MfdError, match=r"teacher\.safetensors: no such file"):
        sample(num=1, teacher=True, output="b.npz")


def test_a_film_has_the_name_asked_for(run, tmp_path):
    assert str(sample(clip=[1], teacher=False, output="films/one.gif")) == "films/one.gif"
    with Image.open("films/one.gif") as picture:
        assert picture.format == "GIF" and picture.n_frames == 4 + 6
    assert names(tmp_path / "films") == ["one.gif"]


def test_several_films_are_numbered(run, quick_films, tmp_path):
    assert str(sample(clip=[1, 2], teacher=False, output="more/some.gif")) == "more", "where they are"
    assert names(tmp_path / "more") == ["some-clip1.gif", "some-clip2.gif"]


def test_a_folder_holds_all_of_it(run, quick_films, tmp_path):
    assert str(sample(clip=[3], teacher=False, output="out")) == "out"
    assert names(tmp_path / "out") == ["forecasts-clip3.gif", "forecasts.npz", "forecasts.png"]


def test_a_picture_of_too_many_clips_is_refused_and_numbers_are_not(run, quick_films, monkeypatch):
    monkeypatch.setattr(forecast_pictures, "LARGEST_PAGE", 1)
    with pytest.raises(MfdError, match="2 clips in one picture") as caught:
        sample(num=2, teacher=False, output="a.png")
    assert "-o forecasts.npz" in caught.value.do and names(run) == ["run.json", "student"]
    assert numbers(sample(num=2, teacher=False, output="a.npz"))["clips"].tolist() == [1, 3]
    path = sample(num=2, teacher=False)
    assert path.resolve() == run / "samples" and not any(name.endswith(".png") for name in names(path))


def test_missing_labels_are_a_note(run, monkeypatch, capsys):
    def missing(self, index):
        raise TeacherError("7 label files are missing")

    monkeypatch.setattr(DrivingClips, "truth", missing)
    assert "truth" not in numbers(sample(num=1, teacher=False, output="a.npz"))
    assert "no truth is shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"clip": [4]}, "held-out clips from 0 to 3"),
        ({"clip": [-1]}, "held-out clips from 0 to 3"),
        ({"clip": [0, 1], "num": 1}, "at least 2"),
        ({"label": [1]}, "takes numbers of held-out clips"),
        ({"prompt": ["rain"]}, "takes numbers of held-out clips"),
        ({"output": "x.mp4"}, "a film"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(run, request_, message):
    with pytest.raises(MfdError) as caught:
        sample(**request_)
    assert message in caught.value.allowed and names(run) == ["run.json", "student"]
