"""Guidance: exact branches, the formula against two plain calls, its cost, rows, refusal."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from teachers.base import Teacher
from teachers.digits import _ASSETS, DigitsSettings, DigitsTeacher
from teachers.errors import MfdError, TeacherError
from teachers.files import sha256
from teachers.gmm import GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.guidance import Evaluations, SideBySide, VelocityField
from teachers.settings import TeacherSettings
from teachers.weights import read_header, read_tensors


class Linear(nn.Module):
    """u = rate[label] x + t; remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.labels = []

    def forward(self, x, t, label):
        self.labels.append(label.tolist())
        return self.rate[label][:, None] * x + t[:, None]


class Labelled(Teacher):
    sample_shape = (3,)

    @classmethod
    def load(cls, settings):
        raise NotImplementedError

    def build_network(self):
        return Linear()

    def null_condition(self, condition):
        return {"label": torch.full_like(condition["label"], 2)}

    def identity(self):
        return {}


class Unguided(Labelled):
    def null_condition(self, condition):
        return None


class Embedded(Unguided):
    """A model that is told its guidance: settings say 1.0 unless a test says otherwise."""

    guidance_embedded = True


class Rescaled(Labelled):
    def guide(self, unconditional, conditional, guidance):
        return conditional - guidance * unconditional


class Half(Labelled):
    def velocity(self, network, x, t, condition):
        return super().velocity(network, x, t, condition).to(torch.bfloat16)


CONDITION = {"label": torch.tensor([0, 1, 0, 1])}
X, T = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.4, 0.6, 0.9])


def field(guidance, kind=Labelled, counter=None):
    teacher = kind(TeacherSettings(type="linear"), {})
    return VelocityField(teacher, Linear(), CONDITION, guidance, counter)


def branch(label):
    return Linear()(X, T, label)


def conditional():
    return branch(CONDITION["label"])


def unconditional():
    return branch(torch.full((4,), 2))


def test_scale_one_and_zero_are_the_branches_exactly():
    assert torch.equal(field(1.0)(X, T), conditional())
    assert torch.equal(field(0.0)(X, T), unconditional())


@pytest.mark.parametrize("scale", [2.5, 0.5, 7.0])
def test_any_other_scale_is_the_formula(scale):
    naive = unconditional() + scale * (conditional() - unconditional())
    torch.testing.assert_close(field(scale)(X, T), naive, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("scale", "cost"), [(1.0, 1), (0.0, 1), (2.5, 2)])
def test_cost_and_evaluations(scale, cost):
    counter = Evaluations()
    guided = field(scale, counter=counter)
    guided(X, T)
    assert guided.cost == cost and counter.rows == guided.evaluations.rows == 4 * cost
    guided.rows(slice(0, 1))(X[:1], T[:1])
    assert counter.rows == 5 * cost, "a field of fewer rows counts towards the same counter"


def test_one_call_with_the_unconditional_half_first():
    guided = field(2.5)
    guided(X, T)
    assert guided._network.labels == [[2, 2, 2, 2, 0, 1, 0, 1]]


def test_counters_are_not_shared_by_default():
    first, second = field(1.0), field(1.0)
    first(X, T)
    assert second.evaluations.rows == 0


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([3, 0, 2])])
def test_rows_keep_their_conditions(scale, index):
    torch.testing.assert_close(field(scale).rows(index)(X[index], T[index]), field(scale)(X, T)[index])


def test_a_family_without_a_null_condition_is_not_guided():
    with pytest.raises(TeacherError) as caught:
        field(2.0, Unguided)
    assert "guidance 2.0" in caught.value.found and caught.value.allowed == "guidance: 1.0"
    assert torch.equal(field(1.0, Unguided)(X, T), conditional())


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_half_precision_is_widened_before_differences(scale):
    assert field(scale, Half)(X, T).dtype == torch.float32


def test_a_family_may_guide_in_its_own_way():
    torch.testing.assert_close(field(2.5, Rescaled)(X, T), conditional() - 2.5 * unconditional())
    assert torch.equal(field(1.0, Rescaled)(X, T), conditional())


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_guidance_that_is_an_input_is_one_evaluation_without_a_null_condition(scale):
    teacher = Embedded(TeacherSettings(type="linear", guidance=3.5), {})
    guided = VelocityField(teacher, Linear(), CONDITION, scale)
    assert torch.equal(guided(X, T), conditional()) and guided.cost == 1 and guided.evaluations.rows == 4
    assert guided.rows(slice(1, 3))(X[1:3], T[1:3]).shape == (2, 3)


def test_guidance_that_is_an_input_cannot_be_another():
    teacher = Embedded(TeacherSettings(type="linear", guidance=3.5), {})
    with pytest.raises(TeacherError, match=r"guidance 2 .* which is 3.5 here"):
        VelocityField(teacher, Linear(), CONDITION, 2.0)


@pytest.fixture
def weak_digits(tmp_path):
    """The digits teacher's weights with a shifted output, as the file of a weaker teacher."""
    source = _ASSETS / "teacher.safetensors"
    weights = read_tensors(source)
    weights["output.bias"] = weights["output.bias"] + 0.5
    path = tmp_path / "weak.safetensors"
    with safe_open(source, "pt") as file:
        save_file(weights, path, metadata=file.metadata())
    assert read_header(path) == read_header(source)
    return path


def test_guidance_is_against_a_weaker_teacher_where_there_is_one(weak_digits):
    settings = DigitsSettings(type="digits", guidance=3.0, weak=str(weak_digits))
    teacher = DigitsTeacher.loaded(settings)
    plain = DigitsTeacher.loaded(DigitsSettings(type="digits")).whole_identity()
    assert plain == teacher.identity()
    assert teacher.whole_identity() == plain | {"weak_weights_sha256": sha256(weak_digits)}
    x, t, condition = torch.randn(4, 1, 8, 8), torch.rand(4), {"label": torch.arange(4)}
    with torch.no_grad():
        strong = teacher.velocity(teacher.network, x, t, condition)
        weak = teacher.velocity(teacher.weak, x, t, condition)
        assert not torch.allclose(strong, weak, atol=1e-2)
        field = VelocityField(teacher, teacher.network, condition, 3.0)
        torch.testing.assert_close(field(x, t), weak + 3 * (strong - weak))
        torch.testing.assert_close(field.rows(slice(1, 3))(x[1:3], t[1:3]), (weak + 3 * (strong - weak))[1:3])
        assert field.cost == 2 and field.evaluations.rows == 12
        # students and auxiliaries have no weaker selves
        student = teacher.initial_network(0)
        torch.testing.assert_close(VelocityField(teacher, student, condition)(x, t), strong)
        beside = SideBySide(VelocityField(teacher, student, condition), field)
        both = beside(torch.stack([x, x], dim=1), t)
        torch.testing.assert_close(both[:, 1], weak + 3 * (strong - weak))


def test_weaker_teachers_that_make_no_sense_are_refused(weak_digits):
    with pytest.raises(TeacherError, match="without guidance has no effect"):
        DigitsTeacher.loaded(DigitsSettings(type="digits", weak=str(weak_digits)))
    with pytest.raises(TeacherError, match="has no weights to name"):
        GaussianMixtureTeacher.loaded(GaussianMixtureSettings(type="gmm", weak="x"))
    with pytest.raises(MfdError, match="no-such"):
        DigitsTeacher.loaded(DigitsSettings(type="digits", guidance=2.0, weak="no-such.safetensors"))
