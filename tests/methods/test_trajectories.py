"""Methods that follow the teacher's trajectories, on a Gaussian whose flow map is known: where their gradients vanish,
which way they point, and derivatives against differences.
"""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from mfd_cli.errors import MfdError
from mfd_cli.flow import predicted_data, time_grid
from mfd_cli.methods.ayf import AlignYourFlow, LengthTimes
from mfd_cli.methods.cd import ConsistencyDistillation, NeighbourTimes
from mfd_cli.methods.meanflow import MeanFlow, MeanFlowTimes
from mfd_cli.methods.times import intervals
from mfd_cli.methods.trajectories import Derivatives, DerivativeSettings, TangentSettings, step_towards

FULL = TangentSettings(normalise=None, warmup=0, final=1.0)
MAPS = [
    (AlignYourFlow, {"objective": "emd", "tangent": FULL}),
    (AlignYourFlow, {"objective": "lmd", "tangent": FULL}),
    (MeanFlow, {"times": MeanFlowTimes(interval_share=1.0), "power": 0.0}),
]
CONSISTENT = [
    (ConsistencyDistillation, {"form": "continuous", "tangent": FULL}),
    (ConsistencyDistillation, {"solver": "heun", "grid": NeighbourTimes(intervals=200, shift=1.0)}),
]
EVERY = [*MAPS, *CONSISTENT]


def field_of(kind, exact):
    return exact if kind.flow_map else exact.to_data


@pytest.mark.parametrize(("kind", "settings"), EVERY)
def test_the_exact_map_is_where_losses_vanish(build, exact_map, map_batch, kind, settings):
    exact = exact_map()
    loss = build(kind, **settings).student_loss(map_batch(field_of(kind, exact), exact, 4000))
    assert float(loss.shown) < 1e-6


@pytest.mark.parametrize(("kind", "settings"), EVERY)
@pytest.mark.parametrize("wrong", [{"offset": 0.2}, {"offset": -0.2}, {"slope": 0.2}, {"slope": -0.2}])
def test_descent_leads_to_the_exact_map(build, exact_map, map_batch, offset, kind, settings, wrong):
    exact = exact_map()
    student = offset(field_of(kind, exact), **wrong)
    build(kind, **settings).student_loss(map_batch(student, exact, 20_000)).value.backward()
    ((name, value),) = wrong.items()
    assert student.get_parameter(name).grad.sign().item() == torch.tensor(value).sign().item()


@pytest.mark.parametrize("objective", ["emd", "lmd"])
def test_without_the_derivative_term_a_map_learns_a_velocity(build, exact_map, map_batch, objective):
    """With r = 0, Euler steps of any length are at rest: at s for the Eulerian form."""
    exact = exact_map()
    method = build(AlignYourFlow, objective=objective, tangent=FULL)
    batch = map_batch(lambda x, s, t: exact.velocity(x, s), exact, 1000)
    s, t = torch.full((1000,), 0.2), torch.full((1000,), 0.9)
    x_s = torch.randn(1000, 1)
    if objective == "emd":
        assert float(method.eulerian(batch, x_s, s, t, 0.0).abs().max()) < 1e-6
        assert float(method.eulerian(batch, x_s, s, t, 1.0).abs().max()) > 1e-2
    else:
        assert float(method.lagrangian(batch, x_s, s, t, 1.0).abs().max()) > 1e-2


def test_a_consistency_step_is_one_of_the_teacher(build, exact_map, map_batch):
    exact = exact_map()
    batch = map_batch(exact.to_data, exact, 500)
    grid = NeighbourTimes(intervals=10, shift=2.0)
    s, later = build(ConsistencyDistillation, grid=grid).neighbours(batch)
    times = time_grid(10, 2.0)
    found = {(float(a), float(b)) for a, b in zip(s, later, strict=True)}
    assert found == {(float(a), float(b)) for a, b in pairwise(times)}
    x_s = torch.randn(500, 1)
    euler, heun = (
        build(ConsistencyDistillation, grid=grid, solver=name).teacher_step(batch, x_s, s, later)
        for name in ("euler", "heun")
    )
    truth = exact.arrival(x_s, s, later)
    torch.testing.assert_close(euler, x_s + (later - s)[:, None] * exact.velocity(x_s, s))
    assert float((heun - truth).abs().mean()) < 0.2 * float((euler - truth).abs().mean())


