"""A run that is stopped and continued ends as if it had not been: bit for bit, at any step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mfd_cli.errors import Interrupted, MfdError
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.files import sha256
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student
from mfd_cli.store.tensors import read_tensors, write_tensors
from mfd_cli.training import run as story
from mfd_cli.training.reporting import Reporter
from mfd_cli.training.run import distill

pytestmark = pytest.mark.usefixtures("tiny")


class Notes(Reporter):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def run(output: str, settings: Sequence[str] = (), **more: Any) -> RunFolder:
    return distill("tiny.yaml", output=output, overrides=settings, **more)


def stopped(output: str, after: int, settings: Sequence[str], monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """A run that is told to stop so that it ends after `after` optimizer steps."""
    original = story.Trainer.run

    def told(trainer: Any, at_border: Any, stop: Any) -> None:
        original(trainer, at_border, lambda: trainer.progress.step >= after - 1)

    with monkeypatch.context() as patch:
        patch.setattr(story.Trainer, "run", told)
        with pytest.raises(Interrupted) as caught:
            run(output, settings, **more)
    assert caught.value.exit_code == 143 and "a checkpoint was saved" in caught.value.found


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def assert_same(one: RunFolder, two: RunFolder) -> None:
    """Students, last checkpoints and metrics are equal, bit for bit."""
    first, second = read_student(one.root), read_student(two.root)
    assert first.config["weights_sha256"] == second.config["weights_sha256"]
    last, other = (newest_valid(folder.checkpoints)[0] for folder in (one, two))
    assert last is not None and other is not None and last.path.name == other.path.name
    assert {file.name for file in last.path.iterdir()} == {file.name for file in other.path.iterdir()}
    for file in last.path.glob("*.safetensors"):
        mine, theirs = read_tensors(file), read_tensors(other.path / file.name)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), (file.name, name)
    for state in (last.state, other.state):
        del state["progress"]["seconds"]
    assert last.state == other.state
    assert lines(one) == lines(two)
    assert one.read_record()["evaluations"] == two.read_record()["evaluations"]


@pytest.mark.parametrize(
    ("after", "settings"),
    [
        (1, []),  # an auxiliary step into the first cycle
        (3, []),  # the border of a cycle
        (7, ["log.every=4"]),  # mid-cycle, between two lines of metrics
        (8, ["train.accumulation=2", "optim.student.schedule=linear", "optim.student.warmup=3"]),
        (9, ["train.accumulation=2", "train.precision=bf16"]),
        (11, ["train.ema=null", "method.type=diff-instruct"]),
        (17, []),  # the last auxiliary step
    ],
)
def test_stopped_and_continued_equals_undisturbed(
    after: int, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole", settings)
    stopped("parts", after, settings, monkeypatch)
    parts = RunFolder(Path("parts"))
    assert parts.read_record()["status"] == "interrupted" and not parts.student.exists()
    cycles, inside = divmod(after, 3)
    assert [path.name for path in parts.checkpoints.iterdir()] == [
        f"update-{cycles:06d}" + (f".{inside}" if inside else "")
    ]
    told = Notes()
    assert run("parts", settings, resume=True, reporter=told) == parts
    assert any("continues from update-00000" in text for text in told.texts)
    assert_same(whole, parts)


def test_stopped_many_times_equals_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole", ["train.updates=3", "log.every=2"])
    for after in range(1, 9):
        stopped("parts", after, ["train.updates=3", "log.every=2"], monkeypatch, resume=after > 1)
    assert_same(whole, run("parts", ["train.updates=3", "log.every=2"], resume=True))


@pytest.mark.slow
def test_previews_logging_and_checkpoints_change_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    from mfd_cli.training.previews import save_preview

    quiet = run("quiet")
    monkeypatch.setattr(story, "save_preview", save_preview)
    busy = run("busy", ["log.preview_every=3", "log.every=2", "log.checkpoint_every=1", "evaluate.num=400"])
    assert len(list(busy.previews.glob("*.png"))) == 3 and busy.report.is_file()
    assert read_student(quiet.root).config["weights_sha256"] == read_student(busy.root).config["weights_sha256"]


def test_a_damaged_newest_checkpoint_falls_back_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["log.checkpoint_every=2"]
    whole = run("whole", settings)
    stopped("parts", 16, settings, monkeypatch)
    folder = Path("parts/checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == ["update-000004", "update-000005.1"]
    (folder / "update-000005.1" / "aux.safetensors").write_bytes(b"")
    told = Notes()
    parts = run("parts", settings, resume=True, reporter=told)
    assert "passed over parts/checkpoints/update-000005.1: damaged: aux.safetensors has 0 bytes" in told.texts[0]
    assert told.texts[1] == "continues from update-000004"
    assert_same(whole, parts)
    assert sorted(path.name for path in folder.iterdir()) == [
        "passed-over-update-000005.1", "update-000004", "update-000006",
    ]  # fmt: skip


@pytest.mark.parametrize("part", ["student", "aux", "ema", "optim", "state"])
def test_a_checkpoint_that_lost_a_part_is_no_fresh_start(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped("parts", 4, [], monkeypatch)
    (checkpoint,) = Path("parts/checkpoints").iterdir()
    (file,) = checkpoint.glob(f"{part}.*")
    file.unlink()
    with pytest.raises(MfdError, match=rf"no checkpoint to resume from \(.*{part}\.\w+ is missing") as caught:
        run("parts", resume=True)
    assert caught.value.exit_code == 2


def rewritten(path: Path, part: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes one part of a checkpoint, and its manifest so that the part counts as whole."""
    file = path / f"{part}.{'json' if part == 'state' else 'safetensors'}"
    if part == "state":
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        write_tensors(file, change(read_tensors(file)))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def without(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {name: value for name, value in content.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("student", without("layers.0"), r"student\.safetensors: weights do not fit the network: missing layers\.0"),
        ("aux", without(""), r"aux\.safetensors: weights do not fit the network"),
        ("ema", without(""), r"ema\.safetensors: weights do not fit the network"),
        ("optim", without("student/"), "no state of the optimizer of student, which made updates"),
        ("optim", without("aux/"), "no state of the optimizer of aux, which made updates"),
        ("optim", without("aux/layers.0.weight/exp_avg_sq"), r"optim\.safetensors: optimizer state .* incomplete"),
        ("state", without("progress"), r"state\.json: no position to continue from"),
    ],
)
def test_a_state_that_cannot_be_restored_is_an_error_that_names_it(
    part: str, change: Callable[..., Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped("parts", 4, [], monkeypatch)
    (checkpoint,) = Path("parts/checkpoints").iterdir()
    rewritten(checkpoint, part, change)
    with pytest.raises(MfdError, match=words) as caught:
        run("parts", resume=True)
    assert caught.value.exit_code == 2 and not Path("parts/student").exists()


def test_a_finished_run_says_so_and_nothing_changes() -> None:
    folder = run("whole")
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")}
    told = Notes()
    assert run("whole", resume=True, reporter=told) == folder
    assert told.texts == ["whole: this run is finished; nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")} == before


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_lost_student_of_a_finished_run_is_written_again(damage: str) -> None:
    folder, told = run("whole"), Notes()
    weights = folder.student / "model.safetensors"
    before, written = weights.read_bytes(), lines(folder)
    if damage == "removed":
        shutil.rmtree(folder.student)
    else:
        weights.write_bytes(before[:-1])
    run("whole", resume=True, reporter=told)
    assert told.texts[0].startswith("the run is finished, but its student is lost: whole")
    assert weights.read_bytes() == before and lines(folder) == written
    assert folder.read_record()["status"] == "finished"


def test_a_student_of_a_later_mfd_is_no_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = run("whole").student / "model.safetensors"
    before = weights.read_bytes()
    monkeypatch.setattr("mfd_cli.store.student.FORMAT", 0)  # so that this one's is later
    with pytest.raises(MfdError, match="this mfd reads up to 0") as caught:
        run("whole", resume=True)
    assert caught.value.do == "use a newer mfd" and weights.read_bytes() == before


def test_a_changed_recipe_is_refused_with_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped("parts", 4, [], monkeypatch)
    with pytest.raises(MfdError) as caught:
        run("parts", ["train.batch_size=32", "method.solver.steps=3", "log.every=2"], resume=True)
    assert "method.solver.steps: 2 -> 3; train.batch_size: 16 -> 32" in caught.value.found
    assert "log.every" not in caught.value.found
    assert "mfd distill parts/recipe.yaml -o parts --resume" in str(caught.value.do)


def test_harmless_keys_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole")
    stopped("parts", 4, [], monkeypatch)
    parts = run("parts", ["log.checkpoint_every=4", "name=other", "log.keep=3", "evaluate.batch_size=7"], resume=True)
    assert lines(whole) == lines(parts)
    assert read_student(whole.root).config["weights_sha256"] == read_student(parts.root).config["weights_sha256"]
    assert "name: other" in parts.recipe.read_text()


def test_another_teacher_under_the_same_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from teachers.gmm import GaussianMixtureTeacher

    stopped("parts", 4, [], monkeypatch)
    monkeypatch.setattr(GaussianMixtureTeacher, "identity", lambda teacher: {"mixture": "another"})
    with pytest.raises(MfdError, match="the teacher has changed since the run began"):
        run("parts", resume=True)


def test_nothing_to_resume_is_an_error() -> None:
    with pytest.raises(MfdError, match="nowhere: no run to resume"):
        run("nowhere", resume=True)
    assert not Path("nowhere").exists()


def test_a_run_folder_is_enough_to_repeat_the_run() -> None:
    whole = run("whole")
    again = distill(whole.recipe, output="again")
    assert_same(whole, again)


def test_metrics_past_the_checkpoint_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole", ["log.checkpoint_every=2"])
    shutil.copytree("whole", "parts")
    parts = RunFolder(Path("parts"))
    # as after a power cut: the last checkpoint is gone, a line of the metrics is cut
    shutil.rmtree(parts.checkpoints / "update-000006")
    shutil.rmtree(parts.student)
    parts.update_record(status="running")
    parts.metrics.write_text(parts.metrics.read_text() + '{"update": 7, "lo')
    assert_same(whole, run("parts", ["log.checkpoint_every=2"], resume=True))


@pytest.mark.parametrize("after", [4, 6, 11])
def test_warnings_and_judgements_go_on_where_they_were(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [
        "evaluate.every=2", "evaluate.quick_num=100", "log.every=4", "log.checkpoint_every=3",
        "guards.after=1", "guards.lag=0.001", "guards.repeat=2", "guards.unmoved=5",
    ]  # fmt: skip
    whole = run("whole", settings)
    stopped("parts", after, settings, monkeypatch)
    parts = run("parts", settings, resume=True)
    assert_same(whole, parts)
    numbers = lines(whole)
    assert [each["guard"] for line in numbers for each in line.get("warnings", [])] == ["lag"] * 3
    assert [line["update"] for line in numbers if "quality" in line] == [0, 2, 4, 6]
    for name in ("best", "warnings"):
        assert whole.read_record()[name] == parts.read_record()[name]
    assert sorted(path.name for path in whole.best.iterdir()) == sorted(path.name for path in parts.best.iterdir())
