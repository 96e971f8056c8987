"""The closed-form field of a Gaussian mixture: score, continuity, posterior mean, flow map, samples."""

import math

import pytest
import torch
from pydantic import ValidationError

from mfd_cli.solvers import integrate
from teachers import gmm
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher, MixtureField
from teachers.settings import Settings

UNEQUAL = [
    {"mean": [3.0, 0.0], "deviation": 0.5, "weight": 1.0},
    {"mean": [-1.0, 2.0], "deviation": 0.9, "weight": 2.0},
    {"mean": [0.0, -2.0], "deviation": 0.3, "weight": 1.0},
]
MEANS = torch.tensor([component["mean"] for component in UNEQUAL], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.5, 0.9, 0.3], dtype=torch.float64)
SHARES = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)


@pytest.fixture
def field():
    return MixtureField(MEANS, DEVIATIONS, SHARES)


def load(**settings):
    # through JSON, as a recipe comes: strict validation takes lists and numbers only
    return GaussianMixtureTeacher.load(GaussianMixtureSettings.model_validate({"type": "gmm", **settings}))


def log_density(x, t):
    """log p_t(x) by torch's own distributions, one row at a time."""
    spread = ((1 - t)[:, None] ** 2 + t[:, None] ** 2 * DEVIATIONS**2).sqrt()
    normal = torch.distributions.Normal(t[:, None, None] * MEANS, spread[..., None])
    return (SHARES.log() + normal.log_prob(x[:, None, :]).sum(-1)).logsumexp(1)


def inputs(rows=32):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return x, 0.05 + 0.9 * torch.rand(rows, generator=generator, dtype=torch.float64)


def score(x, t):
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(log_density(x, t).sum(), x)[0]


def test_velocity_is_the_score_of_the_path(field):
    """score = (t u - x) / (1 - t)."""
    x, t = inputs()
    expected = (t[:, None] * field(x, t) - x) / (1 - t[:, None])
    torch.testing.assert_close(score(x, t), expected, atol=1e-10, rtol=0)


def test_continuity_equation(field):
    """d_t log p + div u + u . score = 0."""
    x, t = inputs()
    time = t.clone().requires_grad_(True)
    change = torch.autograd.grad(log_density(x, time).sum(), time)[0]
    moved = x.clone().requires_grad_(True)
    u = field(moved, t)
    divergence = sum(torch.autograd.grad(u[:, axis].sum(), moved, retain_graph=True)[0][:, axis] for axis in (0, 1))
    residual = change + divergence + (u * score(x, t)).sum(1)
    assert float(residual.detach().abs().max()) < 1e-10


def test_posterior_mean_of_the_displacement(field):
    """u(x, t) = E[X_1 - X_0 | X_t = x], by weighting samples of X_1 with the density of the noise they need."""
    data = field.double().draw(200_000, 0).double()
    for row in range(4):
        x, t = inputs()
        x, t = x[row] / 2, 0.3 + 0.1 * row
        noise = (x - t * data) / (1 - t)
        weight = (-0.5 * noise.square().sum(1)).softmax(0)
        estimate = (weight[:, None] * (data - noise)).sum(0)
        exact = field(x[None], torch.tensor([t]))[0]
        assert float((estimate - exact).norm()) < 0.05


def test_one_step_from_noise_is_the_mean_of_the_target(field):
    x, _ = inputs()
    mean = (SHARES[:, None] * MEANS).sum(0)
    torch.testing.assert_close(field(x, torch.zeros(len(x))), mean - x, atol=1e-12, rtol=0)


def test_finite_at_both_ends_in_float32(field):
    x = 30 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    for t in (0.0, 1e-6, 1 - 1e-6, 1.0):
        assert bool(field(x, torch.full((64,), t)).isfinite().all())


def test_gaussian_flow_map():
    """psi_{s->t}(x) = t mu + tau(t)/tau(s) (x - s mu)."""
    one = MixtureField(MEANS[:1], DEVIATIONS[:1], torch.ones(1, dtype=torch.float64))
    x, _ = inputs()
    s, t = 0.25, 0.75
    tau = [math.sqrt((1 - time) ** 2 + time**2 * 0.25) for time in (s, t)]
    exact = t * MEANS[0] + tau[1] / tau[0] * (x - s * MEANS[0])
    end = integrate(one, x, torch.full((32,), s), torch.full((32,), t), rule="rk4", steps=64).end
    torch.testing.assert_close(end, exact, atol=1e-7, rtol=0)


