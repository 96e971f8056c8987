"""Pictures: layout that never covers an image, faithful pixels, the same noise for every row."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mfd_cli.errors import MfdError
from mfd_cli.inference import pictures
from mfd_cli.inference.sampler import Sampler
from mfd_cli.seeds import Stream
from teachers.base import Modes, Teacher
from teachers.settings import TeacherSettings

BLUE = torch.tensor([0.0, 0.0, 1.0])[:, None, None]


class Still(nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)


class Plain(Teacher):
    """A family whose velocity is zero, so that its samples are its noise."""

    @classmethod
    def load(cls, settings):
        raise NotImplementedError

    @property
    def sample_shape(self):
        return (2,) if self.sample_kind == "points" else (1, 8, 8)

    def build_network(self):
        return Still()

    def decode(self, latents):
        return latents if self.sample_kind == "points" else ((latents + 1) / 2).clamp(0, 1)

    def identity(self):
        return {}


class Points(Plain):
    sample_kind = "points"


def sampler(cls, name="student", **changes):
    return Sampler(name, cls(TeacherSettings(type="still"), {}), Still(), steps=1, **changes)


def blue_pixels(page):
    return (np.asarray(page) == [0, 0, 255]).all(-1)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((8, 8), (48, 48)), ((28, 28), (56, 56)), ((64, 48), (64, 48)), ((2048, 1024), (512, 256))],
)
@pytest.mark.parametrize("captions", [[], ["a prompt of many words that has to be wrapped", "x", "unbreakable" * 12]])
def test_text_never_covers_an_image(shape, shown, captions):
    images = BLUE.expand(3, 3, *shape)
    page = pictures.image_grid(
        [("teacher, 10 steps, guidance 1.5", images), ("student, 1 step", images)], captions=captions
    )
    assert blue_pixels(page).sum() == 6 * shown[0] * shown[1]


def test_every_image_is_there_in_its_order_when_rows_are_broken():
    # image k is the colour (255, 4 k, 0), which no text has
    colours = torch.tensor([[255, 4 * number, 0] for number in range(45)]) / 255
    images = colours[:, :, None, None].expand(45, 3, 8, 8)
    page = np.asarray(pictures.image_grid([("student, 1 step", images)], captions=[i % 10 for i in range(45)]))
    places = [np.argwhere((page == [255, 4 * number, 0]).all(-1)) for number in range(45)]
    assert [len(place) for place in places] == [48 * 48] * 45
    corners = [place.min(0).tolist() for place in places]
    assert corners == sorted(corners)
    assert len({row for row, _ in corners}) == 3


def test_captions_that_repeat_are_drawn_once():
    images = torch.zeros(40, 1, 8, 8)
    again = pictures.image_grid([("a", images), ("b", images)], captions=[i % 10 for i in range(40)])
    new = pictures.image_grid([("a", images), ("b", images)], captions=list(range(10, 50)))
    assert again.height < new.height


def test_small_images_keep_square_pixels():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 2, 3] = 0.2
    page = np.asarray(pictures.image_grid([("", image)]))
    found = np.argwhere((page == 51).all(-1))
    assert len(found) == 36
    assert (found.max(0) - found.min(0) + 1).tolist() == [6, 6]


def test_values_are_rounded_and_clipped():
    picture = pictures.to_picture(torch.tensor([[[-1.0, 0.5, 2.0, 0.999]]]))
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0, 128, 255, 255]]
    assert pictures.to_picture(torch.zeros(3, 2, 2)).mode == "RGB"


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_points_of_any_dimension_are_drawn(dim):
    cloud = torch.randn(300, dim, generator=torch.Generator().manual_seed(0))
    modes = Modes(torch.zeros(1, dim), torch.ones(1))
    page = pictures.points_picture([("noise", cloud), ("student, 1 step", cloud + 1)], modes if dim > 1 else None)
    colours = np.asarray(page).reshape(-1, 3).astype(int)
    assert ((colours[:, 0] - colours[:, 2]) > 60).sum() > 100  # the student's orange
    assert page.width > 1.5 * page.height


def test_points_lie_where_they_should():
    corner = torch.tensor([[3.0, 3.0]]).expand(400, 2) + 0.01 * torch.randn(400, 2)
    page = pictures.points_picture([("student, 1 step", torch.cat([corner, -corner]))])
    pixels = np.asarray(page).astype(int)
    orange = np.argwhere(pixels[..., 0] - pixels[..., 2] > 60)
    low, high = orange[orange[:, 0] > orange[:, 0].mean()], orange[orange[:, 0] < orange[:, 0].mean()]
    assert low[:, 1].max() < high[:, 1].min()  # (3, 3) is above and to the right of (-3, -3)


def test_drawing_leaves_pyplot_alone():
    import sys

    before = "matplotlib.pyplot" in sys.modules
    pictures.points_picture([("noise", torch.randn(10, 2))])
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_comparison_shows_every_sampler_on_the_same_noise(monkeypatch):
    seen = {}
    monkeypatch.setattr(pictures, "image_grid", lambda rows, captions: seen.update(rows=rows, captions=captions))
    pairs = [(sampler(Plain, "teacher", guidance=1.0), 10), (sampler(Plain), 1)]
    pictures.comparison(pairs, count=4, seed=7, asked=[3, 1, 4, 1])
    assert [title for title, _ in seen["rows"]] == ["noise", "teacher, 10 steps", "student, 1 step"]
    noise, teacher, student = (images for _, images in seen["rows"])
    expected = ((Stream(7, 0, 0, 4).normal("sample", (1, 8, 8)) + 1) / 2).clamp(0, 1)
    assert torch.equal(noise, expected) and torch.equal(student, expected)
    assert torch.allclose(teacher, expected)
    assert seen["captions"] == [3, 1, 4, 1]


def test_comparison_of_points_has_noise_target_and_samplers(monkeypatch):
    seen = {}
    monkeypatch.setattr(pictures, "points_picture", lambda panels, modes: seen.update(panels=panels, modes=modes))
    target, modes = torch.ones(5, 2), Modes(torch.zeros(1, 2), torch.ones(1))
    pictures.comparison([(sampler(Points), 2)], count=6, seed=0, modes=modes, target=target)
    assert [title for title, _ in seen["panels"]] == ["noise", "target", "student, 2 steps"]
    assert seen["panels"][1][1] is target and seen["modes"] is modes


def test_titles_tell_steps_and_guidance():
    assert pictures.title_of(sampler(Plain), 1) == "student, 1 step"
    assert pictures.title_of(sampler(Plain, "teacher", guidance=1.5), 10) == "teacher, 10 steps, guidance 1.5"


def test_too_many_images_for_one_picture_are_refused_before_sampling():
    student = sampler(Plain)
    with pytest.raises(MfdError, match="at most 1000"):
        pictures.comparison([(student, 1)], count=1001, seed=0)
    assert student.evaluations.rows == 0


def test_png_carries_its_facts(tmp_path):
    path = tmp_path / "new" / "grid.png"
    pictures.save_png(path, Image.new("RGB", (3, 2), "white"), {"seed": 4, "models": "student, 1 step"})
    with Image.open(path) as found:
        assert found.size == (3, 2)
        assert found.info["seed"] == "4" and found.info["models"] == "student, 1 step"
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]
