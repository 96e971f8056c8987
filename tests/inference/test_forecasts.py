"""Forecasts held against what followed: made-up clips whose every figure is known, and models that are no networks."""

import pytest
import torch
from torch import nn

from mfd_cli.errors import MfdError
from mfd_cli.inference import occupancy
from mfd_cli.inference.forecasts import ForecastJudge
from mfd_cli.inference.quality import Reference, gap_recovered, judge_of
from mfd_cli.inference.sampler import Sampler
from mfd_cli.metrics.uncertainty import Measured
from mfd_cli.seeds import order
from teachers.base import Data, Teacher, TeacherError
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.settings import Settings, TeacherSettings

GRID = (6, 4, 3, 2)


def labels(count, seed=0):
    """Voxels of which a third is free, and some clips lack some classes."""
    drawn = torch.randint(0, 26, (count, *GRID), generator=torch.Generator().manual_seed(seed))
    return drawn.clamp(max=17).byte()


class Clips(Data):
    """`count` clips of drives of two clips each."""

    paired = True

    def __init__(self, count, truth=None, drives=None):
        self.labels = labels(count) if truth is None else truth
        self.drives = torch.arange(count) // 2 if drives is None else drives
        self.read = []

    @classmethod
    def load(cls, settings, teacher):
        return cls(4)

    @property
    def size(self):
        return len(self.labels)

    def condition(self, items):
        return {"clip": items}

    def truth(self, items):
        self.read.append(len(items))
        return self.labels[items]

    def baselines(self, items):
        return {"all free": torch.full((len(items), *GRID), 17, dtype=torch.uint8), "known": self.labels[items]}

    def groups(self, items):
        return self.drives[items]


class Unlabelled(Clips):
    """Clips whose label files are missing."""

    def truth(self, items):
        raise TeacherError("12 label files are missing")


class Family(Teacher):
    condition_kind = "clip"
    sample_kind = "occupancy"
    sample_shape = (1,)

    @classmethod
    def load(cls, settings):
        return cls(settings, {})

    def build_network(self):
        return nn.Identity()

    def identity(self):
        return {}


class Answers(Sampler):
    """A model that looks its forecasts up."""

    def __init__(self, answers):
        super().__init__("student", Family.load(TeacherSettings(type="family")), nn.Identity(), 1)
        self.answers, self.asked = answers, []

    def generate(self, noise, condition, *, steps=None, guidance=None, fresh=None):
        self.asked.append((condition["clip"].tolist(), steps))
        return condition["clip"]

    def decode(self, states):
        return self.answers[states]


def judged(data, answers, num=100, seed=0, batch_size=3):
    return ForecastJudge(data, num, seed).judge(Answers(answers), steps=1, batch_size=batch_size)


def naive(predicted, truth):
    """IoU of what is not free, and mean IoU of 17 classes (1 where a class is not there), frame by frame, in sets."""
    occupied, classes = [], []
    for frame in range(6):
        p, t = predicted[:, frame].flatten().tolist(), truth[:, frame].flatten().tolist()

        def places(labels, wanted):
            return {index for index, label in enumerate(labels) if wanted(label)}

        first, second = places(p, lambda label: label != 17), places(t, lambda label: label != 17)
        occupied.append(len(first & second) / len(first | second))
        ratios = []
        for number in range(17):
            first, second = (places(each, lambda label, n=number: label == n) for each in (p, t))
            ratios.append(len(first & second) / len(first | second) if second else 1.0)
        classes.append(sum(ratios) / 17)
    return 100 * sum(occupied) / 6, 100 * sum(classes) / 6


def test_a_perfect_forecast_scores_100_in_every_figure():
    data = Clips(5)
    found = judged(data, data.labels)
    assert {"iou", "miou", "miou_strict", "iou_1_2_3s", "miou_3.0s", "iou_0.5s"} <= found.keys()
    assert all(figure == Measured(100.0, 0.0, 5, True) for figure in found.values())


def test_a_forecast_of_nothing_has_no_overlap():
    data = Clips(3)
    assert judged(data, torch.full_like(data.labels, 17))["iou"].value == 0


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_counts_are_pooled_over_all_clips_before_they_are_divided(batch_size):
    data = Clips(5)
    answers = torch.where(torch.rand(data.labels.shape, generator=torch.Generator().manual_seed(1)) < 0.6,
                          data.labels, labels(5, seed=2))  # fmt: skip
    answers[0] = 17  # one clip is far worse, so that a mean of the clips' own ratios would be another number
    found = judged(data, answers, batch_size=batch_size)
    iou, miou = naive(answers, data.labels)
    assert (found["iou"].value, found["miou"].value) == pytest.approx((iou, miou))
    alone = [naive(answers[[clip]], data.labels[[clip]])[0] for clip in range(5)]
    assert abs(sum(alone) / 5 - iou) > 1


