"""The report: rows, quotients, and what it says to people."""

import json

import pytest

from mfd_cli.errors import MfdError
from mfd_cli.inference import timing
from mfd_cli.inference.benchmark import Contestant, Effort, closing_report, contestants, report, summary, table
from mfd_cli.inference.quality import Reference
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from teachers.base import TeacherError
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.occfm.driving import DrivingData, DrivingSettings, TinySettings, TinyTeacher
from teachers.settings import Settings

QUICK = Effort(num=300, batch_size=300, min_seconds=0.02, max_seconds=0.2)


@pytest.fixture
def teacher() -> Sampler:
    return teacher_sampler(GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm", steps=20)))


@pytest.fixture
def data(teacher) -> GaussianMixtureData:
    return GaussianMixtureData.load(Settings(type="gmm"), teacher.teacher)


def _student(teacher: Sampler, steps: int) -> Sampler:
    """The exact field in fewer steps: a student that gains nothing but speed."""
    return Sampler("student", teacher.teacher, teacher.network, steps)


def test_rows_are_the_teacher_at_every_number_of_steps_and_then_the_students(teacher):
    students = [Contestant(_student(teacher, 1), 1), Contestant(_student(teacher, 1), 4)]
    rows = contestants(teacher, students, teacher_steps=[2, 4])
    assert [(row.sampler.name, row.steps) for row in rows] == [
        ("teacher", 1), ("teacher", 2), ("teacher", 4), ("teacher", 20), ("student", 1), ("student", 4)
    ]  # fmt: skip
    assert contestants(None, students) == students


def test_a_student_that_is_the_teacher_in_few_steps_recovers_nothing(teacher, data):
    rows = contestants(teacher, [Contestant(_student(teacher, 2), 2, "mfd", "runs/a")])
    found = report(rows, data, QUICK, reference=Reference(data, 300, 0), recipe="toy")
    assert found["gap_recovered"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["speedup"]["teacher_steps"] == 20 and found["speedup"]["student_steps"] == 2
    assert found["speedup"]["value"] == pytest.approx(found["rows"][-1]["fps"] / found["rows"][1]["fps"])
    assert found["speedup"]["value"] > 3, "a tenth of the evaluations"


def test_a_student_that_is_the_teacher_in_all_steps_recovers_everything(teacher, data):
    same = _student(teacher, 2)
    same.generate = lambda noise, condition, steps=None, fresh=None: teacher.generate(noise, condition, steps=20)  # type: ignore[method-assign]
    rows = contestants(teacher, [Contestant(same, 2)])
    found = report(rows, data, Effort(fps=False, num=300), reference=Reference(data, 300, 0))
    assert found["gap_recovered"]["frechet"] == pytest.approx(1, abs=1e-6)
    assert found["gap_recovered"]["in_mode"] == pytest.approx(1, abs=1e-6)
    assert found["speedup"] is None and found["rows"][0]["fps"] is None and found["rows"][0]["latency_ms"] is None


def test_fields_are_the_contracts(teacher, data):
    found = closing_report(
        teacher, _student(teacher, 1), data, num=200, batch_size=100, method="mfd", recipe="toy", run="runs/toy",
        seconds=0.02,
    )  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    contract = {"schema", "run", "recipe", "device", "dtype", "threads", "versions", "rows", "speedup", "gap_recovered"}
    assert contract <= found.keys() and found["schema"] == 1
    row = found["rows"][-1]
    fields = {"model", "method", "steps", "evaluations", "batch_size", "fps", "latency_ms", "decode_ms"}
    assert fields | {"peak_memory_mb", "metrics", "standard_errors"} <= row.keys()
    assert row["latency_ms"].keys() == {"median", "p10", "p90"}
    assert (row["model"], row["method"], row["steps"], row["evaluations"]) == ("student", "mfd", 1, 1)
    assert found["rows"][1]["method"] is None and found["rows"][1]["evaluations"] == 20
    assert found["versions"].keys() == {"mfd", "torch", "python"} and found["dtype"] == "float32"
    assert found["speedup"].keys() == {"student_steps", "teacher_steps", "value"}
    assert row["metrics"].keys() == row["standard_errors"].keys() == found["gap_recovered"].keys()


def test_a_run_without_reference_samples_closes_with_a_note(teacher, data, monkeypatch):
    def none(count, seed):
        raise TeacherError("this data source has no reference samples")

    monkeypatch.setattr(data, "reference", none)
    found = closing_report(teacher, _student(teacher, 1), data, num=200, batch_size=100, seconds=0.02)
    assert found["gap_recovered"] == {} and found["num"] is None and found["rows"][0]["metrics"] == {}
    assert found["speedup"]["value"] > 0
    assert summary(found)[-1] == "quality was not measured: this data source has no reference samples"


def test_a_run_with_too_few_samples_closes_with_a_note(teacher, data):
    found = closing_report(teacher, _student(teacher, 1), data, num=2, batch_size=100, seconds=0.02)
    assert "too few" in found["notes"][0]


def test_table_and_summary_say_what_was_measured():
    row = {
        "run": "runs/a", "method": None, "own_steps": 10, "guidance": 1.5, "evaluations": 20, "batch_size": 1,
        "fps": 10.0, "latency_ms": {"median": 100.0, "p10": 90.0, "p90": 110.0}, "decode_ms": 0.5,
        "metrics": {"frechet": 0.5}, "standard_errors": {"frechet": 0.01},
    }  # fmt: skip
    student = row | {"model": "student", "method": "mfd", "steps": 1, "own_steps": 1, "guidance": 1.0, "evaluations": 1}
    found = {
        "recipe": "digits", "device": "cpu", "dtype": "float32", "threads": 2, "num": 1000, "reference_num": 1797,
        "rows": [row | {"model": "teacher", "steps": 10}, student], "notes": [],
        "speedup": {"student_steps": 1, "teacher_steps": 10, "value": 9.81},
        "gap_recovered": {"frechet": 1.009, "in_mode": None},
    }  # fmt: skip
    title, columns, cells = table(found)
    assert title == "digits, cpu, float32, 2 threads, batch size 1, 1000 samples against 1797 real ones"
    assert columns[-1] == "frechet" and cells[1][-1] == "0.5 ± 0.01"
    assert all(len(line) == len(columns) for line in cells)
    first, second = summary(found)
    assert first == ("10-step teacher -> 1-step student: 9.8 times faster; gap recovered: frechet 1.01, in_mode no gap")
    assert "guided (scale 1.5" in second
    found["rows"][0]["latency_ms"]["p90"] = 300.0
    assert "unsteady" in summary(found)[2]


@pytest.mark.parametrize("name", ["num", "timed_batch", "batch_size"])
def test_an_effort_of_nothing_is_refused(name):
    with pytest.raises(MfdError, match="0"):
        Effort(**{name: 0})


@pytest.fixture(scope="module")
def forecasts(tiny_occfm):
    """The report of the smallest forecaster, 2 steps as teacher and 1 as student, and how often data were read."""
    loaded = TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(tiny_occfm), steps=2))
    data = DrivingData.load(DrivingSettings(type="driving", scenes=1, held_out=2, frames=13), loaded)
    condition, read = data.condition, []
    data.condition = lambda items: read.append(len(items)) or condition(items)
    student = Sampler("student", loaded, loaded.network, 1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LEAST": 3, "REPEATS": {"cuda": 3}, "WARM_UP": {"cuda": 1}}.items():
            patch.setattr(timing, name, value)
        found = closing_report(
            teacher_sampler(loaded), student, data, num=100, batch_size=4, seconds=0.01, timed_batch=2
        )
    return found, read


def test_forecasts_are_timed_in_frames_and_with_reading_and_copying(forecasts):
    found, read = forecasts
    for row in found["rows"]:
        assert row["frames_per_second"] == pytest.approx(6 * row["fps"])
        assert row["end_to_end_ms"] >= row["latency_ms"]["median"]
    # once to sample from, then once in every timed run; what is judged is held out and comes from elsewhere
    assert read == [2] * (1 + sum(row["timed_runs"] for row in found["rows"]))
    assert [row["evaluations"] for row in found["rows"]] == [2, 4, 1], "teacher at 1 and 2 steps, student"


def test_samples_of_one_frame_have_no_frames_per_second(teacher, data):
    found = closing_report(teacher, _student(teacher, 1), data, num=200, batch_size=100, seconds=0.02)
    assert not any({"frames_per_second", "end_to_end_ms"} & row.keys() for row in found["rows"])
    assert found["baselines"] == {} and "frames/s" not in table(found)[1]


def test_forecasts_are_judged_against_what_followed_and_beside_what_needs_no_model(forecasts):
    found, _ = forecasts
    assert found["num"] == found["reference_num"] == 4, "no more than there are held-out clips"
    student = found["rows"][-1]
    assert (
        found["gap_recovered"].keys() == student["metrics"].keys() == found["baselines"]["copy the last frame"].keys()
    )
    assert found["baselines"]["copy the last frame"]["iou"] > student["metrics"]["iou"], "the weights are random"
    assert json.loads(json.dumps(found)) == found


def test_the_table_has_the_headline_figures_and_a_row_for_each_baseline(forecasts):
    found, _ = forecasts
    title, columns, cells = table(found)
    assert columns[-5:] == ["iou", "miou", "miou_strict", "iou_1_2_3s", "miou_1_2_3s"]
    assert "iou_0.5s" in found["rows"][0]["metrics"], "single moments are in the report, but not in the table"
    assert {"frames/s", "end to end ms"} < set(columns) and all(len(line) == len(columns) for line in cells)
    last = cells[-1]
    assert [line[0] for line in cells] == ["teacher", "teacher", "student", "copy the last frame"]
    assert last[1:-5] == ["-"] * (len(columns) - 6)
    assert last[-5] == f"{found['baselines']['copy the last frame']['iou']:.4g}"
    row = cells[0]
    assert row[columns.index("frames/s")] == found["rows"][0]["frames_per_second"]
    assert title.endswith("batch size 2, 4 samples against what followed")


def test_the_summary_leaves_single_moments_out():
    row = {"model": "student", "steps": 1, "own_steps": 1, "evaluations": 1, "latency_ms": None}
    shares = {"iou": 0.95, "iou_1_2_3s": 0.9, "iou_0.5s": 0.5, "miou_3.0s": None}
    found = {"rows": [row | {"model": "teacher"}, row], "speedup": None, "gap_recovered": shares, "notes": []}
    assert summary(found) == ["1-step teacher -> 1-step student: gap recovered: iou 0.95, iou_1_2_3s 0.90"]
