"""The paper's experiments against closed forms on Gaussians, and a smoke run of each."""

import json

import pytest
import torch
from torch import nn

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.flow import time_grid
from mfd_cli.methods.base import Batch
from mfd_cli.methods.diff_instruct import DiffInstruct, DiffInstructSettings, StartTimes
from mfd_cli.methods.matching import surrogate_loss
from mfd_cli.methods.mfd import MeanFlowDistillation, MfdSettings, Solver
from mfd_cli.seeds import Stream
from mfd_cli.solvers import integrate
from mfd_cli.training.workshop import build
from teachers.gmm import MixtureField


def gaussian(mean, deviation, dim=1):
    """The exact velocity of one Gaussian."""
    return MixtureField(torch.full((1, dim), mean), torch.tensor([deviation]), torch.ones(1))


class World:
    """Student G(z) = mean + deviation z with its exact field as the auxiliary; the target is N(0, 1)."""

    def __init__(self, mean, deviation):
        self.parameters = [torch.tensor(value, requires_grad=True) for value in (mean, deviation)]
        self.auxiliary, self.teacher = gaussian(mean, deviation), gaussian(0.0, 1.0)

    def student(self, x, t):
        mean, deviation = self.parameters
        return mean + (deviation - 1) * x

    def batch(self, rows):
        return Batch(Stream(0, 0, 0, rows), (1,), time_grid(1), self.student, self.auxiliary, self.teacher)

    def gradient(self, method, rows):
        return torch.stack(torch.autograd.grad(method.student_loss(self.batch(rows)).value, self.parameters))


@pytest.fixture
def module(script):
    return script("paper_figures")


@pytest.fixture
def probes(script):
    return script("paper_probes")


def settings(**solver):
    return MfdSettings(type="mfd", solver=Solver(**solver))


def workshop(recipe, *overrides):
    return build(load_recipe(recipe, overrides), "cpu")


def test_with_the_jacobian_a_shift_is_never_corrected(probes):
    world = World(1.0, 1.0)
    fine = settings(type="rk4", steps=8)
    kept, omitted = (world.gradient(kind(fine), 20_000) for kind in (probes.KeptJacobian, MeanFlowDistillation))
    torch.testing.assert_close(kept, torch.zeros(2), atol=1e-5, rtol=0)
    assert omitted[0] == pytest.approx(0.234, abs=0.01)


def test_with_the_jacobian_a_narrow_student_is_made_narrower(probes):
    """Descent must lower the mean, 1, and raise the deviation, 0.5, and so do neither; figures by quadrature."""
    world, fine = World(1.0, 0.5), settings(type="midpoint", steps=8)
    kept, omitted = (world.gradient(kind(fine), 100_000) for kind in (probes.KeptJacobian, MeanFlowDistillation))
    torch.testing.assert_close(omitted, torch.tensor([0.234, -0.075]), atol=0.01, rtol=0)
    torch.testing.assert_close(kept, torch.tensor([-0.212, 0.078]), atol=0.01, rtol=0)


@pytest.mark.parametrize("solver", [{"step_size": 0.1}, {"type": "heun", "steps": 3}])
def test_the_kept_jacobian_is_the_derivative_of_the_squared_difference(probes, tiny, solver):
    made = workshop(tiny)
    probe, kept = probes.Probe(made, 16), probes.KeptJacobian(settings(**solver))
    states = probe.states(0, kept.settings.times)
    found = states.direction(kept)
    point = states.x.clone().requires_grad_()
    rule = {"rule": solver.get("type", "euler"), "steps": solver.get("steps"), "step_size": solver.get("step_size")}
    first, second = (
        integrate(field, point, states.s, states.t, **rule).average_velocity
        for field in (states.batch.auxiliary, states.batch.teacher)
    )
    (wanted,) = torch.autograd.grad(0.5 * (first - second).square().sum(), point)
    torch.testing.assert_close(found, wanted)
    kept.student_loss(states.batch).value.backward()
    assert all(value.grad is None for value in made.roles.auxiliary.parameters)
    assert any(value.grad is not None for value in made.roles.student.parameters)


