"""Velocity networks as flow maps: where they start, what they learn, what they carry."""

import copy
import warnings

import pytest
import torch
from torch import nn

from mfd_cli.methods.trajectories import Derivatives, DerivativeSettings
from teachers.digits import DigitsSettings, DigitsTeacher
from teachers.errors import TeacherError
from teachers.gmm import GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.guidance import AverageVelocityField, Evaluations
from teachers.networks.flow_map import FlowMapNetwork
from teachers.occfm.driving import TinySettings, TinyTeacher
from teachers.pipelines.sana import SanaTeacher


def gmm():
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    return teacher, teacher.build_network(), {}


def digits():
    teacher = DigitsTeacher.load(DigitsSettings(type="digits"))
    return teacher, teacher.initial_network(0), {"label": torch.tensor([3, 7])}


def occfm(tiny_occfm):
    teacher = TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(tiny_occfm)))
    shape = teacher.sample_shape
    condition = {"history": torch.randn(2, *shape), "trajectory": torch.randn(2, 12, 2)}
    return teacher, teacher.initial_network(0), condition


def sana(tiny_sana):
    teacher = SanaTeacher.load(SanaTeacher.Settings(type="sana", model=str(tiny_sana)))
    return teacher, teacher.initial_network(0), teacher.encode(["a cat", "a dog"])


@pytest.fixture(params=["gmm", "digits", "occfm", "sana"])
def case(request):
    if request.param in ("gmm", "digits"):
        return {"gmm": gmm, "digits": digits}[request.param]()
    files = request.getfixturevalue(f"tiny_{request.param}")
    return {"occfm": occfm, "sana": sana}[request.param](files)


def times(*values):
    return torch.tensor(values)


def test_a_map_starts_as_the_velocity_whatever_the_length(case):
    teacher, network, condition = case
    x, s = torch.randn(2, *teacher.sample_shape), times(0.1, 0.6)
    with torch.no_grad():
        expected = teacher.velocity(network, x, s, condition)
        field = AverageVelocityField(teacher, teacher.flow_map(network), condition)
        for t in (None, times(0.1, 0.6), times(0.5, 1.0)):
            torch.testing.assert_close(field(x, s, t), expected)


def test_a_map_learns_of_the_length(case):
    teacher, network, condition = case
    field_of = teacher.flow_map(network)
    with torch.no_grad():
        field_of.length[-1].weight.normal_()
    field = AverageVelocityField(teacher, field_of, condition, counter := Evaluations())
    x, s = torch.randn(2, *teacher.sample_shape), times(0.1, 0.6)
    with torch.no_grad():
        short, long = field(x, s, times(0.2, 0.7)), field(x, s, times(0.9, 1.0))
        assert not torch.allclose(short, long, atol=1e-4)
        # rows have lengths of their own
        torch.testing.assert_close(field.rows(slice(1, 2))(x[1:], s[1:], times(1.0)), long[1:], atol=1e-4, rtol=1e-4)
    assert counter.rows == 5


def test_a_copy_does_not_share_the_length(case):
    teacher, network, condition = case
    first = teacher.flow_map(network)
    with torch.no_grad():
        first.length[-1].weight.normal_()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.length[-1].weight.zero_()
    x, s, t = torch.randn(2, *teacher.sample_shape), times(0.1, 0.6), times(0.9, 1.0)
    with torch.no_grad():
        one, two = (AverageVelocityField(teacher, each, condition)(x, s, t) for each in (first, second))
    assert not torch.allclose(one, two, atol=1e-4)
    assert first.state_dict().keys() == second.state_dict().keys()


def test_the_projection_gets_a_gradient_at_once(case):
    teacher, network, condition = case
    field_of = teacher.flow_map(network)
    AverageVelocityField(teacher, field_of, condition)(
        torch.randn(2, *teacher.sample_shape), times(0.1, 0.2), times(0.5, 1.0)
    ).square().mean().backward()
    assert float(field_of.length[-1].weight.grad.abs().max()) > 0


def test_a_family_without_a_time_layer_says_so():
    class Silent(GaussianMixtureTeacher):
        def time_layer(self, network):
            return None

    teacher = Silent.load(GaussianMixtureSettings(type="gmm"))
    with pytest.raises(TeacherError, match="cannot become a flow map"):
        teacher.flow_map(teacher.build_network())


def test_a_layer_without_width_is_refused():
    network = nn.Sequential(nn.Linear(2, 2), nn.SiLU())
    with pytest.raises(ValueError, match="holds no linear layer"):
        FlowMapNetwork(network, "1")


def test_forward_mode_goes_through_every_family(case):
    """Attention, norms and convolutions that are installed have forward mode; a difference says the same."""
    teacher, network, condition = case
    torch.manual_seed(0)
    field_of = teacher.flow_map(network)
    with torch.no_grad():
        field_of.length[-1].weight.normal_(std=0.1)
    field = AverageVelocityField(teacher, field_of, condition)
    x, v = torch.randn(2, 2, *teacher.sample_shape)
    s, t = times(0.2, 0.5), times(0.6, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        forward = Derivatives(DerivativeSettings(type="auto"))
        value, change = forward.along_start(field, x, s, t, v)
        _, ending = forward.along_end(field, x, s, t)
    difference = Derivatives(DerivativeSettings(type="difference", step=2e-4))
    same, nearly = difference.along_start(field, x, s, t, v)
    _, nearly_ending = difference.along_end(field, x, s, t)
    torch.testing.assert_close(value, same, rtol=1e-4, atol=1e-4)
    for found, expected in ((change, nearly), (ending, nearly_ending)):
        error = float((found - expected).norm() / expected.norm())
        assert error < 0.05, error
