"""What may be done with a run folder: nothing of others is overwritten, nothing is begun that cannot be ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.store import checkpoint
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.lock import locked
from mfd_cli.store.student import read_student
from mfd_cli.training.folder import open_folder, plan_run, remove_run, resume_command
from mfd_cli.training.run import distill

pytestmark = pytest.mark.usefixtures("tiny")


def plan(folder: str, resume: bool = False, force: bool = False) -> Any:
    return plan_run(Path(folder), load_recipe("tiny.yaml"), resume=resume, force=force)


def make(root: str) -> RunFolder:
    run = RunFolder(Path(root))
    run.root.mkdir(parents=True)
    run.update_record(status="finished")
    return run


def test_a_new_or_empty_folder_is_taken() -> None:
    Path("empty").mkdir()
    for folder in ("empty", "new/deep"):
        found = plan(folder)
        assert found.checkpoint is None and not found.replace and not found.finished
    assert not Path("new").exists()


def test_a_run_is_not_overwritten_without_force() -> None:
    make("run")
    with pytest.raises(MfdError, match=r"run: holds a run \(finished\) and would be overwritten") as caught:
        plan("run")
    assert "--resume" in str(caught.value.do) and "--force" in str(caught.value.do)
    assert plan("run", force=True).replace


def test_foreign_files_are_never_removed() -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years")
    with pytest.raises(MfdError, match="holds files that are not a run's"):
        plan("mine")
    assert not plan("mine", force=True).replace
    run = distill("tiny.yaml", output="mine", force=True)
    (run.root / "notes.txt").write_text("mine too")
    distill("tiny.yaml", output="mine", force=True)
    assert Path("mine/thesis.txt").read_text() == "years" and Path("mine/notes.txt").read_text() == "mine too"


def test_force_leaves_nothing_of_the_earlier_run() -> None:
    run = distill("tiny.yaml", output="run", overrides=["train.updates=9", "log.checkpoint_every=1"])
    run.report.write_text("{}")
    (run.previews / "update-000009.png").write_text("old")
    distill("tiny.yaml", output="run", force=True)
    assert [path.name for path in run.checkpoints.iterdir()] == ["update-000006"]
    assert not run.report.exists() and list(run.previews.iterdir()) == []
    assert len(run.metrics.read_text().splitlines()) == 6


def test_a_removal_that_is_cut_short_still_leaves_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = distill("tiny.yaml", output="run")

    def killed(self: Path, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_run(run)
    assert run.is_run() and plan("run", force=True).replace


@pytest.mark.parametrize("arguments", [{"resume": True, "force": True}])
def test_resume_and_force_exclude_each_other(arguments: dict[str, bool]) -> None:
    with pytest.raises(MfdError, match="--resume and --force together"):
        plan("run", **arguments)


def test_a_file_in_the_way_is_refused() -> None:
    Path("file").write_text("x")
    with pytest.raises(MfdError, match="file: a file stands where the run folder should be"):
        plan("file")
    with pytest.raises(MfdError, match=r"file/run: cannot be written \(Not a directory\)"):
        distill("tiny.yaml", output="file/run")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(MfdError, match="cannot be written"):
        distill("tiny.yaml", output="locked/run")


def test_a_disk_that_is_too_full_is_found_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: 10)
    with pytest.raises(MfdError, match=r"run: the run needs .* and 10 B are free") as caught:
        distill("tiny.yaml", output="run")
    assert caught.value.exit_code == 2 and not Path("run").exists() and not Path("runs").exists()


def test_open_folder_leaves_only_the_folder() -> None:
    open_folder(plan("deep/run"), 100)
    assert list(Path("deep/run").iterdir()) == []


def test_a_second_process_is_refused() -> None:
    run = make("run")
    with locked(run.root), pytest.raises(MfdError, match="run: in use by process"):
        distill("tiny.yaml", output="run", force=True)
    assert run.read_record() == {"status": "finished"}


def test_a_damaged_record_is_told_and_can_be_replaced() -> None:
    make("run").record.write_text("{")
    with pytest.raises(MfdError, match="cannot be read"):
        plan("run")
    assert plan("run", force=True).replace


@pytest.mark.parametrize("name", ["with spaces", "größe-√2", "x" * 200, "a/b/c"])
def test_unusual_names_work(name: str) -> None:
    run = distill("tiny.yaml", output=name)
    assert read_student(run.root).config["update"] == 6


def test_a_name_that_no_file_system_takes_is_an_error() -> None:
    with pytest.raises((MfdError, OSError), match="name too long"):
        distill("tiny.yaml", output="x" * 300)


def test_a_name_with_nul_is_an_error() -> None:
    with pytest.raises(MfdError, match="cannot be written"):
        distill("tiny.yaml", output="a\0b")
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("name", ["checkpoints", "previews", "best", "student", ".lock"])
def test_a_link_out_of_the_run_folder_is_refused(name: str) -> None:
    outside = Path("outside")
    outside.mkdir()
    (outside / ".thesis.0123abcd").write_text("years")  # what a tidy folder of mfd would not hold
    distill("tiny.yaml", output="run", overrides=["train.updates=1"])
    place = Path("run", name)
    if place.exists():
        place.rename(f"{name}-before")
    place.symlink_to(outside.resolve() if name != ".lock" else outside.resolve() / ".thesis.0123abcd")
    for more in ({"resume": True}, {"force": True}, {}):
        with pytest.raises(MfdError, match=rf"run/{name}: a link that leads out of the run folder"):
            distill("tiny.yaml", output="run", overrides=["train.updates=1"], **more)
    assert [path.name for path in outside.iterdir()] == [".thesis.0123abcd"]
    assert (outside / ".thesis.0123abcd").read_text() == "years"


def test_a_link_that_stays_inside_is_followed() -> None:
    Path("run/kept").mkdir(parents=True)
    Path("run/checkpoints").symlink_to("kept")
    distill("tiny.yaml", output="run", force=True)
    assert list(Path("run/kept").iterdir())


def test_the_command_to_continue_can_be_pasted() -> None:
    assert resume_command(RunFolder(Path("my run"))) == "mfd distill 'my run/recipe.yaml' -o 'my run' --resume"