@pytest.mark.parametrize(("deviation", "sign"), [(0.5, -1.0), (2.0, 1.0)])
def test_between_gaussians_the_jacobian_is_a_number_whose_sign_is_the_cosine(probes, tiny, deviation, sign):
    """D = a (x - c) there, so the Jacobian multiplies it by a: negative where the auxiliary is narrower."""
    made = workshop(tiny, "teacher.components=[{mean: [0.0, 0.0], deviation: 1.0}]")
    made.roles.auxiliary.network = gaussian(0.3, deviation, dim=2)
    found = probes.jacobian_cosines(probes.Probe(made, 32), settings(steps=8), 4)
    torch.testing.assert_close(torch.tensor(found["samples"]), torch.full((128,), sign), atol=1e-4, rtol=0)
    assert len(found["batches"]) == 4 and all(sign * value > 0 for value in found["batches"])


def test_vsd_at_the_same_times_is_diff_instruct_at_sorted_starts(probes, tiny):
    probe = probes.Probe(workshop(tiny), 16)
    times = StartTimes(type="sorted-pair")
    wanted = probe.gradient(DiffInstruct(DiffInstructSettings(type="diff-instruct", times=times)), 2)
    found = probe.gradient(probes.vsd_of(settings(step_size=0.02)), 2)
    torch.testing.assert_close(found, wanted)


def test_a_probes_directions_and_gradients_are_of_the_same_states(probes, tiny):
    made = workshop(tiny)
    probe, method = probes.Probe(made, 16), MeanFlowDistillation(settings(steps=3))
    states = probe.states(1, method.settings.times)
    noise, data = states.batch.random.normal("x0", (2,)), probe.batch(1).generate()
    x_s = (1 - states.s[:, None]) * noise + states.s[:, None] * data
    torch.testing.assert_close(x_s.detach(), states.x)
    loss = surrogate_loss(states.direction(method), x_s, states.s)
    parts = torch.autograd.grad(loss.value, made.roles.student.parameters)
    gradient, shown = probe.gradient(method, 1)
    torch.testing.assert_close(gradient, torch.cat([part.flatten() for part in parts]))
    assert shown == pytest.approx(0.5 * states.direction(method).square().mean().item())


