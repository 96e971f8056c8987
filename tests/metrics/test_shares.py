"""Shares of samples: modes placed by hand, classes that are known."""

import pytest
import torch

from mfd_cli.metrics.contract import Against, Batch, MetricSettings
from mfd_cli.metrics.shares import ClassAgreement, mode_members, mode_shares
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.settings import Settings


def test_mode_shares_of_placed_points():
    means, deviations = torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([1.0, 0.5])
    samples = torch.tensor([[0.0, 2.9], [0.0, 3.1], [10.0, 1.4], [10.0, 1.6], [0.1, 0.0]])
    assert mode_members(samples, means, deviations).tolist() == [0, -1, 1, -1, 0]
    shares = mode_shares(samples, means, deviations)
    assert shares.shares.tolist() == pytest.approx([0.4, 0.2]) and shares.inside == pytest.approx(0.6)
    assert mode_shares(samples, means, deviations, radius=4).inside == 1


def test_a_lost_mode_has_share_zero():
    shares = mode_shares(torch.zeros(4, 2), torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, 9.0]]), torch.ones(3))
    assert shares.shares.tolist() == [1, 0, 0]


def _data(classes):
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    data = GaussianMixtureData.load(Settings(type="gmm"), teacher)
    data.classify = classes
    return data


def test_class_agreement_counts_what_was_asked_and_shown():
    metric = ClassAgreement(MetricSettings(type="class-agreement"))
    metric.prepare(Against(_data(lambda samples: samples[:, 0].long()), 4, 0))
    shown = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    rows = metric.rows(Batch(shown, torch.arange(4), torch.tensor([1, 2, 0, 4])))
    found = metric.figures(rows, torch.arange(4))["class_agreement"]
    assert (found.value, found.num, found.more_is_better) == (0.75, 4, True)
    assert found.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert metric.figures(metric.rows(Batch(shown, torch.arange(4))), torch.arange(4)) == {}, "nothing was asked"
