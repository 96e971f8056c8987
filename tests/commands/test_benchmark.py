"""`mfd benchmark` on stored students of the mixture: output, JSON, comparison, refusals."""

import json
from pathlib import Path

import pytest
import torch

from mfd_cli.commands.benchmark import benchmark
from mfd_cli.errors import MfdError
from mfd_cli.store.student import save_student
from teachers.base import TeacherError
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher


def _save(folder: Path, seed: int = 0, **changes) -> str:
    settings = GaussianMixtureSettings(type="gmm", steps=5)
    teacher = GaussianMixtureTeacher.load(settings)
    torch.manual_seed(seed)
    config = {
        "mfd_version": "0.1.0", "teacher": settings.model_dump(mode="json"), "architecture": teacher.architecture,
        "student": {"steps": 1, "shift": 1.0, "sampler": "euler", "grid": [0.0, 1.0]}, "data": {"type": "gmm"},
        "method": "mfd", "update": 10, "ema": None, "identity": teacher.identity(),
        "recipe": {"name": "toy", "evaluate": {"num": 200, "batch_size": 100}},
    }  # fmt: skip
    save_student(folder, config | changes, teacher.build_network().state_dict())
    return str(folder)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A hundredth of the usual timing."""
    from mfd_cli.inference import benchmark as composing

    class Quick(composing.Effort):
        def __init__(self, **settings):
            super().__init__(**settings | {"min_seconds": 0.02, "max_seconds": 0.3})

    monkeypatch.setattr(composing, "Effort", Quick)


@pytest.fixture
def run(tmp_path) -> str:
    return _save(tmp_path / "student")


def test_neither_flag_does_both(run, capsys):
    found = benchmark(run)
    out = capsys.readouterr().out
    assert found["speedup"]["teacher_steps"] == 5 and found["num"] == 200
    assert found["gap_recovered"].keys() == {"frechet", "sliced_wasserstein", "in_mode", "mode_coverage"}
    assert [(row["model"], row["steps"]) for row in found["rows"]] == [("teacher", 1), ("teacher", 5), ("student", 1)]
    assert "5-step teacher -> 1-step student" in out and "frechet" in out and "latency" in out


def test_fps_alone_judges_nothing(run, capsys):
    found = benchmark(run, fps=True, batch_size="8")
    assert found["rows"][0]["metrics"] == {} and found["rows"][0]["batch_size"] == 8 and found["gap_recovered"] == {}
    assert "frechet" not in capsys.readouterr().out


def test_several_batch_sizes_make_a_table_of_their_own(run, capsys):
    found = benchmark(run, fps=True, batch_size="4, 1,2")
    assert {row["batch_size"] for row in found["rows"]} == {1}
    assert [(entry["model"], entry["steps"], entry["batch_size"]) for entry in found["batches"]] == [
        (model, steps, size) for size in (2, 4) for model, steps in (("teacher", 1), ("teacher", 5), ("student", 1))
    ]
    for entry in found["batches"]:
        assert entry["fps"] == pytest.approx(1000 * entry["batch_size"] / entry["latency_ms"]["median"])
    assert "samples a second, by batch size" in capsys.readouterr().out


def test_what_a_network_went_through_is_told(run):
    found = benchmark(run, fps=True, channels_last=True)
    assert found["channels_last"] and not found["compiled"] and found["batches"] == []
    assert all(row["warm_up_s"] > 0 for row in found["rows"])


@pytest.mark.parametrize("sizes", ["0", "1,x", "-1", ""])
def test_batch_sizes_are_whole_numbers(run, sizes):
    with pytest.raises(MfdError, match="--batch-size"):
        benchmark(run, batch_size=sizes)


def test_quality_alone_has_one_batch_size(run):
    with pytest.raises(MfdError, match="without timing"):
        benchmark(run, quality=True, batch_size="1,2")


def test_quality_alone_times_nothing(run):
    found = benchmark(run, quality=True, num=150)
    assert found["speedup"] is None and found["rows"][0]["fps"] is None and found["num"] == 150
    assert [row["evaluations"] for row in found["rows"]] == [1, 5, 1]


def test_json_alone_on_stdout(run, capsys):
    found = benchmark(run, quality=True, json_target="-")
    assert json.loads(capsys.readouterr().out) == found


def test_json_in_a_file_leaves_the_table_on_stdout(run, capsys, tmp_path):
    found = benchmark(run, quality=True, json_target=str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert "gap recovered" in capsys.readouterr().out


def test_further_steps_and_runs_join_the_table(run, tmp_path, capsys):
    other = _save(tmp_path / "other", seed=1, method="diff-instruct")
    found = benchmark(run, quality=True, steps="4,2", teacher_steps="3", compare=[other])
    rows = [(row["model"], row["steps"], row["method"], row["run"]) for row in found["rows"]]
    assert rows == [
        *(("teacher", steps, None, None) for steps in (1, 2, 3, 4, 5)),
        ("student", 1, "mfd", run), ("student", 2, "mfd", run), ("student", 4, "mfd", run),
        ("student", 1, "diff-instruct", other),
    ]  # fmt: skip
    assert found["gap_recovered"] == found["rows"][5]["gap_recovered"] != found["rows"][-1]["gap_recovered"]
    assert other in capsys.readouterr().out


def test_the_same_seed_gives_the_same_quality(run):
    first, second = (benchmark(run, quality=True, seed=3) for _ in range(2))
    assert first["rows"][-1]["metrics"] == second["rows"][-1]["metrics"]
    assert benchmark(run, quality=True, seed=4)["rows"][-1]["metrics"] != first["rows"][-1]["metrics"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "0"}, "--steps 0"),
        ({"steps": "1,x"}, "--steps 1,x"),
        ({"steps": ""}, "--steps "),
        ({"teacher_steps": "-1"}, "--teacher-steps -1"),
        ({"num": 0}, "--num 0"),
        ({"batch_size": "0"}, "--batch-size 0"),
        ({"num": 2, "quality": True}, "2 samples are too few"),
        ({"compare": ["nowhere"]}, "nowhere"),
        ({"json_target": "no/such/folder/x.json"}, "no/such/folder"),
    ],
)
def test_wrong_input_is_refused(run, options, message):
    with pytest.raises(MfdError) as caught:
        benchmark(run, **options)
    assert message in caught.value.found and (caught.value.allowed or caught.value.do)


def test_an_unknown_run_is_refused(tmp_path):
    with pytest.raises(MfdError, match="no such run"):
        benchmark(str(tmp_path / "nothing"))


def test_runs_of_different_data_do_not_compare(run, tmp_path):
    other = _save(tmp_path / "other", data={"type": "digits"})
    with pytest.raises(MfdError, match="its data is"):
        benchmark(run, quality=True, compare=[other])


def test_missing_teacher_weights_leave_the_students(run, monkeypatch, capsys):
    def missing(settings):
        raise TeacherError("weights are missing")

    monkeypatch.setattr(GaussianMixtureTeacher, "load", missing)
    found = benchmark(run)
    assert [row["model"] for row in found["rows"]] == ["student"]
    assert found["speedup"] is None and found["gap_recovered"] == {} and found["rows"][0]["metrics"]["frechet"] > 0
    captured = capsys.readouterr()
    assert "the teacher is left out: weights are missing" in captured.err
    with pytest.raises(TeacherError, match="weights are missing"):
        benchmark(run, teacher_steps="3")


def test_another_teacher_than_the_students_own_is_told(tmp_path, capsys):
    found = benchmark(_save(tmp_path / "student", identity={"mixture": "another"}), quality=True)
    assert "not those that the student was distilled from" in capsys.readouterr().err
    assert len(found["notes"]) == 1


def test_data_without_samples_is_a_note_unless_quality_was_asked_for(run, monkeypatch):
    def none(self, count, seed):
        raise TeacherError("no reference samples")

    monkeypatch.setattr(GaussianMixtureData, "reference", none)
    found = benchmark(run)
    assert found["notes"] == ["quality was not measured: no reference samples"] and found["rows"][0]["fps"] > 0
    with pytest.raises(TeacherError, match="no reference samples"):
        benchmark(run, quality=True)
