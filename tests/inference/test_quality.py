"""Quality on a tiny conditional teacher whose every metric is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from mfd_cli.errors import MfdError
from mfd_cli.inference.generation import generated
from mfd_cli.inference.quality import Reference, gap_recovered, judge_of
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from mfd_cli.metrics.frechet import frechet_distance
from mfd_cli.metrics.sliced import sliced_wasserstein
from mfd_cli.metrics.uncertainty import Measured
from mfd_cli.seeds import Stream
from teachers.base import Data, Teacher, TeacherError
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.settings import Settings, TeacherSettings

CENTRES = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0]])


class _Classes(nn.Module):
    """Exact field of N(centre of the label, 0.25 I)."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        time, mean = t[:, None], CENTRES[label]
        factor = (time * 0.25 - (1 - time)) / ((1 - time) ** 2 + time**2 * 0.25)
        return mean + factor * (x - time * mean)


class _Labelled(Teacher):
    condition_kind = "label"
    sample_kind = "points"

    @classmethod
    def load(cls, settings: TeacherSettings) -> "_Labelled":
        teacher = cls(settings, {})
        teacher.network = teacher.build_network()
        return teacher

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (2,)

    def build_network(self) -> nn.Module:
        return _Classes()

    def identity(self) -> dict[str, str]:
        return {}


class _Points(Data):
    """Thirty points for each of three labels."""

    def __init__(self) -> None:
        self.labels = torch.arange(3).repeat(30)
        self.points = CENTRES[self.labels] + 0.5 * torch.randn(90, 2, generator=torch.Generator().manual_seed(0))

    @classmethod
    def load(cls, settings: Settings, teacher: Teacher) -> "_Points":
        return cls()

    @property
    def size(self) -> int:
        return 90

    def condition(self, items: Tensor) -> dict[str, Tensor]:
        return {"label": self.labels[items]}

    def reference(self, count: int | None, seed: int) -> Tensor:
        assert count is None, "finite data is the reference as a whole"
        return self.points

    def spaces(self) -> dict:
        return {"frechet": lambda samples: samples, "frechet_radius": lambda samples: samples.norm(dim=1, keepdim=True)}

    def classify(self, samples: Tensor) -> Tensor:
        return torch.cdist(samples, CENTRES).argmin(dim=1)


@pytest.fixture
def teacher() -> Sampler:
    return teacher_sampler(_Labelled.load(TeacherSettings(type="labelled", steps=20)))


@pytest.fixture
def mixture() -> tuple[Sampler, GaussianMixtureData]:
    loaded = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm", steps=50))
    return teacher_sampler(loaded), GaussianMixtureData.load(Settings(type="gmm"), loaded)


def judge(sampler, data, *, num, seed=0, steps=None, batch_size=500, reference=None):
    return (reference or judge_of(data, num, seed)).judge(sampler, steps=steps, batch_size=batch_size)


def collected(*args, **options):
    parts = list(generated(*args, **options))
    asked = [part.asked for part in parts if part.asked is not None]
    return torch.cat([part.samples for part in parts]), torch.cat(asked) if asked else None


def test_every_metric_the_data_offers_is_there(teacher):
    found = judge(teacher, _Points(), num=180, batch_size=70)
    assert set(found) == {"frechet", "frechet_radius", "sliced_wasserstein", "class_agreement"}
    assert found["class_agreement"].value == 1 and found["class_agreement"].standard_error == 0
    assert all(figure.num == 180 and figure.standard_error >= 0 for figure in found.values())


def test_values_are_those_of_the_plain_functions(teacher):
    data = _Points()
    samples, _ = collected(teacher, data, steps=3, num=200, seed=4, batch_size=64)
    found = judge(teacher, data, steps=3, num=200, seed=4)
    assert found["frechet"].value == pytest.approx(frechet_distance(samples, data.points), rel=1e-6)
    expected = sliced_wasserstein(samples, data.points, seed=4)
    assert found["sliced_wasserstein"].value == pytest.approx(expected, rel=1e-6)


def test_labels_are_as_frequent_as_in_the_data_over_whole_epochs(teacher):
    _, asked = collected(teacher, _Points(), steps=1, num=180, seed=1, batch_size=50)
    assert torch.bincount(asked).tolist() == [60, 60, 60]
    assert asked[:90].tolist() != asked[90:].tolist(), "each epoch has an order of its own"


def test_models_get_the_same_noise_and_conditions_in_any_batch_size(teacher):
    seen: list[Tensor] = []

    class Spy(Sampler):
        def generate(self, noise, condition, **options):
            seen.append(torch.cat([noise, condition["label"][:, None]], dim=1))
            return super().generate(noise, condition, **options)

    spy = Spy("student", teacher.teacher, teacher.network, 1)
    first, _ = collected(spy, _Points(), steps=None, num=40, seed=9, batch_size=40)
    second, _ = collected(spy, _Points(), steps=None, num=40, seed=9, batch_size=7)
    whole, parts = seen[0], torch.cat(seen[1:])
    assert torch.equal(whole, parts) and torch.allclose(first, second, atol=1e-6)
    assert torch.equal(whole[:, :2], Stream(9, 0, 0, 40).normal("sample", (2,)))


