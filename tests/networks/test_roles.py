"""Student and auxiliary, their optimizers and rates."""

import math

import pytest
import torch
from torch import nn

from mfd_cli.config.schema import Optimizer
from mfd_cli.networks.roles import build_optimizer, build_roles, learning_rate
from teachers.base import Teacher
from teachers.settings import TeacherSettings


class Tiny(Teacher):
    sample_shape = (2,)

    @classmethod
    def load(cls, settings):
        teacher = cls(settings, {})
        torch.manual_seed(0)
        teacher.network = teacher.build_network().eval().requires_grad_(False)
        return teacher

    def build_network(self):
        return nn.Linear(2, 2)

    def identity(self):
        return {}


def roles(ema=0.9, **settings):
    block = Optimizer(**settings)
    teacher = Tiny.load(TeacherSettings(type="tiny"))
    return teacher, build_roles(
        teacher, block, Optimizer(lr=5e-4), seed=0, updates=100, aux_updates=500, ema=ema, device=torch.device("cpu")
    )


def weights(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def test_all_start_as_the_teacher_and_share_nothing():
    teacher, built = roles()
    networks = [teacher.network, built.student.network, built.auxiliary.network, built.average.network]
    assert all(torch.equal(weights(network), weights(teacher.network)) for network in networks)
    assert len({value.data_ptr() for network in networks for value in network.parameters()}) == 8
    assert [built.student.updates, built.auxiliary.updates] == [100, 500]
    assert built.auxiliary.settings.lr == 5e-4 and built.student.parameter_names() == ["weight", "bias"]


def test_an_update_moves_one_role_alone():
    teacher, built = roles()
    before = weights(teacher.network)
    built.student.network(torch.ones(3, 2)).sum().backward()
    built.student.optimizer.step()
    assert not torch.equal(weights(built.student.network), before)
    assert torch.equal(weights(built.auxiliary.network), before) and torch.equal(weights(teacher.network), before)


def test_the_final_network_is_the_average_if_there_is_one():
    _, built = roles()
    assert built.final() is built.average.network
    _, built = roles(ema=None)
    assert built.average is None and built.final() is built.student.network


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizers(name, kind):
    optimizer = build_optimizer(
        nn.Linear(2, 2), Optimizer(type=name, lr=3e-4, betas=(0.0, 0.99), weight_decay=0.1, eps=1e-6)
    )
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (3e-4, (0.0, 0.99), 0.1, 1e-6)


def test_frozen_parameters_are_left_out():
    network = nn.Linear(2, 2)
    network.weight.requires_grad_(False)
    assert [len(group["params"]) for group in build_optimizer(network, Optimizer()).param_groups] == [1]


def test_constant_rate():
    assert {learning_rate(Optimizer(lr=1.0), done, 10) for done in range(10)} == {1.0}


def test_linear_and_cosine_rates():
    linear = Optimizer(lr=2.0, schedule="linear", final=0.1)
    cosine = Optimizer(lr=2.0, schedule="cosine", final=0.1)
    for settings in (linear, cosine):
        assert learning_rate(settings, 0, 100) == 2.0
        assert learning_rate(settings, 50, 100) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
        assert learning_rate(settings, 100, 100) == pytest.approx(0.2)
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert learning_rate(cosine, 25, 100) == pytest.approx(2.0 * quarter)
    assert learning_rate(linear, 25, 100) == pytest.approx(2.0 * (0.1 + 0.9 * 0.75))


def test_warm_up_is_a_line_to_the_peak():
    settings = Optimizer(lr=1.0, schedule="cosine", final=0.0, warmup=4)
    assert [learning_rate(settings, done, 20) for done in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(settings, 12, 20) == pytest.approx(0.5)


def test_a_run_that_is_all_warm_up():
    assert learning_rate(Optimizer(lr=1.0, schedule="cosine", warmup=10), 3, 5) == pytest.approx(0.4)


def test_the_rate_reaches_the_optimizer():
    _, built = roles(lr=1.0, schedule="linear", final=0.0)
    assert built.student.set_rate(25) == 0.75
    assert [group["lr"] for group in built.student.optimizer.param_groups] == [0.75]
