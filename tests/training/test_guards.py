"""Values that are not finite, roles that do not move and a collapse stop a run; what may still be well is warned of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mfd_cli.errors import RunStopped
from mfd_cli.methods.base import Loss
from mfd_cli.methods.mfd import MeanFlowDistillation
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student
from mfd_cli.training.guards import refuse_non_finite
from mfd_cli.training.reporting import Reporter
from mfd_cli.training.run import distill
from mfd_cli.training.trainer import Trainer


def test_finite_values_pass() -> None:
    refuse_non_finite(role="aux", update=1, inside=2, loss=1e30, norm=0.0, times=None)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (-float("inf"), float("nan"))])
def test_the_message_says_where_and_at_which_times(loss: float, norm: float) -> None:
    times = torch.tensor([[0.25, 0.5], [0.125, 1.0]])
    with pytest.raises(RunStopped) as caught:
        refuse_non_finite(role="aux", update=7, inside=2, loss=loss, norm=norm, times=times)
    assert caught.value.found == (
        f"aux: not finite at update 7, auxiliary update 2: loss {loss}, gradient norm {norm}; "
        "s from 0.1250 to 0.2500, t from 0.5000 to 1.0000"
    )
    assert caught.value.exit_code == 3 and "nothing was updated" in str(caught.value.do)


def test_another_process_is_named_as_the_one() -> None:
    with pytest.raises(RunStopped, match="student: not finite at update 7: another process met"):
        refuse_non_finite(role="student", update=7, inside=0, loss=1.0, norm=1.0, times=None, other_rank=True)


def poisoned(name: str, call: int) -> Callable[..., Loss]:
    """The loss `name`, whose `call`-th value is NaN."""
    original, calls = getattr(MeanFlowDistillation, name), []

    def loss(method: Any, batch: Any) -> Loss:
        calls.append(1)
        found = original(method, batch)
        return Loss(found.value * float("nan"), found.report, found.times) if len(calls) == call else found

    return loss


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("student_loss", 4, r"student: not finite at update 3: loss nan, gradient norm nan; s from 0\.\d+ to "),
        ("auxiliary_loss", 8, r"aux: not finite at update 3, auxiliary update 1: loss nan.*; t from 0\.\d+ to "),
    ],
)
def test_a_run_stops_before_the_update_and_keeps_its_checkpoint(
    name: str, call: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["log.checkpoint_every=2"]
    seen: list[dict[str, Any]] = []
    original = Trainer._check

    def watched(trainer: Trainer, *arguments: Any) -> Any:
        seen.append({key: value.clone() for key, value in trainer.roles.student.network.state_dict().items()})
        seen.append(trainer.roles.student.network.state_dict())
        return original(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MeanFlowDistillation, name, poisoned(name, call))
        patch.setattr(Trainer, "_check", watched)
        with pytest.raises(RunStopped, match=words):
            distill("tiny.yaml", output="run", overrides=settings)
    assert all(torch.equal(value, seen[-1][key]) for key, value in seen[-2].items()), "nothing was updated"
    run = RunFolder(Path("run"))
    record = run.read_record()
    assert record["status"] == "stopped" and "not finite" in record["reason"] and record["update"] == 3
    checkpoint, damaged = newest_valid(run.checkpoints)
    assert checkpoint is not None and checkpoint.state["update"] == 2 and not damaged
    assert all(json.loads(line)["update"] <= 3 for line in run.metrics.read_text().splitlines())
    distill("tiny.yaml", output="run", overrides=settings, resume=True)
    whole = distill("tiny.yaml", output="whole", overrides=settings)
    assert read_student(run.root).config["weights_sha256"] == read_student(whole.root).config["weights_sha256"]


@pytest.mark.usefixtures("tiny")
def test_a_gradient_that_is_not_finite_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original = MeanFlowDistillation.student_loss

    def loss(method: Any, batch: Any) -> Loss:
        found = original(method, batch)
        # 0 at the value, infinite slope
        return Loss(found.value + (found.value - found.value.detach()).abs().sqrt(), found.report, found.times)

    monkeypatch.setattr(MeanFlowDistillation, "student_loss", loss)
    with pytest.raises(RunStopped, match=r"student: not finite at update 0: loss -?\d.*, gradient norm nan"):
        distill("tiny.yaml", output="run")


class Warned(Reporter):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warned(self, text: str) -> None:
        self.texts.append(text)


def poisoned_at(updates: set[int]) -> Callable[..., Loss]:
    """The student's loss, NaN at these updates."""
    original = MeanFlowDistillation.student_loss

    def loss(method: Any, batch: Any) -> Loss:
        found = original(method, batch)
        return Loss(found.value * float("nan"), found.report) if batch.update in updates else found

    return loss


