"""DMD2 and SenseFlow: directions against a naive form, critics, backward simulation, and what the additions do."""

import pytest
import torch
from torch import nn

from mfd_cli.flow import time_grid
from mfd_cli.methods import critics
from mfd_cli.methods.adversarial import Adversarial
from mfd_cli.methods.base import Batch
from mfd_cli.methods.critics import TokenCritic
from mfd_cli.methods.dmd2 import Dmd2
from mfd_cli.methods.features import StateFeatures, features
from mfd_cli.methods.mfd import MeanFlowDistillation
from mfd_cli.methods.predictions import data_direction, middle_times, predict
from mfd_cli.methods.senseflow import FeatureCritic, Guidance, SenseFlow
from mfd_cli.seeds import Stream


class WithFeatures(nn.Module):
    """A field whose features are its inputs times a weight."""

    def __init__(self, field):
        super().__init__()
        self.field, self.scale = field, nn.Parameter(torch.tensor(1.0))

    def forward(self, x, t):
        return self.field(x, t)

    def features(self, x, t):
        return self.scale * torch.cat([x, x.square()], dim=1)[:, None]


def batch_of(exact, rows, *, steps=1, update=0, critic=None, data=None, real_mean=0.0):
    random = Stream(0, update, 0, rows)
    auxiliary = exact.auxiliary if isinstance(exact.auxiliary, WithFeatures) else WithFeatures(exact.auxiliary)
    exact.auxiliary = auxiliary
    real = real_mean + random.normal("real", (1,)) if data is None else data
    return Batch(
        random, (1,), time_grid(steps), exact.student, auxiliary, exact.teacher, data=real, frozen=exact.student,
        critic=critic, update=update,
    )  # fmt: skip


PLAIN = {"adversarial": None}
ALONE = {"adversarial": None, "guide": None, "inputs": "simulated"}


@pytest.mark.parametrize("normalise", [True, False])
def test_the_direction_against_a_naive_form(world, normalise):
    exact = world(1.0, 0.5)
    batch = batch_of(exact, 64)
    data, s = torch.randn(64, 1), middle_times(batch, 0.02)
    noise = batch.random.normal("x0", (1,))
    x_s = (1 - s[:, None]) * noise + s[:, None] * data
    fake, real = (x_s + (1 - s[:, None]) * field(x_s, s) for field in (exact.auxiliary, exact.teacher))
    expected = fake - real
    if normalise:
        expected = expected / (data - real).abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(data_direction(batch, data, s, normalise), expected.detach(), rtol=1e-4, atol=1e-5)
    assert float(s.min()) >= 0.02 and float(s.max()) <= 0.98


@pytest.mark.parametrize(
    ("kind", "settings"), [(Dmd2, PLAIN), (SenseFlow, ALONE), (Dmd2, PLAIN | {"normalise": False})]
)
@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.0), (-1.0, 1.0), (0.0, 2.0), (0.0, 0.5)])
def test_descent_leads_to_the_target(world, build, kind, settings, mean, deviation):
    exact = world(mean, deviation)
    build(kind, **settings).student_loss(batch_of(exact, 50_000)).value.backward()
    found = torch.stack([exact.student.mean.grad, exact.student.deviation.grad])
    wrong = torch.tensor([mean, deviation - 1.0])
    assert torch.equal(found.sign()[wrong != 0], wrong.sign()[wrong != 0])


@pytest.mark.parametrize(("kind", "settings"), [(Dmd2, PLAIN), (SenseFlow, ALONE)])
@pytest.mark.parametrize("steps", [1, 4])
def test_losses_move_their_own_role_alone(world, build, kind, settings, steps):
    exact, method = world(), build(kind, **settings)
    method.student_loss(batch_of(exact, 16, steps=steps)).value.backward()
    assert exact.gradients() == {"student.mean", "student.deviation"}
    exact.student.zero_grad()
    method.auxiliary_loss(batch_of(exact, 16, steps=steps)).value.backward()
    assert exact.gradients() == {"auxiliary.field.mean", "auxiliary.field.deviation"}


