"""Losses of MFD and Diff-Instruct: signs against closed forms, where gradients go, what the two have in common."""

import pytest
import torch

from mfd_cli.flow import interpolate
from mfd_cli.methods.diff_instruct import DiffInstruct, StartTimes
from mfd_cli.methods.matching import normalised, surrogate_loss
from mfd_cli.methods.mfd import MeanFlowDistillation, Regression, Solver
from mfd_cli.methods.predictions import data_direction
from mfd_cli.methods.registry import methods
from mfd_cli.methods.times import Times, intervals
from mfd_cli.solvers import integrate

SORTED = {"times": StartTimes(type="sorted-pair")}
METHODS = [
    (MeanFlowDistillation, {}),
    (MeanFlowDistillation, {"solver": Solver(type="midpoint", steps=3)}),
    (MeanFlowDistillation, {"weight": "normalised", "times": Times(type="uniform-start", min_interval=0.02)}),
    (DiffInstruct, {}),
    (DiffInstruct, {"weight": "data"}),
    (DiffInstruct, {"weight": "score", "times": StartTimes(max_start=0.9)}),
]

#: mean and deviation of P, deviation of Q, then the gradients (mean, deviation) of MFD and of VSD at the same s
SIGNS = [
    (1.0, 1.0, 1.0, (0.234, 0.0), (0.285, 0.0)),
    (0.0, 2.0, 1.0, (0.0, 0.223), (0.0, 0.255)),
    (0.0, 0.5, 1.0, (0.0, -0.076), (0.0, -0.081)),
    (1.0, 0.5, 1.0, (0.234, -0.075), (0.285, -0.080)),
]


@pytest.mark.parametrize(("mean", "deviation", "target", "mfd", "vsd"), SIGNS)
def test_gradients_of_gaussians_against_the_closed_form(world, build, mean, deviation, target, mfd, vsd):
    for kind, settings, expected in (
        (MeanFlowDistillation, {"solver": Solver(type="midpoint", steps=8)}, mfd),
        (DiffInstruct, SORTED, vsd),
    ):
        exact = world(mean, deviation, target)
        build(kind, **settings).student_loss(exact.batch(100_000)).value.backward()
        found = torch.stack([exact.student.mean.grad, exact.student.deviation.grad])
        torch.testing.assert_close(found, torch.tensor(expected), atol=0.008, rtol=0)


@pytest.mark.parametrize(("kind", "settings"), METHODS)
def test_the_gradient_vanishes_at_the_target(world, build, kind, settings):
    exact = world(0.0, 1.0, 1.0)
    loss = build(kind, **settings).student_loss(exact.batch(1000))
    loss.value.backward()
    assert abs(float(exact.student.mean.grad)) < 1e-6 and abs(float(exact.student.deviation.grad)) < 1e-6
    assert float(loss.report) < 1e-10


@pytest.mark.parametrize(("kind", "settings"), METHODS)
@pytest.mark.parametrize("steps", [1, 3])
def test_each_loss_moves_its_own_network_alone(world, build, kind, settings, steps):
    method, exact = build(kind, **settings), world()
    method.student_loss(exact.batch(16, steps=steps)).value.backward()
    assert exact.gradients() == {"student.mean", "student.deviation"}
    exact.student.zero_grad()
    method.auxiliary_loss(exact.batch(16, steps=steps)).value.backward()
    assert exact.gradients() == {"auxiliary.mean", "auxiliary.deviation"}


def test_the_gradient_is_s_times_the_difference_over_the_number_of_elements(world, build):
    """No Jacobian of the integration and no gradient of the fields: dL/dG = s D / numel, by hand."""
    exact = world(0.7, 1.4)
    build(MeanFlowDistillation).student_loss(exact.batch(32)).value.backward()
    random = exact.batch(32).random
    z, noise = random.normal("z", (1,)), random.normal("x0", (1,))
    s, t = intervals(random, Times())
    with torch.no_grad():
        x_s = interpolate(noise, 0.7 + 1.4 * z, s)
        auxiliary, teacher = (
            integrate(field, x_s, s, t, step_size=0.02).average_velocity for field in (exact.auxiliary, exact.teacher)
        )
        push = s[:, None] * (auxiliary - teacher) / 32
    torch.testing.assert_close(exact.student.mean.grad, push.sum())
    torch.testing.assert_close(exact.student.deviation.grad, (push * z).sum())