def test_a_model_that_ignores_its_labels_is_found_out(teacher):
    class Deaf(_Classes):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return super().forward(x, t, label.flip(0))

    deaf = Sampler("student", teacher.teacher, Deaf(), 20)
    agreement = judge(deaf, _Points(), num=900, batch_size=900)["class_agreement"]
    assert agreement.value == pytest.approx(1 / 3, abs=0.08)
    assert agreement.standard_error == pytest.approx(math.sqrt(agreement.value * (1 - agreement.value) / 900))


def test_modes_of_a_mixture(mixture):
    sampler, data = mixture
    reference = Reference(data, 2000, seed=0)
    found = judge(sampler, data, num=2000, reference=reference)
    assert found["in_mode"].value == pytest.approx(0.989, abs=0.015)
    assert 0.75 < found["mode_coverage"].value < 1
    assert found["mode_coverage"].standard_error < 0.1
    one_step = judge(sampler, data, steps=1, num=2000, reference=reference)
    assert one_step["in_mode"].value < 0.05, "one Euler step of an exact field gives the mean of the data"


def test_a_lost_mode_has_no_coverage(mixture):
    _, data = mixture
    reference = Reference(data, 800, seed=0)
    whole = data.reference(800, seed=1)
    assert reference.score(whole)["mode_coverage"].value == pytest.approx(1, abs=0.06)
    assert reference.score(whole[100:])["mode_coverage"].value == 0


def test_a_prepared_reference_changes_nothing(mixture):
    sampler, data = mixture
    reference = Reference(data, 300, seed=2)
    assert judge(sampler, data, num=300, seed=2, reference=reference) == judge(sampler, data, num=300, seed=2)


def test_too_few_samples_are_refused_with_the_number_needed():
    with pytest.raises(MfdError, match="2 samples are too few for 'frechet', which has 2 features") as caught:
        Reference(_Points(), 2, seed=0)
    assert "at least 3" in caught.value.allowed


def test_non_finite_samples_are_refused():
    samples = torch.zeros(50, 2)
    samples[3, 1] = math.nan
    with pytest.raises(MfdError, match="1 of 50 samples"):
        Reference(_Points(), 50, seed=0).score(samples)


def test_data_without_samples_has_no_quality(teacher):
    class Prompts(_Points):
        def reference(self, count: int | None, seed: int) -> Tensor:
            return Data.reference(self, count, seed)

    with pytest.raises(TeacherError, match="no reference samples"):
        judge(teacher, Prompts(), num=10)


def _figures(value: float, error: float = 0.01) -> dict[str, Measured]:
    return {"m": Measured(value, error, 100)}


@pytest.mark.parametrize(
    ("few", "student", "many", "expected"),
    [
        (10.0, 2.0, 2.0, 1.0),  # as good as the teacher, less is better
        (10.0, 10.0, 2.0, 0.0),  # no better than the teacher in few steps
        (10.0, 1.0, 2.0, 1.125),  # better than the teacher
        (10.0, 12.0, 2.0, -0.25),  # worse
    ],
)
def test_gap_recovered(few, student, many, expected):
    assert gap_recovered(_figures(few), _figures(student), _figures(many))["m"] == pytest.approx(expected)


def test_more_may_be_better():
    few, student, many = ({"in_mode": Measured(value, 0.01, 100, True)} for value in (0.2, 0.8, 1.0))
    assert gap_recovered(few, student, many)["in_mode"] == pytest.approx(0.75)


def test_a_teacher_that_more_steps_make_worse_leaves_no_gap():
    assert gap_recovered(_figures(2.0), _figures(1.0), _figures(10.0))["m"] is None
    few, student, many = ({"class_agreement": Measured(value, 0.0, 100, True)} for value in (1.0, 0.998, 0.999))
    assert gap_recovered(few, student, many)["class_agreement"] is None


def test_a_gap_within_noise_is_none():
    assert gap_recovered(_figures(1.0, 0.1), _figures(0.9), _figures(0.8, 0.1))["m"] is None
    assert gap_recovered(_figures(1.0, 0.0), _figures(0.9), _figures(1.0, 0.0))["m"] is None
    assert gap_recovered(_figures(1.0, 0.01), _figures(0.9), _figures(0.8, 0.01))["m"] == pytest.approx(0.5)


def test_metrics_that_one_model_lacks_are_left_out():
    assert gap_recovered({}, _figures(1.0), _figures(2.0)) == {}
