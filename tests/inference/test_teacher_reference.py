"""Samples held against the teacher's: the distances are those of independently drawn sets, made once, in one pass."""

import pytest
import torch

from mfd_cli.config.schema import Evaluate
from mfd_cli.errors import MfdError
from mfd_cli.inference.quality import Reference, judge_of
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.metrics.frechet import frechet_distance
from mfd_cli.metrics.mmd import MmdTo, gaussian, median_distance
from mfd_cli.metrics.neighbours import precision_recall
from mfd_cli.metrics.sliced import sliced_wasserstein
from teachers.base import Data
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.settings import Settings

NUM = 120
BLOCKS = [
    {"type": name, "reference": "teacher"} for name in ("frechet", "sliced-wasserstein", "mmd", "precision-recall")
]


class _Prompts(GaussianMixtureData):
    """The mixture as if it were prompts: no real samples."""

    @property
    def size(self):
        return 7

    def reference(self, count, seed):
        return Data.reference(self, count, seed)

    def texts(self, items):
        return [f"point {item}" for item in items.tolist()]


@pytest.fixture
def teacher() -> Sampler:
    return teacher_sampler(GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm", steps=20)))


def _data(teacher, kind=GaussianMixtureData):
    return kind.load(Settings(type="gmm"), teacher.teacher)


def _listed(*blocks):
    return Evaluate.model_validate({"metrics": list(blocks)}).metrics


def _drawn(teacher, steps, seed):
    return teacher.decode(teacher.generate(teacher.noise(NUM, seed=seed), {}, steps=steps))


@pytest.mark.parametrize("kind", [GaussianMixtureData, _Prompts])
def test_distances_are_those_to_the_teachers_samples_from_other_noise(teacher, kind):
    judge = judge_of(_data(teacher, kind), NUM, 5, _listed(*BLOCKS), teacher=teacher)
    found = judge.judge(teacher, steps=2, batch_size=50)
    mine, theirs = _drawn(teacher, 2, seed=5), _drawn(teacher, 20, seed=6)
    expected = {
        "frechet_teacher": frechet_distance(mine, theirs),
        "sliced_wasserstein_teacher": sliced_wasserstein(mine, theirs, seed=5),
        "mmd_teacher": MmdTo(theirs, gaussian(median_distance(theirs))).measured(mine).value,
        **{f"{name}_teacher": figure.value for name, figure in precision_recall(theirs, mine, 5).items()},
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, rel=1e-4)
    assert {name for name in found if name.endswith("teacher")} == set(expected)
    assert all(found[name].more_is_better == higher_is_better(name) for name in expected)
    real = {"frechet", "sliced_wasserstein"} if kind is GaussianMixtureData else set()
    assert {name for name in found if name in ("frechet", "sliced_wasserstein")} == real, "beside the real samples"
    assert judge.described()["frechet_teacher"] == {"type": "frechet", "reference": "teacher"}


def test_the_teacher_itself_has_the_distance_of_two_sets_of_one_distribution(teacher):
    judge = judge_of(_data(teacher), NUM, 0, _listed(*BLOCKS), teacher=teacher)
    itself, few = (judge.judge(teacher, steps=steps, batch_size=50) for steps in (20, 1))
    assert 0 < itself["frechet_teacher"].value < few["frechet_teacher"].value / 10


def test_the_reference_is_made_once_whatever_is_listed(teacher):
    before = teacher.evaluations.rows
    judge_of(_data(teacher), NUM, 0, _listed(*BLOCKS, {**BLOCKS[0], "label": "again"}), teacher=teacher)
    assert teacher.evaluations.rows - before == 20 * NUM
    before = teacher.evaluations.rows
    judge_of(_data(teacher), NUM, 0, _listed({"type": "mmd"}), teacher=teacher)
    assert teacher.evaluations.rows == before, "nothing is held against it"


def test_without_the_teacher_there_is_no_such_reference(teacher):
    with pytest.raises(MfdError, match="mmd: reference: teacher, and the teacher is not here"):
        Reference(_data(teacher), NUM, 0, _listed({"type": "mmd", "reference": "teacher"}))


def test_samples_of_the_teacher_that_are_not_finite_are_no_reference(teacher):
    broken = Sampler("teacher", teacher.teacher, teacher.network, 2)
    broken.generate = lambda noise, condition, steps=None, fresh=None: torch.full_like(noise, torch.nan)  # type: ignore[method-assign]
    with pytest.raises(MfdError, match="NaN or infinite"):
        judge_of(_data(teacher), NUM, 0, _listed(BLOCKS[0]), teacher=broken)