def test_no_gradient_flows_into_or_out_of_a_direction(world, build):
    """Both are needed: without the first the solver's whole graph is kept in memory."""
    exact = world()
    x, s = torch.ones(4, 1), torch.full((4,), 0.3)
    assert not build(MeanFlowDistillation).direction(exact.batch(4), x, s, s + 0.5).requires_grad
    assert not build(DiffInstruct).direction(exact.batch(4), x, s).requires_grad
    direction, point = torch.ones(4, 1, requires_grad=True), torch.ones(4, 1, requires_grad=True)
    surrogate_loss(2 * direction, point, s).value.backward()
    assert direction.grad is None and point.grad.flatten().tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("weight", "factor"), [("velocity", lambda s: s), ("data", lambda s: 1 - s), ("score", lambda s: s**2 / (1 - s))]
)
def test_weights_of_diff_instruct(world, build, weight, factor):
    exact = world()
    method = build(DiffInstruct, weight=weight, times=StartTimes(max_start=0.9))
    method.student_loss(exact.batch(32)).value.backward()
    random = exact.batch(32).random
    z, noise, s = random.normal("z", (1,)), random.normal("x0", (1,)), 0.9 * random.uniform("s")
    with torch.no_grad():
        x_s = interpolate(noise, 1.0 + 0.5 * z, s)
        push = factor(s)[:, None] * (exact.auxiliary(x_s, s) - exact.teacher(x_s, s)) / 32
    torch.testing.assert_close(exact.student.mean.grad, push.sum())


def test_the_auxiliary_regresses_to_the_displacement(world, build):
    exact = world()
    loss = build(MeanFlowDistillation).auxiliary_loss(exact.batch(64))
    random = exact.batch(64).random
    data, noise, t = 1.0 + 0.5 * random.normal("z", (1,)), random.normal("x0", (1,)), random.uniform("t")
    error = exact.auxiliary(interpolate(noise, data, t), t) - (data - noise)
    torch.testing.assert_close(loss.value, error.square().mean())


def test_the_exact_field_minimises_the_auxiliary_loss(world, build):
    exact = world()
    build(MeanFlowDistillation).auxiliary_loss(exact.batch(100_000)).value.backward()
    assert abs(float(exact.auxiliary.mean.grad)) < 0.02 and abs(float(exact.auxiliary.deviation.grad)) < 0.02


def test_the_noise_of_the_path_is_not_the_generators(world):
    random = world().batch(50_000).random
    z, noise = random.normal("z", (1,)), random.normal("x0", (1,))
    assert abs(float((z * noise).mean())) < 4 / 50_000**0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"times": Times(interval_share=0.0)},
        {"times": Times(interval_share=0.0), "solver": Solver(type="rk4", steps=1)},
        {"solver": Solver(type="euler", steps=1)},
        {"solver": Solver(type="euler", step_size=1.0)},
    ],
)
def test_mfd_becomes_vsd_for_empty_intervals_and_for_single_euler_steps(world, build, settings):
    """Bit for bit: same noise, same times, same losses, same gradients."""
    first, second = world(), world()
    mfd = build(MeanFlowDistillation, **settings).student_loss(first.batch(64))
    vsd = build(DiffInstruct, **SORTED).student_loss(second.batch(64))
    mfd.value.backward()
    vsd.value.backward()
    if settings.get("solver", Solver(steps=1)).type == "rk4":
        torch.testing.assert_close(mfd.value, vsd.value, atol=1e-6, rtol=0)
        return
    assert torch.equal(mfd.value, vsd.value) and torch.equal(mfd.report, vsd.report)
    assert torch.equal(first.student.mean.grad, second.student.mean.grad)
    assert torch.equal(first.student.deviation.grad, second.student.deviation.grad)


def test_mfd_with_intervals_is_not_vsd(world, build):
    mfd = build(MeanFlowDistillation).student_loss(world().batch(64)).value
    assert not torch.equal(mfd, build(DiffInstruct, **SORTED).student_loss(world().batch(64)).value)


@pytest.mark.parametrize(("kind", "settings"), METHODS)
@pytest.mark.parametrize("loss", ["student_loss", "auxiliary_loss"])
def test_a_batch_is_the_mean_of_its_samples(world, build, kind, settings, loss):
    method, exact = build(kind, **settings), world()
    whole = getattr(method, loss)(exact.batch(6)).value
    singles = [getattr(method, loss)(exact.batch(1, first=row)).value for row in range(6)]
    torch.testing.assert_close(whole, torch.stack(singles).mean(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "settings"), METHODS)
def test_what_is_reported(world, build, kind, settings):
    loss = build(kind, **settings).student_loss(world().batch(8))
    assert loss.value.shape == loss.report.shape == () and not loss.report.requires_grad
    assert float(loss.report) >= 0 and len(loss.times) == 8


def test_other_updates_have_other_noise(world, build):
    method = build(MeanFlowDistillation)
    first, second = (method.student_loss(world().batch(8, update=update)).value for update in (0, 1))
    assert not torch.equal(first, second)


