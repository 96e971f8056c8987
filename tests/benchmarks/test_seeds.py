"""The floor against cases that are known, and a smoke run that distills for real."""

import json

import pytest
import torch

from mfd_cli.errors import MfdError
from teachers.base import Data


class Points(Data):
    """Given points as real data."""

    def __init__(self, points):
        self.points = points

    @classmethod
    def load(cls, settings, teacher):
        raise NotImplementedError

    @property
    def size(self):
        return None if self.points is None else len(self.points)

    def condition(self, items):
        return {}

    def reference(self, count, seed):
        return self.points


@pytest.fixture
def module(script):
    return script("seeds")


def test_the_floor_of_equal_points_is_zero_and_that_of_random_ones_is_not(module):
    assert module.floor(Points(torch.ones(40, 3)), 2) == {"frechet": 0.0, "sliced_wasserstein": 0.0}
    random = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    found = module.floor(Points(random), 4)
    # halves of 1000: |difference of means|^2 alone is 3 x 2 / 1000 on average
    assert 0.006 < found["frechet"] < 0.02 and 0.01 < found["sliced_wasserstein"] < 0.1
    assert module.floor(Points(None), 2) is None


def test_a_failed_run_is_an_error_with_what_the_command_said(module, tmp_path):
    with pytest.raises(MfdError, match="no-such-recipe"):
        module.distilled("no-such-recipe", 0, [], tmp_path / "run")


@pytest.mark.slow
def test_a_quick_run(module, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module.main([tiny, "--quick", "--seeds", "5", "--json", "found.json", "--plot", "found.png", "--output", "runs"])
    found = json.loads((tmp_path / "found.json").read_text())
    (run,) = found["runs"]
    assert run["seed"] == 5 and 0 < run["student_seconds"] <= run["total_seconds"]
    assert json.loads((tmp_path / "runs/seed-5/run.json").read_text())["update"] == 2
    one, many = (row["metrics"]["sliced_wasserstein"] for row in found["teacher"])
    recovered = (one - run["metrics"]["sliced_wasserstein"]) / (one - many)
    assert run["gap_recovered"]["3"]["sliced_wasserstein"] == pytest.approx(recovered)
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
