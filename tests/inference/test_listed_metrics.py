"""Metrics that a recipe lists: which are used, what they are given, and what the report says of student and teacher."""

from typing import Literal

import pytest
import torch

from mfd_cli.config.schema import Evaluate
from mfd_cli.errors import MfdError, TeacherError
from mfd_cli.inference.benchmark import Contestant, Effort, closing_report, contestants, report, summary
from mfd_cli.inference.quality import Reference, check_metrics, judge_of
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from mfd_cli.metrics.contract import Metric, MetricSettings, higher_is_better
from mfd_cli.metrics.registry import metrics as registry
from mfd_cli.metrics.uncertainty import mean_of
from teachers.base import Data
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.occfm.driving import DrivingData, DrivingSettings
from teachers.settings import Settings


class _LengthSettings(MetricSettings):
    unit: Literal["one", "hundred"] = "one"
    file: str | None = None


class _Length(Metric):
    """Mean distance from the origin; for data without real samples, too."""

    Settings = _LengthSettings
    seen: list = []  # noqa: RUF012

    @classmethod
    def check(cls, settings):
        if settings.file is not None:
            raise MfdError(f"length: {settings.file}: no such file")

    def prepare(self, against):
        self.scale = {"one": 1, "hundred": 100}[self.settings.unit]
        _Length.seen.append(against.real is None)

    def rows(self, batch):
        _Length.seen.append((len(batch.samples), batch.prompts))
        return self.scale * batch.samples.norm(dim=1)

    def figures(self, rows, groups):
        return {self.named("length"): mean_of(rows, groups, more_is_better=True)}

    def details(self):
        return {"model": "a ruler", "unit": self.settings.unit}


@pytest.fixture(autouse=True)
def length(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {"length": _Length})
    monkeypatch.setattr(_Length, "seen", [])