@pytest.mark.parametrize(
    ("kind", "critic"),
    [
        (Dmd2, Adversarial(weight=10.0)),
        (Dmd2, Adversarial(weight=10.0, features="state")),
        (MeanFlowDistillation, Adversarial(weight=10.0)),
        (MeanFlowDistillation, Adversarial(weight=10.0, features="state")),
        (SenseFlow, FeatureCritic(weight=10.0, omega="one")),
    ],
)
def test_the_critic_tells_apart_and_the_student_fools_it(world, build, kind, critic):
    """Student and auxiliary agree with the teacher, so that the critic alone moves the student: to the real mean."""
    exact = world(0.0, 1.0, 1.0)
    method = build(kind, adversarial=critic, **({"guide": None} if kind is SenseFlow else {}))
    assert method.needs_data
    torch.manual_seed(0)
    network = method.build_critic(lambda: batch_of(exact, 1))
    assert isinstance(network, TokenCritic)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for update in range(60):
        loss = method.auxiliary_loss(batch_of(exact, 256, update=update, critic=network, real_mean=2.0))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert float(loss.parts["critic_loss"]) < 0.9 * (2.0 if kind is SenseFlow else 1.386)
    exact.student.zero_grad()
    found = method.student_loss(batch_of(exact, 2000, critic=network, real_mean=2.0))
    found.value.backward()
    assert float(exact.student.mean.grad) < 0  # descent raises the mean
    assert "adversarial_loss" in found.parts and not found.parts["adversarial_loss"].requires_grad


def test_the_critic_of_noised_states_learns_through_the_auxiliarys_features(world, build):
    exact, method = world(), build(Dmd2)
    network = method.build_critic(lambda: batch_of(exact, 1))
    method.auxiliary_loss(batch_of(exact, 16, critic=network)).value.backward()
    assert exact.auxiliary.scale.grad is not None and all(value.grad is not None for value in network.parameters())
    assert exact.student.mean.grad is None


def test_the_critic_of_finished_samples_leaves_the_auxiliary_alone(world, build):
    exact, method = world(), build(Dmd2, adversarial=Adversarial(features="state"))
    network = method.build_critic(lambda: batch_of(exact, 1))
    method.auxiliary_loss(batch_of(exact, 16, critic=network)).value.backward()
    assert exact.auxiliary.scale.grad is None and all(value.grad is not None for value in network.parameters())
    with pytest.raises(ValueError, match="no feature extractor 'dino'; allowed: auxiliary, state, teacher"):
        Adversarial(features="dino")


def test_without_a_critic_no_data_are_needed(build):
    assert not build(Dmd2, **PLAIN).needs_data and build(Dmd2, **PLAIN).build_critic(None) is None
    assert build(Dmd2, inputs="data", **PLAIN).needs_data
    assert not build(SenseFlow, **ALONE).needs_data


def test_adversarial_losses_in_closed_form():
    logits = torch.tensor([-2.0, 0.0, 3.0])
    other = torch.tensor([1.0, -0.5, 0.0])
    torch.testing.assert_close(critics.fooling_loss(logits, "softplus"), (1 + (-logits).exp()).log())
    torch.testing.assert_close(critics.fooling_loss(logits, "hinge"), -logits)
    torch.testing.assert_close(
        critics.judging_loss(logits, other, "softplus"), (1 + other.exp()).log() + (1 + (-logits).exp()).log()
    )
    expected = (1 + other).clamp(min=0) + (1 - logits).clamp(min=0)
    torch.testing.assert_close(critics.judging_loss(logits, other, "hinge"), expected)


class Told(nn.Module):
    """Velocity 1 at any place; keeps the times it was told and whether gradients were wanted."""

    def __init__(self):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.tensor(1.0)), []

    def forward(self, x, t):
        self.asked.append((round(float(t[0]), 4), torch.is_grad_enabled()))
        return self.weight * torch.ones_like(x)


