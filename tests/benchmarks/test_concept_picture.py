"""The picture of docs/concepts.md: its paths against a closed form, and a smoke run that draws."""

import json

import pytest
import torch

from mfd_cli.errors import MfdError
from teachers.gmm import MixtureField


@pytest.fixture
def module(script):
    return script("concept_picture")


def test_a_path_of_one_gaussian_is_the_known_one(module):
    mean, deviation, s, t = torch.tensor([[2.0, -1.0]]), 0.5, 0.2, 0.9
    field = MixtureField(mean, torch.tensor([deviation]), torch.ones(1))
    x = torch.tensor([[1.0, 1.0], [0.0, -2.0]])
    found = module.path(field, x, s, t)

    def spread(time):  # standard deviation of X_time; a path keeps its distance from the mean in these units
        return ((1 - time) ** 2 + (time * deviation) ** 2) ** 0.5

    exact = t * mean + (x - s * mean) * spread(t) / spread(s)
    assert torch.equal(found[0], x) and torch.allclose(found[-1], exact, atol=0.01)


def test_a_quick_run_draws_the_same_twice(module, tiny, tmp_path):
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for picture in pictures:
        module.main([tiny, "--quick", "--json", str(tmp_path / "found.json"), "--plot", str(picture)])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    found = json.loads((tmp_path / "found.json").read_text())
    draw = found["draw"]
    start = [(1 - draw["s"]) * noise + draw["s"] * data for noise, data in zip(draw["x0"], draw["x1"], strict=True)]
    assert draw["xs"] == pytest.approx(start, abs=1e-5) and draw["teacher"][0] == draw["auxiliary"][0] == draw["xs"]
    ends = zip(draw["auxiliary"][-1], draw["teacher"][-1], strict=True)
    assert draw["D"] == pytest.approx([(one - other) / (draw["t"] - draw["s"]) for one, other in ends], abs=1e-5)
    assert len(found["points"]) == len(found["moves"]) == 10


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--interval", "0.9", "0.3"], "--interval"),
        (["--sample", "120"], "--sample"),
        (["--update", "9999"], "the training has 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(module, tiny, arguments, found):
    with pytest.raises(MfdError, match=found):
        module.main([tiny, *arguments])


def test_pictures_have_no_concept_picture(module, tiny_digits):
    with pytest.raises(MfdError, match="not points of a plane"):
        module.main([tiny_digits, "--quick"])