def test_the_student_is_sampled_by_euler_steps(world):
    exact = world(1.0, 0.5)
    z = exact.batch(8).random.normal("z", (1,))
    torch.testing.assert_close(exact.batch(8).generate(), 1.0 + 0.5 * z)
    state = z
    for _ in range(4):
        state = state + (1.0 - 0.5 * state) / 4
    torch.testing.assert_close(exact.batch(8, steps=4).generate(), state)


@pytest.mark.parametrize("bad", [{}, {"steps": 2, "step_size": 0.1}, {"steps": 0}, {"step_size": 0.0}])
def test_a_solver_needs_exactly_one_length(bad):
    with pytest.raises(ValueError, match="step"):
        Solver(**bad)


def test_shipped_methods_are_registered():
    assert methods.get("mfd") is MeanFlowDistillation and methods.get("diff-instruct") is DiffInstruct


def test_early_weights_are_one_minus_the_start(world, build):
    exact = world(1.0, 0.5)
    batch = exact.batch(64)
    paper, early = (build(MeanFlowDistillation, weight=weight) for weight in ("paper", "early"))
    s, t = intervals(batch.random, paper.settings.times)
    noise, data = batch.random.normal("x0", (1,)), batch.generate()
    x_s = interpolate(noise, data, s)
    expected = ((1 - s[:, None]) * paper.direction(batch, x_s.detach(), s, t) * x_s).mean()
    torch.testing.assert_close(early.student_loss(batch).value, expected)
    assert float(paper.student_loss(batch).value.detach()) != pytest.approx(float(expected.detach()))


def test_normalised_weights_of_single_euler_steps_are_those_of_dmd2(world, build):
    exact = world(1.0, 0.5)
    batch = exact.batch(64)
    method = build(MeanFlowDistillation, weight="normalised", solver=Solver(type="euler", steps=1))
    s, _ = intervals(batch.random, method.settings.times)
    data = batch.generate()
    expected = (data_direction(batch, data.detach(), s, normalise=True) * data).mean()
    torch.testing.assert_close(method.student_loss(batch).value, expected)


def test_normalised_weights_are_by_the_error_of_the_average_velocity(world, build):
    """One sample of two numbers by hand: D over the mean of both errors, moved at X_1."""
    direction, error = torch.tensor([[3.0, 5.0]]), torch.tensor([[-1.0, 3.0]])
    torch.testing.assert_close(normalised(direction, error), torch.tensor([[1.5, 2.5]]))
    exact = world(1.0, 0.5)
    batch = exact.batch(64)
    method = build(MeanFlowDistillation, weight="normalised")
    s, t = intervals(batch.random, method.settings.times)
    noise, data = batch.random.normal("x0", (1,)), batch.generate()
    own, teacher = method.velocities(batch, interpolate(noise, data, s).detach(), s, t)
    expected = ((own - teacher) / (data.detach() - noise - teacher).abs() * data).mean()
    torch.testing.assert_close(method.student_loss(batch).value, expected)


def test_regression_is_towards_the_steps_of_the_shifted_grid(world, build):
    """Two Euler steps by hand, the first of shift 3: t / (t + 3 (1 - t)) at t = 1/2 is 1/4."""
    exact = world(0.0, 1.0, 1.0)
    batch = exact.batch(64)
    z = batch.random.normal("z", (1,))
    middle = z + 0.25 * exact.teacher(z, torch.zeros(64))
    target = middle + 0.75 * exact.teacher(middle, torch.full((64,), 0.25))
    method = build(MeanFlowDistillation, regression=Regression(weight=1.0, steps=2, shift=3.0))
    loss = method.student_loss(batch)
    data = batch.generate()
    torch.testing.assert_close(loss.parts["regression_loss"], (data - target).square().mean().detach())


def test_regression_pulls_towards_the_teachers_own_sample(world, build):
    """Where the auxiliary equals the teacher, the pull alone is left; it vanishes at the teacher's Euler map."""
    exact = world(0.0, 1.0, 1.0)
    batch = exact.batch(256)
    method = build(MeanFlowDistillation, regression=Regression(weight=2.0, steps=1))
    loss = method.student_loss(batch)
    z = batch.random.normal("z", (1,))
    target = z + exact.teacher(z, torch.zeros(256))
    torch.testing.assert_close(loss.parts["regression_loss"], (z - target).square().mean().detach())
    loss.value.backward()
    torch.testing.assert_close(
        exact.student.deviation.grad, (2 * 2 * (z - target) * z).mean().detach(), rtol=1e-3, atol=1e-4
    )
    assert exact.gradients() == {"student.mean", "student.deviation"}
    plain = build(MeanFlowDistillation).student_loss(batch)
    torch.testing.assert_close(loss.shown, plain.shown)
    assert not plain.parts