def test_draws_have_the_shares_means_and_deviations(field):
    x = field.draw(40_000, 1)
    nearest = torch.cdist(x.double(), MEANS).div(DEVIATIONS).argmin(1)
    assert torch.allclose(nearest.bincount().double() / len(x), SHARES, atol=0.03)
    assert torch.allclose(x.double().mean(0), (SHARES[:, None] * MEANS).sum(0), atol=0.03)
    inner = x[nearest == 2].double()
    assert torch.allclose(inner.mean(0), MEANS[2], atol=0.03)
    assert torch.allclose(inner.std(0), torch.full((2,), 0.3, dtype=torch.float64), atol=0.02)
    assert torch.equal(field.draw(5, 1), field.draw(5, 1)) and not torch.equal(field.draw(5, 1), field.draw(5, 2))


def test_the_recipe_gives_the_mixture():
    teacher = load(components=UNEQUAL)
    assert torch.allclose(teacher.network.shares.double(), SHARES) and teacher.sample_shape == (2,)
    ring = load(ring={"modes": 4, "radius": 2.0, "deviation": 0.1, "dim": 3}).network
    assert ring.means.shape == (4, 3)
    assert torch.allclose(ring.means.norm(dim=1), torch.full((4,), 2.0))
    assert torch.allclose(ring.means.mean(0), torch.zeros(3), atol=1e-6)


def test_identity_follows_the_mixture_and_nothing_else():
    first = load().identity()
    assert first == load(steps=50, network={"width": 8}).identity()
    assert first != load(ring={"radius": 4.5}).identity()
    assert first != load(components=UNEQUAL).identity()


@pytest.mark.parametrize(
    "settings",
    [
        {"components": []},
        {"components": [{"mean": [1.0], "deviation": 0.0}]},
        {"components": [{"mean": [1.0], "deviation": 1.0}, {"mean": [1.0, 2.0], "deviation": 1.0}]},
        {"ring": {"dim": 1}},
        {"guidance": 2.0},
        {"ring": {"colour": 1}},
    ],
)
def test_impossible_mixtures_are_refused(settings):
    with pytest.raises(ValidationError):
        load(**settings)


def test_data_are_functions_of_their_items():
    data = GaussianMixtureData.load(Settings(type="gmm"), load(components=UNEQUAL))
    items = torch.tensor([5, 0, 5, 9])
    states = data.states(items)
    assert torch.equal(states[0], states[2]) and torch.equal(data.states(items[1:2]), states[1:2])
    assert data.size is None and data.condition(items) == {}


def test_the_reference_is_stratified():
    data = GaussianMixtureData.load(Settings(type="gmm"), load())
    reference, modes = data.reference(8000, 0), data.modes()
    nearest = torch.cdist(reference, modes.means).argmin(1)
    assert nearest.bincount().tolist() == [1000] * 8
    assert len(data.reference(1003, 0)) == 1003
    assert torch.equal(reference, data.reference(8000, 0)) and not torch.equal(reference, data.reference(8000, 1))


def test_the_student_starts_fitted_and_the_same_for_the_same_seed(monkeypatch):
    monkeypatch.setattr(gmm, "_FIT_UPDATES", 200)
    teacher = load(network={"width": 64, "depth": 2})
    field, state = teacher.network, torch.get_rng_state()
    network, again = teacher.initial_network(3), teacher.initial_network(3)
    assert torch.equal(torch.get_rng_state(), state), "fitting must not touch the global generator"
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    data = field.draw(512, 0)
    t = torch.rand(512, generator=torch.Generator().manual_seed(0))
    x = (1 - t[:, None]) * torch.randn(512, 2, generator=torch.Generator().manual_seed(1)) + t[:, None] * data
    exact = field(x, t)
    with torch.no_grad():
        assert float((network(x, t) - exact).square().mean()) < 0.25 * float(exact.square().mean())