def test_each_clip_is_judged_once_and_no_more_than_there_are():
    data = Clips(5)
    judge, model = ForecastJudge(data, 100, 0), Answers(data.labels)
    assert judge.num == judge.count == 5
    judge.judge(model, steps=7, batch_size=2)
    assert sorted(clip for clips, _ in model.asked for clip in clips) == [0, 1, 2, 3, 4]
    assert [(len(clips), steps) for clips, steps in model.asked] == [(2, 7), (2, 7), (1, 7)]


def test_fewer_clips_are_chosen_by_the_seed():
    data = Clips(9)
    for seed in (0, 1):
        model = Answers(data.labels)
        found = ForecastJudge(data, 4, seed).judge(model, steps=1, batch_size=4)
        assert model.asked[0][0] == order(seed, 9, 0, 4).tolist() and found["iou"].num == 4
    assert order(0, 9, 0, 4).tolist() != order(1, 9, 0, 4).tolist()


def test_baselines_are_scored_on_the_same_clips():
    data = Clips(20)
    judge = ForecastJudge(data, 11, 3)
    found = judge.baselines()
    assert found["known"]["miou"] == Measured(100.0, 0.0, 11, True)
    items = order(3, 20, 0, 11)
    expected = occupancy.count(torch.full((11, *GRID), 17, dtype=torch.uint8), data.labels[items])
    values = occupancy.figures(occupancy.pooled(expected))
    assert {name: figure.value for name, figure in found["all free"].items()} == pytest.approx(values)
    assert max(data.read) == 8, "truth is read in parts"


def test_missing_labels_are_told_before_anything_is_computed():
    with pytest.raises(TeacherError, match="12 label files are missing"):
        ForecastJudge(Unlabelled(4), 10, 0)


def test_no_clips_are_no_judge():
    with pytest.raises(MfdError, match="no held-out clips") as caught:
        ForecastJudge(Clips(0), 10, 0)
    assert "data source" in caught.value.do


def test_standard_errors_are_of_whole_drives():
    each, answers = labels(4), labels(4, seed=5)
    answers[:2] = each[:2]
    alone = judged(Clips(4, each, torch.arange(4)), answers)
    twice = judged(Clips(8, torch.cat([each, each]), torch.arange(4).repeat(2)), torch.cat([answers, answers]))
    for name, figure in alone.items():
        # every drive twice as long: the same figures, of no more drives
        assert twice[name].value == pytest.approx(figure.value)
        assert twice[name].standard_error == pytest.approx(figure.standard_error)
    assert alone["iou"].standard_error > 0 and (alone["iou"].num, twice["iou"].num) == (4, 8)
    apart = judged(Clips(8, torch.cat([each, each]), torch.arange(8)), torch.cat([answers, answers]))
    assert apart["iou"].standard_error < twice["iou"].standard_error


def test_one_drive_says_nothing_of_others():
    data = Clips(4, drives=torch.zeros(4, dtype=torch.long))
    found = judged(data, labels(4, seed=5))
    assert 0 < found["iou"].value < 100 and found["iou"].standard_error == 0


def test_clips_with_an_answer_are_judged_by_it_and_other_data_by_distances(monkeypatch):
    held_out = Clips(3)
    data = Clips(5)
    monkeypatch.setattr(data, "held_out", lambda: held_out)
    judge = judge_of(data, 10, 0)
    assert isinstance(judge, ForecastJudge) and judge.data is held_out and judge.num == 3
    mixture = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    plain = judge_of(GaussianMixtureData.load(Settings(type="gmm"), mixture), 50, 0)
    assert isinstance(plain, Reference) and plain.baselines() == {}


@pytest.mark.parametrize("metric", ["iou", "miou", "miou_strict", "iou_1_2_3s"])
def test_more_overlap_is_better(metric):
    few, student, many = ({metric: Measured(value, 0.1, 100, True)} for value in (20.0, 29.5, 30.0))
    assert gap_recovered(few, student, many)[metric] == pytest.approx(0.95)
    assert gap_recovered(many, student, few)[metric] is None