@pytest.fixture
def teacher() -> Sampler:
    return teacher_sampler(GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm", steps=20)))


class _Prompts(GaussianMixtureData):
    """The mixture as if it were prompts: no real samples, a text for every item."""

    @property
    def size(self):
        return 4

    def reference(self, count, seed):
        return Data.reference(self, count, seed)

    def texts(self, items):
        return [f"point {item}" for item in items.tolist()]


def _listed(*blocks):
    return Evaluate.model_validate({"metrics": list(blocks)}).metrics


def _data(teacher, kind=GaussianMixtureData):
    return kind.load(Settings(type="gmm"), teacher.teacher)


def _student(teacher: Sampler, steps: int) -> Sampler:
    return Sampler("student", teacher.teacher, teacher.network, steps)


def test_listed_metrics_come_beside_those_that_the_data_allow(teacher):
    judge = judge_of(_data(teacher), 60, 0, _listed({"type": "length"}, {"type": "mmd"}))
    found = judge.judge(teacher, steps=2, batch_size=25)
    assert list(found) == ["frechet", "sliced_wasserstein", "in_mode", "mode_coverage", "length", "mmd"]
    assert _Length.seen == [False, (25, None), (25, None), (10, None)]
    assert judge.described()["length"] == {"type": "length", "model": "a ruler", "unit": "one"}
    assert judge.described()["mmd"]["bandwidth"] > 0


def test_a_listed_metric_takes_the_place_of_the_one_without_settings(teacher):
    judge = judge_of(_data(teacher), 60, 0, _listed({"type": "sliced-wasserstein", "directions": 16}))
    found = judge.judge(teacher, steps=2, batch_size=60)
    assert list(found) == ["frechet", "in_mode", "mode_coverage", "sliced_wasserstein"]
    assert judge.described()["sliced_wasserstein"]["directions"] == 16


def test_prompts_are_judged_by_listed_metrics_alone_and_handed_on(teacher):
    data = _data(teacher, _Prompts)
    with pytest.raises(TeacherError, match="no reference samples"):
        judge_of(data, 8, 0)
    judge = judge_of(data, 8, 0, _listed({"type": "length", "unit": "hundred", "label": "cm"}))
    found = judge.judge(teacher, steps=1, batch_size=4)
    assert judge.count == 0 and list(found) == ["length_cm"]
    texts = [text for part in _Length.seen[1:] for text in part[1]]
    assert sorted(texts) == sorted(2 * [f"point {item}" for item in range(4)]), "each prompt once an epoch"


def test_metrics_of_real_samples_are_refused_for_prompts(teacher):
    for name in ("mmd", "precision-recall", "frechet"):
        with pytest.raises(MfdError, match=f"{name} needs real samples"):
            judge_of(_data(teacher, _Prompts), 8, 0, _listed({"type": name}))


def test_forecasts_take_no_further_metrics():
    data = DrivingData.load(DrivingSettings(type="driving", scenes=1, frames=13), None)
    with pytest.raises(MfdError, match="length of forecasts"):
        judge_of(data, 8, 0, _listed({"type": "length"}))


def test_missing_files_are_told_before_anything_is_sampled():
    with pytest.raises(MfdError, match="weights: no such file"):
        check_metrics(_listed({"type": "length"}, {"type": "length", "label": "b", "file": "weights"}))


def test_directions_of_the_metrics_without_weights_are_those_told_by_name(teacher):
    found = judge_of(_data(teacher), 60, 0, _listed({"type": "precision-recall"}, {"type": "mmd"})).judge(
        teacher, steps=2, batch_size=60
    )
    assert {name: figure.more_is_better for name, figure in found.items()} == {
        name: higher_is_better(name) for name in found
    }
    for name in ("clip-score", "pickscore", "aesthetic", "hpsv2", "image-reward", "fid", "fd-dinov2"):
        assert registry.get(name).more_is_better == higher_is_better(name.replace("-", "_"))


def test_a_student_that_is_its_teacher_is_within_error(teacher):
    rows = contestants(teacher, [Contestant(_student(teacher, 20), 20, "mfd")])
    data = _data(teacher)
    judge = Reference(data, 200, 0, _listed({"type": "length"}))
    found = report(rows, data, Effort(fps=False, num=200), reference=judge)
    student = found["rows"][-1]
    assert student["differences"].keys() == student["metrics"].keys()
    assert all(
        entry == {"value": 0.0, "standard_error": 0.0, "within_error": True}
        for entry in student["differences"].values()
    )
    (line,) = [line for line in summary(found) if line.startswith("student - 20-step teacher")]
    assert "length +0 ± 0 (within error)" in line
    assert "length: by a ruler" in summary(found)


def test_a_worse_student_is_told_apart_and_the_error_is_paired(teacher):
    rows = contestants(teacher, [Contestant(_student(teacher, 2), 2, "mfd")])
    data = _data(teacher)
    found = report(
        rows, data, Effort(fps=False, num=300), reference=Reference(data, 300, 0, _listed({"type": "length"}))
    )
    _, many, student = found["rows"]
    entry = student["differences"]["length"]
    assert entry["value"] == pytest.approx(student["metrics"]["length"] - many["metrics"]["length"])
    lengths = {}
    for row, steps in ((student, 2), (many, 20)):
        noise = teacher.noise(300, seed=0)
        lengths[steps] = teacher.generate(noise, {}, steps=steps).norm(dim=1)
        assert row["metrics"]["length"] == pytest.approx(lengths[steps].mean().item(), rel=1e-5)
    expected = (lengths[2] - lengths[20]).double().std().item() / 300**0.5
    assert entry["standard_error"] == pytest.approx(expected, rel=1e-4) and not entry["within_error"]
    assert found["better"]["length"] == "more" and found["better"]["frechet"] == "less"
    assert found["metric_details"]["length"]["unit"] == "one"
    assert student["gap_recovered"]["length"] == pytest.approx(0, abs=1e-6)
    assert student["gap_recovered_errors"]["length"] == pytest.approx(0, abs=1e-6), "it is the teacher in few steps"
    (line,) = [line for line in summary(found) if line.startswith("student - 20-step teacher")]
    assert "length" in line and "length +0" not in line


def test_the_closing_check_uses_them_and_notes_what_is_gone(teacher):
    data, student = _data(teacher, _Prompts), _student(teacher, 1)
    options = {"num": 8, "batch_size": 4, "seconds": 0.02}
    found = closing_report(teacher, student, data, metrics=_listed({"type": "length"}), **options)
    assert found["rows"][0]["metrics"].keys() == {"length"} and found["reference_num"] is None and found["num"] == 8
    assert torch.tensor(found["rows"][0]["standard_errors"]["length"]) > 0
    found = closing_report(teacher, student, data, metrics=_listed({"type": "mmd"}), **options)
    assert "mmd needs real samples" in found["notes"][0] and found["rows"][0]["fps"] > 0