def lines(run: RunFolder) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.mark.usefixtures("tiny")
def test_as_many_updates_as_allowed_are_left_out_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = distill("tiny.yaml", output="clean", overrides=["train.updates=2"])
    monkeypatch.setattr(MeanFlowDistillation, "student_loss", poisoned_at({2, 4}))
    settings, told = ["guards.skip_non_finite=2", "log.checkpoint_every=1", "log.keep=9"], Warned()
    run = distill("tiny.yaml", output="run", overrides=settings, reporter=told)
    before, after = (newest_valid_at(run, update).tensors("student") for update in (2, 3))
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "nothing was updated"
    averages = [newest_valid_at(run, update).tensors("ema") for update in (2, 3)]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    assert "lr" not in lines(run)[2] and "aux_lr" in lines(run)[2], "what was left out is in no average"
    assert lines(run)[2]["evaluations"] == 3 * lines(clean)[0]["evaluations"], "but it was computed"
    assert [line["warnings"][0]["update"] for line in lines(run) if "warnings" in line] == [2, 4]
    (record,) = run.read_record()["warnings"]
    assert (record["guard"], record["role"], record["steps"]) == ("skip_non_finite", "student", 2)
    assert told.texts[0].startswith(
        "student: not finite (loss nan, gradient norm nan): left out, 1 of 2 allowed, at update 2. Try: lower optim."
    )
    monkeypatch.setattr(MeanFlowDistillation, "student_loss", poisoned_at({0, 2}))
    with pytest.raises(RunStopped, match=r"not finite at update 2.*; 1 updates were left out before \(guards\.skip"):
        distill("tiny.yaml", output="more", overrides=["guards.skip_non_finite=1"])


def newest_valid_at(run: RunFolder, update: int) -> Any:
    from mfd_cli.store.checkpoint import verify

    return verify(run.checkpoints / f"update-{update:06d}")


