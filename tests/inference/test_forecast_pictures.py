"""Forecasts of the smallest teacher: which clips, from which noise, and what is written of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mfd_cli.errors import MfdError
from mfd_cli.inference.forecast_pictures import LARGEST_PAGE, Forecasts, arrays, files, film, forecast, page
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from teachers.base import TeacherError
from teachers.occfm.driving import DrivingClips, DrivingData, DrivingSettings, TinySettings, TinyTeacher

DATA = {"type": "driving", "scenes": 1, "held_out": 2, "frames": 13}


@pytest.fixture(scope="module")
def samplers(tiny_occfm):
    """Teacher and student, each with an adapter of its own; the student knows its data."""
    first, second = (TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(tiny_occfm))) for _ in range(2))
    DrivingData.load(DrivingSettings(**DATA), first)
    return teacher_sampler(first), Sampler("student", second, second.network, 1, config={"data": DATA})


@pytest.fixture(scope="module")
def found(samplers):
    teacher, student = samplers
    return forecast([(teacher, 2), (student, 1)], count=2, seed=3, asked=[3, 0])


def small(count, truth=True):
    """Made-up forecasts in a tiny grid, four frames seen."""
    drawn = torch.randint(0, 18, (count, 16, 8, 8, 4), generator=torch.Generator().manual_seed(0)).byte()
    return Forecasts(
        list(range(count)), drawn[:, :4], drawn[:, 4:10] if truth else None, [drawn[:, 10:]], ["student, 1 step"], 0, []
    )


def test_all_samplers_forecast_the_same_clips_from_the_same_noise(found, samplers):
    teacher, student = samplers
    assert found.clips == [3, 0] and found.seed == 3 and found.notes == []
    assert found.titles == ["teacher, 2 steps, guidance 2", "student, 1 step"]
    assert student.teacher.clips == teacher.teacher.clips
    for sampler, steps, samples in zip(samplers, (2, 1), found.samples, strict=True):
        assert samples.shape == (2, 6, 32, 32, 16) and samples.dtype == torch.uint8
        assert torch.equal(samples, sampler.sample(2, steps=steps, seed=3, asked=[3, 0]))


def test_truth_and_history_are_those_of_the_clips(found, samplers):
    held_out = samplers[0].teacher.clips()
    items = torch.tensor([3, 0])
    assert torch.equal(found.truth, held_out.truth(items))
    assert torch.equal(found.history, held_out.context(items)) and found.history.shape == (2, 4, 32, 32, 16)


def test_a_sampler_finds_its_clips_and_spreads_over_them(samplers):
    student = samplers[1]
    student.teacher.clips = None
    assert forecast([(student, 1)], count=2, seed=0).clips == [1, 3]


def test_without_labels_the_history_is_the_compressor_s_and_a_note_says_so(samplers, monkeypatch):
    def missing(self, index):
        raise TeacherError("7 label files are missing")

    for name in ("truth", "history_labels"):
        monkeypatch.setattr(DrivingClips, name, missing)
    teacher = samplers[0]
    found = forecast([(teacher, 1)], count=1, seed=0, asked=[2])
    assert found.truth is None and "7 label files are missing" in found.notes[0]
    latents = teacher.teacher.clips().clips.latents(torch.tensor([2]))[0, 2:6]
    assert (found.history[0] == teacher.teacher.compressor().decode(latents)).float().mean() > 0.999
    assert found.history.shape == (1, 4, 32, 32, 16) and "truth" not in arrays(found)


def test_numbers_have_the_names_of_what_they_are(found):
    numbers = arrays(found)
    assert numbers.keys() == {"seed", "clips", "history", "truth", "samples", "teacher_samples"}
    teacher, student = found.samples
    assert np.array_equal(numbers["teacher_samples"], teacher) and np.array_equal(numbers["samples"], student)
    assert (numbers["seed"], numbers["clips"]) == (3, [3, 0])


def test_a_page_grows_with_clips_and_rows():
    one, two, blind = page(small(1)), page(small(2)), page(small(1, truth=False))
    assert two.width == one.width and two.height > 1.5 * one.height and blind.height < one.height


def test_a_film_shows_the_history_and_then_the_forecast():
    with Image.open(io.BytesIO(film(small(2), 1))) as picture:
        assert picture.format == "GIF" and picture.n_frames == 4 + 6


def test_everything_is_written_under_one_stem():
    forecasts = small(2)
    written = files(forecasts, "night", {"seed": 5})
    assert list(written) == ["night.png", "night-clip0.gif", "night-clip1.gif", "night.npz"]
    with Image.open(io.BytesIO(written["night.png"])) as picture:
        assert picture.info["seed"] == "5" and picture.size == page(forecasts).size
    numbers = np.load(io.BytesIO(written["night.npz"]), allow_pickle=False)
    assert numbers["clips"].tolist() == [0, 1] and np.array_equal(numbers["samples"], forecasts.samples[0])
    assert written["night-clip1.gif"] == film(forecasts, 1) != written["night-clip0.gif"]


@pytest.mark.parametrize(("kind", "names"), [("png", ["a.png"]), ("gif", ["a-clip0.gif"]), ("npz", ["a.npz"])])
def test_only_the_kind_asked_for_is_made(kind, names):
    assert list(files(small(1), "a", {}, (kind,))) == names


def test_more_clips_than_a_page_has_room_for():
    many = small(LARGEST_PAGE + 1)
    with pytest.raises(MfdError, match=f"{LARGEST_PAGE + 1} clips in one picture") as caught:
        page(many)
    assert "-o forecasts.npz" in caught.value.do
    with pytest.raises(MfdError, match="in one picture"):
        files(many, "a", {}, ("png",))
    assert list(files(many, "a", {}, ("png", "npz"))) == ["a.npz"], "what was advised is possible"