def test_backward_simulation_has_gradient_in_its_last_step_alone():
    seen = set()
    for update in range(40):
        student = Told()
        batch = Batch(Stream(0, update, 0, 3), (1,), time_grid(4), student, None, None, frozen=student)
        found = predict(batch, "simulated")
        *before, last = student.asked
        assert last[1] and not any(grad for _, grad in before)
        assert [time for time, _ in student.asked] == [0.25 * step for step in range(len(student.asked))]
        assert float(found.start[0]) == last[0] and float(found.end[0]) == last[0] + 0.25
        torch.testing.assert_close(found.data, found.state + (1 - last[0]))
        if not before:
            torch.testing.assert_close(found.state, batch.random.normal("z", (1,)))
        seen.add(len(student.asked))
    assert seen == {1, 2, 3, 4}


def test_inputs_may_be_noised_data():
    kinds = {}
    for update in range(60):
        student = Told()
        random = Stream(0, update, 0, 3)
        batch = Batch(random, (1,), time_grid(2), student, None, None, frozen=student, data=torch.full((3, 1), 100.0))
        for inputs in ("data", "both"):
            student.asked.clear()
            found = predict(batch, inputs)
            if float(found.start[0]) == 0.5:
                of_data = bool((found.state > 40).all())
                assert len(student.asked) == (1 if of_data else 2)
                kinds.setdefault(inputs, set()).add(of_data)
    assert kinds == {"data": {True}, "both": {True, False}}


def test_alignment_draws_the_auxiliary_to_the_student(build):
    student, auxiliary = [torch.ones(2)], [torch.zeros(2)]
    build(SenseFlow, align=0.9, **ALONE).align(student, auxiliary)
    torch.testing.assert_close(auxiliary[0], torch.full((2,), 0.1))
    torch.testing.assert_close(student[0], torch.ones(2))
    build(SenseFlow, align=1.0, **ALONE).align(student, auxiliary)
    build(Dmd2, **PLAIN).align(student, auxiliary)
    torch.testing.assert_close(auxiliary[0], torch.full((2,), 0.1))


def straight(value):
    return lambda x, t: torch.full_like(x, value)


@pytest.mark.parametrize("steps", [1, 3])
def test_guidance_vanishes_where_student_and_teacher_agree(build, steps):
    settings = {"adversarial": None, "inputs": "simulated", "guide": Guidance(weight=1.0)}
    method = build(SenseFlow, **settings)
    for velocity, expected in ((2.0, 0.0), (3.0, None)):
        student = straight(velocity)
        batch = Batch(Stream(0, 0, 0, 8), (1,), time_grid(steps), student, None, straight(2.0), frozen=student)
        found = method.guided(batch, predict(batch, "simulated"))
        if expected is None:
            # the target's way up to m is the teacher's, one slower
            length = 1 / steps
            share = 0.02 + 0.96 * batch.random.shared("m")
            assert float(found) == pytest.approx(share * length, abs=2e-3)
        else:
            assert float(found) == pytest.approx(expected, abs=1e-6)


def test_the_weight_of_a_one_step_students_critic(world, build):
    exact = world()
    for omega, silent in (("square", True), ("one", False)):
        method = build(SenseFlow, adversarial=FeatureCritic(omega=omega), guide=None)
        network = method.build_critic(lambda: batch_of(exact, 1))
        loss = method.student_loss(batch_of(exact, 16, critic=network))
        assert (float(loss.parts["adversarial_loss"]) == 0) is silent


def test_features_are_named_and_pluggable():
    class Squares:
        def __call__(self, field, samples):
            return samples.square()[:, None]

    assert features.names() == ["state", "teacher"]
    assert StateFeatures()(None, torch.ones(2, 3, 4)).shape == (2, 1, 12)
    with pytest.raises(ValueError, match="allowed: state, teacher"):
        FeatureCritic(features="dino")
    features.register("squares")(Squares)
    try:
        assert FeatureCritic(features="squares").features == "squares"
    finally:
        del features._registered["squares"]
