"""Values that are not finite stop a run before the update, with role, update and times."""

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