@pytest.mark.usefixtures("tiny")
def test_updates_left_out_are_remembered_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["log.checkpoint_every=3", "log.every=5"]
    monkeypatch.setattr(MeanFlowDistillation, "student_loss", poisoned_at({1, 4}))
    whole = distill("tiny.yaml", output="whole", overrides=[*settings, "guards.skip_non_finite=2"])
    with pytest.raises(RunStopped):
        distill("tiny.yaml", output="parts", overrides=[*settings, "guards.skip_non_finite=1"])
    assert RunFolder(Path("parts")).read_record()["update"] == 4
    parts = distill("tiny.yaml", output="parts", overrides=[*settings, "guards.skip_non_finite=2"], resume=True)
    assert read_student(whole.root).config["weights_sha256"] == read_student(parts.root).config["weights_sha256"]
    first, second = ([line.get("warnings") for line in lines(run)] for run in (whole, parts))
    assert [each["update"] for each in (first[0] or [])] == [1, 4]
    assert [[each["update"] for each in found or []] for found in first] == [
        [each["update"] for each in found or []] for found in second
    ]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("role", "settings", "words"),
    [
        ("student_loss", [], r"student: has not moved in its first 3 updates .*: its gradient was 0 in each of them"),
        ("auxiliary_loss", [], r"aux: has not moved in its first 3 updates .*: its gradient was 0 in each of them"),
        (None, ["optim.student.lr=1e-30"], r"student: has not moved .*: its weights are what they were; .* 1e-30"),
    ],
)
def test_a_role_that_does_not_move_stops_the_run(
    role: str | None, settings: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if role is not None:
        original = getattr(MeanFlowDistillation, role)

        def loss(method: Any, batch: Any) -> Loss:
            found = original(method, batch)
            return Loss(found.value * 0, found.report, found.times)

        monkeypatch.setattr(MeanFlowDistillation, role, loss)
    with pytest.raises(RunStopped, match=words) as caught:
        distill("tiny.yaml", output="run", overrides=["guards.unmoved=3", *settings])
    assert caught.value.exit_code == 3 and ".lr or shorten optim." in str(caught.value.do)
    assert RunFolder(Path("run")).read_record()["status"] == "stopped"
    monkeypatch.undo()


@pytest.mark.usefixtures("tiny")
def test_a_student_drawn_to_one_point_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(method: Any, batch: Any) -> Loss:
        data = batch.generate()
        return Loss((data - 1).square().mean(), samples=data)

    monkeypatch.setattr(MeanFlowDistillation, "student_loss", constant)
    settings = [
        "train.updates=400", "method.aux_updates=1", "optim.student.lr=0.02", "optim.student.schedule=cosine",
        "guards.collapse=0.05", "guards.after=10", "guards.spread=0.5", "log.every=100",
    ]  # fmt: skip
    told = Warned()
    with pytest.raises(RunStopped, match=r"student: collapsed at update .* has been under 0\.05 of the largest"):
        distill("tiny.yaml", output="run", overrides=settings, reporter=told)
    assert any(text.startswith("student: variance of its samples is 0.") for text in told.texts)
    record = RunFolder(Path("run")).read_record()
    assert record["status"] == "stopped" and "collapsed" in record["reason"]
    assert "spread" in {each["guard"] for each in record["warnings"]}


@pytest.mark.usefixtures("tiny")
def test_an_absurd_rate_is_warned_of() -> None:
    told = Warned()
    settings = [
        "train.updates=60",
        "optim.student={lr: 3.0, warmup: 40, clip: null}",
        "guards.gradient=5",
        "log.every=60",
    ]
    run = distill("tiny.yaml", output="run", overrides=settings, reporter=told)
    assert any("gradient norm" in text and "times its median" in text for text in told.texts)
    assert "gradient" in {each["guard"] for line in lines(run) for each in line.get("warnings", [])}
    assert "gradient" in {each["guard"] for each in run.read_record()["warnings"]}


@pytest.mark.usefixtures("tiny")
def test_an_auxiliary_that_does_not_learn_is_warned_of_and_one_that_does_is_not() -> None:
    settings = ["train.updates=35", "guards.after=25", "guards.unmoved=null", "guards.spread=null", "log.every=35"]
    told = {name: Warned() for name in ("none", "some")}
    for name, rate, pace in (("none", "1e-9", "0.1"), ("some", "3e-2", "1e-3")):
        distill(
            "tiny.yaml", output=name, reporter=told[name],
            overrides=[*settings, f"optim.aux.lr={rate}", f"optim.student.lr={pace}", "optim.aux.schedule=constant"],
        )  # fmt: skip
    (text,) = told["none"].texts
    assert text.startswith("aux: has lost track of the student: its flow-matching loss is ") and "t from 0." in text
    assert told["some"].texts == []


@pytest.mark.usefixtures("tiny")
def test_guards_see_the_same_with_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[tuple[Any, ...]]] = {}
    from mfd_cli.training.watch import Watch

    for parts in (1, 4, 16):
        found = seen.setdefault(parts, [])
        monkeypatch.setattr(
            Watch, "look", lambda self, each, found=found: found.append((each.variance, each.gaussian, each.duplicates))
        )
        distill("tiny.yaml", output=str(parts), overrides=[f"train.accumulation={parts}", "train.updates=2"])
    assert [[value is None for value in each] for each in seen[1]] == [
        [True, True, True], [False, False, True], [False, True, False],
    ] * 2  # fmt: skip
    for parts in (4, 16):
        for one, other in zip(seen[1], seen[parts], strict=True):
            assert [value or 0 for value in other] == pytest.approx([value or 0 for value in one], rel=1e-3)
