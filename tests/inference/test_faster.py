"""Compiled and laid out otherwise: the same samples, or a refusal."""

import pytest
import torch
from torch import nn

from mfd_cli.errors import MfdError
from mfd_cli.inference import faster
from mfd_cli.inference.faster import make_faster
from mfd_cli.inference.sampler import teacher_sampler
from teachers.digits import DigitsData, DigitsSettings, DigitsTeacher
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher


@pytest.fixture(scope="module")
def digits():
    teacher = DigitsTeacher.load(DigitsSettings(type="digits", steps=2, guidance=1.5))
    return teacher_sampler(teacher), DigitsData.load(DigitsData.Settings(type="digits"), teacher)


def test_channels_last_changes_the_layout_and_nothing_else():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(4, 2))
    x = torch.randn(2, 3, 4, 4)
    before = network[0](x)
    faster._channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[2].weight.is_contiguous() and torch.allclose(network[0](x), before, atol=1e-6)


def test_samples_stay_what_they_were(digits):
    sampler, data = digits
    before = faster._states(sampler, data)
    make_faster([sampler], data, compiled=False, channels_last=True)
    assert torch.allclose(faster._states(sampler, data), before, atol=1e-5)


def test_another_model_is_refused(digits, monkeypatch):
    sampler, data = digits
    states = iter([torch.zeros(2, 4).double(), torch.ones(2, 4).double()])
    monkeypatch.setattr(faster, "_states", lambda *given: next(states))
    with pytest.raises(MfdError, match="--channels-last: the teacher's samples are others"):
        make_faster([sampler], data, compiled=False, channels_last=True)


def test_a_network_that_does_not_compile_is_refused(digits, monkeypatch):
    sampler, data = digits
    monkeypatch.setattr(sampler.network, "compile", lambda **given: None)
    before, failed = faster._states(sampler, data), []

    def states(*given):
        if failed:
            raise RuntimeError("no compiler\nlong trace")
        failed.append(True)
        return before

    monkeypatch.setattr(faster, "_states", states)
    with pytest.raises(MfdError, match=r"--compile: the teacher's network does not run \(RuntimeError: no compiler\)"):
        make_faster([sampler], data, compiled=True, channels_last=False)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_samples():
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm", steps=2))
    sampler = teacher_sampler(teacher)
    data = GaussianMixtureData.load(GaussianMixtureData.Settings(type="gmm"), teacher)
    before = faster._states(sampler, data)
    make_faster([sampler, sampler], data, compiled=True, channels_last=False)
    assert torch.allclose(faster._states(sampler, data), before, atol=1e-4)
    assert sampler.network._compiled_call_impl is not None