@pytest.mark.parametrize(
    ("settings", "distance"),
    [
        ({}, lambda d, width: d.square().mean(1)),
        ({"huber": 0.1}, lambda d, width: (d.square().sum(1) + 0.01).sqrt() - 0.1),
        ({"weight": "interval"}, lambda d, width: d.square().mean(1) / width),
    ],
)
def test_consistency_against_a_naive_loss(build, exact_map, map_batch, offset, settings, distance):
    """The target is a constant: the naive loss uses a frozen copy."""
    exact = exact_map()
    student = offset(exact.to_data, 0.3, -0.1)
    method, batch = build(ConsistencyDistillation, **settings), map_batch(student, exact, 64)
    loss = method.student_loss(batch)
    loss.value.backward()
    target, twin = copy.deepcopy(student), copy.deepcopy(student)
    twin.zero_grad()
    s, later = method.neighbours(batch)
    noise = batch.random.normal("x0", (1,))
    x_s = (1 - s[:, None]) * noise + s[:, None] * batch.real
    moved = x_s + (later - s)[:, None] * exact.velocity(x_s, s)
    wanted = predicted_data(moved, target(moved, later), later).detach()
    value = distance(predicted_data(x_s, twin(x_s, s), s) - wanted, later - s).mean()
    value.backward()
    torch.testing.assert_close(loss.value, value)
    for name in ("offset", "slope"):
        torch.testing.assert_close(student.get_parameter(name).grad, twin.get_parameter(name).grad)


def test_the_average_can_be_the_target(build, exact_map, map_batch, offset):
    exact = exact_map()
    student, average = offset(exact.to_data, 0.3), offset(exact.to_data, 0.0)
    batch = map_batch(student, exact, 64)
    object.__setattr__(batch, "average", average)
    own, other = (
        float(build(ConsistencyDistillation, target=target).student_loss(batch).value.detach())
        for target in ("student", "average")
    )
    assert own != pytest.approx(other)


@pytest.mark.parametrize(("power", "constant"), [(0.0, 1e-3), (1.0, 1e-3), (0.75, 0.1)])
def test_meanflow_against_a_naive_loss(build, exact_map, map_batch, offset, power, constant):
    exact = exact_map()
    student = offset(exact, 0.3, -0.1)
    method = build(MeanFlow, velocity="data", power=power, constant=constant)
    batch = map_batch(student, exact, 64)
    loss = method.student_loss(batch)
    loss.value.backward()
    twin, frozen = copy.deepcopy(student), copy.deepcopy(student).double().requires_grad_(False)
    twin.zero_grad()
    s, t = intervals(batch.random, method.settings.times)
    assert 0.5 < float((s == t).float().mean()) < 0.95
    noise = batch.random.normal("x0", (1,))
    x_s, v = (1 - s[:, None]) * noise + s[:, None] * batch.real, batch.real - noise
    step = 1e-5

    def moved(sign):
        return frozen(x_s.double() + sign * step * v, s.double() + sign * step, t.double())

    change = ((moved(1) - moved(-1)) / (2 * step)).float()
    total = (twin(x_s, s, t) - (v + (t - s)[:, None] * change)).square().sum(1)
    value = (total / (total.detach() + constant) ** power).mean()
    value.backward()
    torch.testing.assert_close(loss.value, value, rtol=2e-3, atol=1e-4)
    for name in ("offset", "slope"):
        torch.testing.assert_close(
            student.get_parameter(name).grad, twin.get_parameter(name).grad, rtol=5e-3, atol=1e-3
        )


