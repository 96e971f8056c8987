"""Quick judgements: they change no weight, the best student is kept and found, and patience ends a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mfd_cli.commands.sample import sample
from mfd_cli.errors import MfdError
from mfd_cli.metrics.uncertainty import Measured
from mfd_cli.store.best import select
from mfd_cli.store.layout import RunFolder, find
from mfd_cli.store.student import read_student
from mfd_cli.training import run as story
from mfd_cli.training.judging import judged
from mfd_cli.training.reporting import Reporter
from mfd_cli.training.run import distill
from mfd_cli.training.tracking import scalars
from mfd_cli.training.watch import Standing

QUICK = ["evaluate.every=2", "evaluate.quick_num=100", "log.every=4"]
#: a student that stays where it is, so that every judgement finds the same
STILL = [*QUICK, "optim.student.lr=1e-30", "guards.unmoved=null", "train.updates=20"]


class Notes(Reporter):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def lines(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def follow(metric: str, *values: float, error: float = 0.1) -> tuple[Standing, list[bool]]:
    standing, best = Standing(), []
    for update, value in enumerate(values):
        standing, better = judged(standing, metric, Measured(value, error, 100), update)
        best.append(better)
    return standing, best


def test_the_best_has_the_best_figure_and_patience_wants_more_than_luck() -> None:
    standing, best = follow("frechet", 3.0, 2.0, 1.95, 1.97, 2.5)
    assert best == [True, True, True, False, False]
    assert standing == Standing("frechet", 2, 1.95, 0.1, 2.0, 3)


def test_small_steps_add_up() -> None:
    standing, _ = follow("frechet", 2.0, 1.95, 1.91, 1.88)
    assert (standing.mark, standing.waited, standing.update) == (1.88, 0, 3)


def test_more_may_be_better() -> None:
    standing, best = follow("in_mode", 0.5, 0.8, 0.7, error=0.01)
    assert best == [True, True, False] and (standing.update, standing.waited) == (1, 1)


def test_another_metric_begins_anew() -> None:
    standing, _ = follow("frechet", 3.0, 1.0)
    after, best = judged(standing, "in_mode", Measured(0.5, 0.1, 100), 7)
    assert best and after == Standing("in_mode", 7, 0.5, 0.1, 0.5, 0)


def test_trackers_get_plain_numbers() -> None:
    line = {"update": 4, "loss": 0.5, "quality": {"metric": "a", "metrics": {"a": 2.0}}, "warnings": [{}, {}]}
    assert scalars(line) == {"update": 4, "loss": 0.5, "quality/a": 2.0, "warnings": 2}


@pytest.mark.usefixtures("tiny")
def test_judgements_change_nothing_and_keep_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = distill("tiny.yaml", output="quiet")
    figures = iter([3.0, 1.0, 2.0, 2.5])
    original = story.QuickJudge._found

    def found(judge: Any) -> dict[str, Measured]:
        return original(judge) | {"frechet": Measured(next(figures), 0.1, 100)}

    monkeypatch.setattr(story.QuickJudge, "_found", found)
    told = Notes()
    settings = [*QUICK, "log.checkpoint_every=1"]
    busy = distill("tiny.yaml", output="busy", overrides=settings, reporter=told)
    assert read_student(quiet.root).config["weights_sha256"] == read_student(busy.root).config["weights_sha256"]
    numbers = lines(busy)
    assert [line["update"] for line in numbers] == [0, 2, 4, 6]
    assert [line["quality"]["metrics"]["frechet"] for line in numbers] == [3.0, 1.0, 2.0, 2.5]
    assert [line["quality"]["best"] for line in numbers] == [True, True, False, False]
    assert numbers[1]["quality"]["metric"] == "frechet" and numbers[1]["quality"]["num"] == 100
    best = {"update": 2, "metric": "frechet", "value": 1.0, "standard_error": 0.1}
    assert busy.read_record()["best"] == best and "ended_early" not in busy.read_record()
    # kept while checkpoints of its update are long gone
    assert [path.name for path in busy.best.iterdir()] == ["update-000002"]
    assert sorted(path.name for path in busy.checkpoints.iterdir()) == ["update-000005", "update-000006"]
    assert "update 4: frechet 2 +- 0.1 of 100 samples, best 1 at 2" in told.texts
    assert any("`--checkpoint best` selects it" in text for text in told.texts)

    chosen = read_student(select(find("busy"), "best"))
    assert chosen.config["update"] == 2
    for wanted, expected in (("last", busy.student), ("6", busy.student), ("5", busy.checkpoints / "update-000005")):
        assert select(busy.root, wanted) == expected
    assert select(busy.root, "2") == busy.best / "update-000002" and select(busy.root, None) == busy.root
    there = r"here: best \(update 2\), update 5, update 6, last \(update 6, finished\)"
    with pytest.raises(MfdError, match="--checkpoint 3: no such update is kept") as caught:
        select(busy.root, "3")
    assert caught.value.allowed is not None and re.fullmatch(there, caught.value.allowed)
    with pytest.raises(MfdError, match="neither best nor last nor an update"):
        select(busy.root, "newest")
    with pytest.raises(MfdError, match="no best student, since this run made no quick judgements") as caught:
        select(quiet.root, "best")
    assert "evaluate.every" in str(caught.value.do)
    with pytest.raises(MfdError, match="--checkpoint best of"):
        select(busy.student, "best")
    picture = sample("busy", checkpoint="best", num=4)
    assert picture.parent == busy.samples and "update-000002" in picture.name


@pytest.mark.usefixtures("tiny")
def test_patience_ends_a_run_that_stands_still() -> None:
    told = Notes()
    settings = [*STILL, "evaluate.patience=3", "evaluate.num=200"]
    run = distill("tiny.yaml", overrides=settings, reporter=told)
    record = run.read_record()
    assert record["status"] == "finished" and record["update"] == 6 and run.report.is_file()
    assert record["ended_early"].startswith("frechet did not improve beyond its standard error in 3 quick judgements")
    assert any(text.startswith("ended early: frechet") for text in told.texts)
    assert read_student(run.root).config["update"] == 6
    again = Notes()
    distill("tiny.yaml", overrides=settings, resume=True, reporter=again)
    assert again.texts == ["runs/tiny: this run is finished; nothing to do"]


@pytest.mark.usefixtures("tiny")
def test_a_run_that_was_over_when_it_was_stopped_is_only_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*STILL, "evaluate.patience=2"]

    def interrupted(session: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(story.Session, "_finish", interrupted)
        with pytest.raises(MfdError):
            distill("tiny.yaml", overrides=settings)
    run = distill("tiny.yaml", overrides=settings, resume=True)
    assert run.read_record()["status"] == "finished" and run.read_record()["update"] == 4
    assert [line["update"] for line in lines(run)] == [0, 2, 4]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("settings", "words", "allowed"),
    [
        (
            ["evaluate.quick_num=50", "evaluate.metric=fid"],
            "evaluate.metric fid: not measured on data 'gmm'",
            "frechet, sliced_wasserstein",
        ),
        (["evaluate.quick_num=2"], "the student cannot be judged: 2 samples are too few for 'frechet'", "at least 3"),
    ],
)
def test_what_cannot_be_judged_is_told_before_anything_is_written(
    settings: list[str], words: str, allowed: str
) -> None:
    with pytest.raises(MfdError, match=words) as caught:
        distill("tiny.yaml", overrides=["evaluate.every=2", *settings])
    assert "--num" not in str(caught.value.do)
    assert caught.value.exit_code == 2 and str(caught.value.allowed).startswith(allowed)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("tiny")
def test_patience_without_judgements_is_refused() -> None:
    with pytest.raises(MfdError, match="patience counts quick judgements and every is 0"):
        distill("tiny.yaml", overrides=["evaluate.patience=3"])


def test_the_preview_says_how_good_its_student_is(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfd_cli.training import previews

    plain = Image.new("RGB", (300, 40), "red")
    headed = previews.headed(plain, "update 2: frechet 0.5")
    assert headed.width == 300 and headed.height > 60
    assert headed.crop((0, headed.height - 40, 300, headed.height)).tobytes() == plain.tobytes()
    assert headed.crop((0, 0, 300, headed.height - 40)).getextrema() != ((255, 255),) * 3

    monkeypatch.setattr(previews, "comparison", lambda *rest, **more: plain)
    monkeypatch.setattr(story, "save_preview", previews.save_preview)
    run = distill("tiny.yaml", overrides=[*QUICK, "log.preview_every=4"])
    for update in (0, 4, 6):
        info = Image.open(run.previews / f"update-{update:06d}.png").info
        assert info["quality"].startswith(f"update {update}: frechet ")
