"""`mfd report` on a stored student of the mixture: files, JSON, measuring, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mfd_cli.commands.report import report
from mfd_cli.errors import MfdError
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student, save_student
from teachers.gmm import GaussianMixtureSettings, GaussianMixtureTeacher


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the usual timing."""
    from mfd_cli.report import measure

    class Quick(measure.Effort):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings, min_seconds=0.02, max_seconds=0.3)

    monkeypatch.setattr(measure, "Effort", Quick)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A finished run without a closing check."""
    monkeypatch.chdir(tmp_path)
    settings = GaussianMixtureSettings(type="gmm", steps=5)
    teacher = GaussianMixtureTeacher.load(settings)
    torch.manual_seed(0)
    config = {
        "mfd_version": "0.1.0", "teacher": settings.model_dump(mode="json"), "architecture": teacher.architecture,
        "student": {"steps": 1, "shift": 1.0, "sampler": "euler", "grid": [0.0, 1.0]}, "data": {"type": "gmm"},
        "method": "mfd", "update": 10, "ema": None, "identity": teacher.identity(),
        "recipe": {"name": "toy", "teacher": {"type": "gmm", "steps": 5}, "data": {"type": "gmm"},
                   "evaluate": {"num": 200, "batch_size": 100}},
    }  # fmt: skip
    folder = RunFolder(Path("runs/toy"))
    folder.root.mkdir(parents=True)
    save_student(folder.student, config, teacher.build_network().state_dict())
    folder.update_record(status="finished", recipe="toy")
    return folder


@pytest.mark.usefixtures("run")
def test_the_newest_run_becomes_a_page_here(capsys: pytest.CaptureFixture[str]) -> None:
    target = report()
    assert target == Path("toy-report.html") and capsys.readouterr().out == "toy-report.html\n"
    text = target.read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>") and "teacher, 5 steps" in text and "Not measured" in text
    assert sorted(path.name for path in Path().iterdir()) == ["runs", "toy-report.html"]


@pytest.mark.usefixtures("run")
def test_a_file_that_stands_there_is_kept_unless_forced() -> None:
    Path("mine.html").write_text("mine")
    with pytest.raises(MfdError, match="exists and is left as it is"):
        report(output="mine.html")
    assert Path("mine.html").read_text() == "mine"
    report(output="mine.html", force=True)
    assert "<!DOCTYPE html>" in Path("mine.html").read_text()


def test_metrics_that_the_recipe_lists_are_measured_too(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    stored = read_student(run.student)
    stored.config["recipe"]["evaluate"]["metrics"] = [{"type": "mmd"}]
    save_student(run.student, stored.config, stored.network)
    report(benchmark=True, teacher_steps="1", json_target="-")
    rows = json.loads(capsys.readouterr().out)["benchmark"]["rows"]
    assert all("mmd" in row["metrics"] for row in rows)


@pytest.mark.usefixtures("run")
def test_measuring_fills_the_curves(capsys: pytest.CaptureFixture[str]) -> None:
    report(benchmark=True, json_target="-")
    found = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["steps"]) for row in found["benchmark"]["rows"]] == [
        ("teacher", 1), ("teacher", 2), ("teacher", 4), ("teacher", 5), ("student", 1)
    ]  # fmt: skip
    assert found["source"] == "measured for this page" and found["benchmark"]["num"] == 200
    assert {one["metric"] for one in found["verdict"]["comparisons"]} >= {"frechet", "in_mode"}
    assert found["verdict"]["cost"].startswith("In 1 step (1 network evaluation) the student is ")
    assert not Path("toy-report.html").exists(), "data alone were asked for"


@pytest.mark.usefixtures("run")
def test_page_and_data_together(capsys: pytest.CaptureFixture[str]) -> None:
    report(output="page.html", benchmark=True, teacher_steps="3", steps="2", num=150, json_target="-")
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "page.html" in captured.err and "frechet (less is better)" in Path("page.html").read_text()
    rows = [(row["model"], row["steps"]) for row in found["benchmark"]["rows"]]
    assert rows == [("teacher", 1), ("teacher", 2), ("teacher", 3), ("teacher", 5), ("student", 1), ("student", 2)]
    assert found["benchmark"]["num"] == 150


def test_a_run_without_student_is_a_page_without_samples(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.rmtree(run.student)
    run.update_record(status="failed", reason="ValueError: odd")
    target = report(str(run.root))
    assert (
        target is not None and "there is no student" in target.read_text() and "ValueError: odd" in target.read_text()
    )
    with pytest.raises(MfdError, match="--benchmark: there is no student"):
        report(str(run.root), output="other.html", benchmark=True)
    assert not Path("other.html").exists()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"output": "page.pdf"}, "no format '.pdf'"),
        ({"output": "runs"}, "is a folder"),
        ({"output": "missing/page.html"}, "the folder missing does not exist"),
        ({"num": 100}, "--num without --benchmark"),
        ({"teacher_steps": "2", "steps": "1"}, "--steps, --teacher-steps without --benchmark"),
        ({"benchmark": True, "steps": "x"}, "--steps x"),
        ({"benchmark": True, "num": 0}, "--num 0"),
        ({"run": "nowhere"}, "no such run"),
        ({"json_target": "missing/x.json"}, "the folder missing does not exist"),
    ],
)
def test_a_mistake_is_refused_and_nothing_written(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(MfdError, match=words):
        report(**flags)
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_a_real_run_its_checkpoint_and_what_an_interruption_leaves(tiny: Path) -> None:
    import shutil

    from mfd_cli import distill

    folder = distill(str(tiny), overrides=["log.checkpoint_every=3"])
    target = report()
    assert target == Path("tiny-report.html") and "6, of 16 samples" in target.read_text()
    checkpoint = report(str(folder.root / "checkpoints" / "update-000003"))
    assert checkpoint == Path("tiny-update-000003-report.html")
    text = checkpoint.read_text()
    assert "checkpoint update-000003" in text and "3 of 6, of 16 samples" in text and "closing check is about" in text
    shutil.rmtree(folder.student)
    folder.update_record(status="interrupted", reason="stopped by SIGINT after update 6")
    report(force=True)
    text = target.read_text()
    assert "This run was interrupted after update 6 of 6: stopped by SIGINT after update 6." in text
    assert "checkpoint update-000006" in text and "--resume" in text and "teacher, 10 steps" in text