class Attentive(nn.Module):
    """A field of tokens with attention through PyTorch's fused kernel."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 12)

    def forward(self, x, s, t):
        tokens = torch.cat(
            [x.unflatten(1, (8, 2)), s[:, None, None].expand(-1, 8, 1), t[:, None, None].expand(-1, 8, 1)], 2
        )
        query, key, value = self.project(tokens)[:, None].chunk(3, dim=-1)
        return functional.scaled_dot_product_attention(query, key, value)[:, 0, :, :2].flatten(1)


@pytest.mark.parametrize("kind", ["forward", "difference", "auto"])
def test_derivatives_against_differences_in_double_precision(kind):
    torch.manual_seed(0)
    field, wide = Attentive(), Attentive().double()
    wide.load_state_dict({name: value.double() for name, value in field.state_dict().items()})
    x, v = torch.randn(5, 16), torch.randn(5, 16)
    s, t = torch.rand(5) * 0.4 + 0.1, torch.rand(5) * 0.3 + 0.6
    derivatives = Derivatives(DerivativeSettings(type=kind, step=2e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, change = derivatives.along_start(field, x, s, t, v)
        same, ending = derivatives.along_end(field, x, s, t)
    torch.testing.assert_close(value, field(x, s, t))
    torch.testing.assert_close(same, value)
    step = 1e-5
    x, s, t, v = x.double(), s.double(), t.double(), v.double()
    along = (wide(x + step * v, s + step, t) - wide(x - step * v, s - step, t)) / (2 * step)
    end = (wide(x, s, t + step) - wide(x, s, t - step)) / (2 * step)
    tolerance = 1e-5 if kind != "difference" else 2e-3
    torch.testing.assert_close(change.double(), along, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ending.double(), end, atol=tolerance, rtol=tolerance)
    assert not value.requires_grad and not change.requires_grad


def test_differences_stay_inside_the_interval():
    asked = []

    def field(x, s, t):
        asked.append((s.clone(), t.clone()))
        return s[:, None] * x

    derivatives = Derivatives(DerivativeSettings(type="difference", step=0.1))
    s, t = torch.tensor([0.0, 0.5, 0.95, 0.0]), torch.tensor([0.3, 0.52, 1.0, 0.0])
    _, change = derivatives.along_start(field, torch.ones(4, 1), s, t, torch.zeros(4, 1))
    torch.testing.assert_close(change[:3], torch.ones(3, 1))
    assert float(change[3]) == 0  # an empty interval has no derivative, and needs none
    derivatives.along_end(field, torch.ones(4, 1), s, t)
    assert all(bool((start >= 0).all() and (start <= end + 1e-6).all() and (end <= 1).all()) for start, end in asked)


class Twice(torch.autograd.Function):
    """x to 2x, for backward alone, as fused kernels are."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