def test_the_score_of_samples_is_that_of_their_density(probes):
    points = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    squared = (x[:, None] - t[:, None, None] * points).square().sum(-1)
    density = (-0.5 * squared / (1 - t[:, None]) ** 2).logsumexp(1)
    (wanted,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(probes.score(probes.density_of(points), x.detach(), t), wanted)


def test_vsd_descends_the_reverse_kl_divergence_with_its_weight(probes):
    """KL(N(s m, p^2) || N(0, q^2)) = log(q / p) + (p^2 + s^2 m^2) / (2 q^2) - 1/2, by quadrature over starts."""
    world, rows = World(1.0, 0.5), 100_000
    s = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    mean, deviation = world.parameters
    p, q = (1 - s) ** 2 + s**2 * deviation**2, (1 - s) ** 2 + s**2
    divergence = 0.5 * (q / p).log() + (p + s**2 * mean**2) / (2 * q) - 0.5
    value = (2 * (1 - s) * (1 - s) / s * divergence).mean()  # density 2 (1 - s) of the smaller of two uniform numbers
    wanted = torch.stack(torch.autograd.grad(value, world.parameters))
    torch.testing.assert_close(wanted, torch.tensor([0.285, -0.080]), atol=1e-3, rtol=0)
    vsd = probes.vsd_of(settings(step_size=0.02))
    torch.testing.assert_close(world.gradient(vsd, rows), wanted, atol=5e-3, rtol=0)
    states = probes.States.of(world.batch(64), world.batch(64).generate().detach(), vsd.settings.times)
    exact = probes.reverse_kl_direction(world.auxiliary, world.teacher, states.x.double(), states.s.double())
    torch.testing.assert_close(exact.float(), states.s[:, None] * states.direction(vsd), atol=1e-4, rtol=1e-3)


def test_under_a_perfect_auxiliary_vsds_directions_are_the_reverse_kls(probes, tiny):
    made = workshop(tiny)
    samples = probes.Probe(made, 64).samples(probes._DENSITY)
    made.roles.auxiliary.network = probes.density_of(samples)
    points, arrows = probes.direction_fields(probes.Probe(made, 10), settings(steps=4), draws=7, density=64)
    assert points.shape == (10, 2) and arrows["MFD"].shape == (2, 10, 2)
    torch.testing.assert_close(arrows["VSD"], arrows["reverse KL"], atol=1e-3, rtol=1e-2)
    rows = {row["fields"]: row for row in probes.field_cosines(arrows)}
    assert rows["VSD, reverse KL"]["mean"] == pytest.approx(1, abs=1e-3)
    assert rows["VSD, halves"]["mean"] < 1 and len(rows) == 6


def test_field_cosines_of_opposite_fields(probes):
    arrows = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
    (_, found, _) = probes.field_cosines({"a": arrows, "b": -2 * arrows})
    assert found == {"fields": "a, b", "mean": pytest.approx(-1), "negative": 1, "length": pytest.approx(0.5)}


class Shifted(nn.Module):
    """A field plus a constant."""

    def __init__(self, field, shift):
        super().__init__()
        self.field, self.shift = field, torch.tensor(shift)

    def forward(self, x, t):
        return self.field(x, t) + self.shift


def test_the_distance_of_equal_fields_is_zero_and_of_shifted_ones_the_shifts_square(probes, tiny):
    made = workshop(tiny)
    probe = probes.Probe.of(made)
    made.roles.auxiliary.network = made.teacher.network
    assert probes.flow_distance(probe, settings(step_size=0.1), 2) == (0.0, 0.0)
    made.roles.auxiliary.network = Shifted(made.teacher.network, [3.0, 4.0])
    value, error = probes.flow_distance(probe, settings(steps=1), 2)
    assert value == pytest.approx(25, rel=1e-4) and error < 1e-3


def test_a_summary_of_numbers(probes):
    found = probes.summary([float(number) for number in range(101)])
    assert found == {
        "5%": 5, "25%": 25, "50%": 50, "75%": 75, "95%": 95, "mean": 50, "std": pytest.approx((101 * 102 / 12) ** 0.5)
    }  # fmt: skip


def test_looks_are_denser_at_the_beginning_and_end_at_the_last_update(probes):
    assert probes.spread_out(100, 5) == [4, 16, 36, 64, 100]
    assert probes.spread_out(2, 5) == [1, 2]


def test_what_became_of_a_training_is_told_plainly(probes):
    def told(before, after, stopped=None, name="frechet"):
        looks = [{"metrics": {name: before}}, {"metrics": {name: after}}]
        return probes.outcome({"looks": looks, "stopped": stopped})

    assert told(2.0, 1.0) == "improved: frechet from 2 to 1" and told(2.0, 3.0).startswith("ended no better")
    assert told(2.0, 1.0, name="in_mode").startswith("ended") and told(2.0, float("nan")).startswith("ended")
    assert told(2.0, 1.0, "student: not finite at update 7") == "diverged: student: not finite at update 7"


def test_a_training_whose_values_are_not_finite_ends_with_what_was_found(probes, tiny):
    made = workshop(tiny)

    def look(made):
        for value in made.roles.auxiliary.parameters:
            value.data.fill_(float("nan"))
        return {}

    looks, stopped = probes.watched(made, [1, 2], look)
    assert [found["update"] for found in looks] == [1] and "not finite" in stopped


def test_what_cannot_be_measured_is_refused_before_the_work(module, tiny, tiny_digits):
    with pytest.raises(MfdError, match="the training has 3"):
        module.main(["distance", tiny, "--updates", "4"])
    with pytest.raises(MfdError, match="not points of a plane"):
        module.main(["fields", tiny_digits, "--updates", "1"])
    with pytest.raises(MfdError, match="step_size"):
        module.main(["step-size", tiny, "--sizes", "0.1", "2", "--num", "100"])


QUICK = [
    ("step-size", "tiny"), ("jacobian", "tiny"), ("fields", "tiny"), ("distributions", "tiny"), ("distance", "tiny"),
    ("jacobian", "tiny_digits"), ("distance", "tiny_digits"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "recipe"), QUICK)
def test_a_quick_run(module, experiment, recipe, request, tmp_path, capsys):
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    recipe = request.getfixturevalue(recipe)
    module.main([experiment, recipe, "--quick", "--json", str(path), "--plot", str(picture)])
    found = json.loads(path.read_text())
    assert found["experiment"] == experiment and found["schema"] == 1
    if experiment == "step-size":
        evaluations = {row["step_size"]: row["evaluations"] for row in found["rows"]}
        assert evaluations[0.5] > evaluations[1.0]
    else:
        first = 0 if experiment in ("jacobian", "distance") else 1
        assert all([look["update"] for look in run["looks"]] == list(range(first, 3)) for run in found["runs"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "machine: cpu" in capsys.readouterr().out