def test_a_layer_without_forward_mode_is_said_aloud_and_differences_taken():
    def field(x, s, t):
        return Twice.apply(x) + s[:, None]

    x, s, t = torch.randn(3, 4), torch.full((3,), 0.2), torch.full((3,), 0.8)
    derivatives = Derivatives(DerivativeSettings(type="auto"))
    with pytest.warns(UserWarning, match="taken as differences"):
        _, change = derivatives.along_start(field, x, s, t, torch.ones(3, 4))
    torch.testing.assert_close(change, torch.full((3, 4), 3.0), atol=1e-3, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        derivatives.along_start(field, x, s, t, torch.ones(3, 4))  # said once
    with pytest.raises(MfdError, match="has no forward mode"):
        Derivatives(DerivativeSettings(type="forward")).along_start(field, x, s, t, torch.ones(3, 4))


class Wavy:
    """s x, and waves of it in time as of a network that embeds 1000 s."""

    def __init__(self, size):
        self.size = size

    def __call__(self, x, s, t):
        return s[:, None] * x + self.size * torch.sin(1000 * s)[:, None]


@pytest.mark.parametrize(("size", "differs"), [(0.01, True), (1e-5, False), (0.0, False)])
def test_wavy_derivatives_are_averaged_by_themselves(size, differs):
    field, start, end = Wavy(size), torch.randn(4, 3), torch.randn(4, 3)
    derivatives = Derivatives(DerivativeSettings())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        derivatives.choose(field, start, end)
    assert sum("is wavy" in str(warning.message) for warning in said) == differs
    s, t = torch.full((4,), 0.4), torch.ones(4)
    _, change = derivatives.along_start(field, start, s, t, end)
    exact = start + 0.4 * end + 1000 * size * torch.cos(1000 * s)[:, None]
    smooth = start + 0.4 * end + size * torch.cos(1000 * s)[:, None] * float(torch.sin(torch.tensor(50.0))) / 0.05
    torch.testing.assert_close(change, smooth if differs else exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["forward", "difference"])
def test_a_kind_of_derivative_that_is_asked_for_is_taken(build, kind):
    build(MeanFlow, derivative=DerivativeSettings(type=kind)).prepare(lambda: pytest.fail("the network was looked at"))


def test_a_form_without_derivatives_does_not_look_at_them(build, exact_map, map_batch):
    exact = exact_map()
    batch = map_batch(exact.to_data, exact, 4)
    assert build(ConsistencyDistillation).differentiated(batch) is None
    field = build(ConsistencyDistillation, form="continuous").differentiated(batch)
    x, s = torch.randn(4, *batch.shape), torch.rand(4)
    torch.testing.assert_close(field(x, s, torch.ones(4)), exact.to_data(x, s))


def test_other_errors_of_a_network_are_not_swallowed():
    def broken(x, s, t):
        return x @ torch.ones(7, 7)

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Derivatives(DerivativeSettings()).along_start(
            broken, torch.randn(3, 4), torch.zeros(3), torch.ones(3), torch.ones(3, 4)
        )


def test_a_step_towards_is_the_direction_or_its_normalised_form():
    found = torch.randn(6, 2, 3, requires_grad=True)
    direction = torch.randn(6, 2, 3) * 5
    loss = step_towards(found, direction, None, torch.zeros(6))
    loss.value.backward()
    torch.testing.assert_close(found.grad, 2 * direction / 6)
    torch.testing.assert_close(loss.shown, direction.square().mean())
    found.grad = None
    step_towards(found, direction, 0.1, torch.zeros(6)).value.backward()
    size = direction.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.grad.flatten(1).norm(dim=1), 2 / 6 * size / (size + 0.1))
    assert float(step_towards(found, 0 * direction, 0.1, torch.zeros(6)).value) == 0


def test_the_derivative_term_rises():
    tangent = TangentSettings(warmup=10, final=0.9)
    assert [tangent.share(update) for update in (0, 4, 9, 500)] == pytest.approx([0.09, 0.45, 0.9, 0.9])
    assert TangentSettings(warmup=0, final=1.0).share(0) == 1.0


def test_intervals_by_their_length(build, exact_map, map_batch):
    exact = exact_map()
    batch = map_batch(exact, exact, 20_000)
    s, t = build(AlignYourFlow, times=LengthTimes(mean=-0.8, std=1.0)).intervals(batch)
    length = t - s
    assert bool((s >= 0).all() and (t <= 1 + 1e-6).all() and (length > 0).all())
    torch.testing.assert_close(length.logit().mean(), torch.tensor(-0.8), atol=0.03, rtol=0)
    torch.testing.assert_close((s / (1 - length)).mean(), torch.tensor(0.5), atol=0.01, rtol=0)
    s, t = build(AlignYourFlow, times=LengthTimes(whole=0.5)).intervals(batch)
    whole = (s == 0) & (t == 1)
    assert float(whole.float().mean()) == pytest.approx(0.5, abs=0.02)
