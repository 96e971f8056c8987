"""NaN from anywhere stops a run before the update it would spoil; the message says where, and for which samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mfd_cli.errors import RunStopped
from mfd_cli.methods.base import Batch, Loss
from mfd_cli.methods.mfd import MeanFlowDistillation
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import fingerprint
from mfd_cli.training.batches import Batches
from mfd_cli.training.run import distill
from mfd_cli.training.trainer import Trainer
from teachers.gmm import GaussianMixtureTeacher

BAD = float("nan")


def steep(value: Tensor) -> Tensor:
    """The same value, whose gradient is not finite."""
    return value + (value - value.detach()).abs().sqrt()


def spoilt_loss(update: int, spoil: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Makes a loss function of a method one that is spoilt at a student update."""

    def wrapped(original: Callable[..., Loss]) -> Callable[..., Loss]:
        def loss(method: Any, batch: Batch) -> Loss:
            found = original(method, batch)
            return Loss(spoil(found.value), found.report, found.times) if batch.update == update else found

        return loss

    return wrapped


def spoilt_teacher(call: int) -> Callable[..., Any]:
    """Makes a velocity one whose values under the teacher's own network are NaN from a call on."""

    def wrapped(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        calls = []

        def velocity(teacher: Any, network: Any, *rest: Any) -> Tensor:
            found = original(teacher, network, *rest)
            if network is not teacher.network:
                return found
            calls.append(1)
            return found * BAD if len(calls) >= call else found

        return velocity

    return wrapped


def spoilt_critic(original: Callable[..., Loss]) -> Callable[..., Loss]:
    """Makes a step's gradient one that is not finite in a weight of the critic alone, at update 3."""

    def gradient(trainer: Trainer, step: int, *rest: Any) -> Loss:
        found = original(trainer, step, *rest)
        if trainer.update == 3:
            assert trainer.roles.critic is not None
            trainer.roles.critic.parameters[0].grad.view(-1)[0] = BAD  # type: ignore[union-attr]
        return found

    return gradient


#: where NaN comes from: class, method, what is done to it, beginning of the message
SOURCES = {
    "teacher's output": (GaussianMixtureTeacher, "velocity", spoilt_teacher(7), "student: not finite at update 3"),
    "student's loss": (
        MeanFlowDistillation, "student_loss", spoilt_loss(3, lambda value: value * BAD),
        "student: not finite at update 3",
    ),
    "student's gradient": (
        MeanFlowDistillation, "student_loss", spoilt_loss(3, steep), "student: not finite at update 3"
    ),
    "auxiliary's loss": (
        MeanFlowDistillation, "auxiliary_loss", spoilt_loss(3, lambda value: value * BAD),
        "aux: not finite at update 3, auxiliary update 0",
    ),
    "auxiliary's gradient": (
        MeanFlowDistillation, "auxiliary_loss", spoilt_loss(3, steep), "aux: not finite at update 3, auxiliary update 0"
    ),
}  # fmt: skip


def stopped(owner: type, name: str, wrap: Callable[..., Any], message: str, settings: list[str]) -> RunStopped:
    """A run that has to stop, whose roles are as they were before the update, and whose checkpoint is whole."""
    before: dict[str, str] = {}
    kept: list[Trainer] = []
    original = Trainer._check

    def watched(trainer: Trainer, *arguments: Any) -> Any:
        kept[:] = [trainer]
        before.update({role.name: fingerprint(role.network.state_dict()) for role in trainer.roles.trained()})
        return original(trainer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrap(getattr(owner, name)))
        patch.setattr(Trainer, "_check", watched)
        with pytest.raises(RunStopped) as caught:
            distill("tiny.yaml", output="run", overrides=["log.checkpoint_every=2", *settings])
    assert caught.value.found.startswith(message), caught.value.found
    after = {role.name: fingerprint(role.network.state_dict()) for role in kept[0].roles.trained()}
    assert after == before, "nothing was updated"
    found, damaged = newest_valid(RunFolder(Path("run")).checkpoints)
    assert found is not None and found.state["update"] == 2 and not damaged
    return caught.value


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("source", SOURCES)
def test_the_run_stops_before_the_update_and_names_the_batch(source: str) -> None:
    told = stopped(*SOURCES[source], settings=[])
    step = 3 * 3 + (2 if told.found.startswith("student") else 0)  # two auxiliary updates before each of the student's
    first = step * 16
    assert f"; items {', '.join(str(first + row) for row in range(8))} and 8 more" in told.found
    assert told.exit_code == 3


@pytest.mark.usefixtures("tiny")
def test_a_critic_is_named_by_itself() -> None:
    words = "critic: not finite at update 3, auxiliary update 0"
    stopped(Trainer, "_gradient", spoilt_critic, words, ["method.type=dmd2"])


@pytest.mark.slow
def test_a_condition_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = Batches.condition

    def condition(batches: Batches, step: int, part: int) -> dict[str, Tensor]:
        found = dict(original(batches, step, part))
        if step == 3:
            found["text"] = torch.full_like(found["text"], BAD)
        return found

    monkeypatch.setattr(Batches, "condition", condition)
    few = ["train.updates=3", "train.batch_size=2", "method.aux_updates=1", "log.preview_num=1", "teacher.steps=1",
           "log.checkpoint_every=1"]  # fmt: skip
    with pytest.raises(RunStopped, match=r"^student: not finite at update 1: .*; items \d+, \d+\n"):
        distill("sana-tiny", output="run", overrides=few)
    found, damaged = newest_valid(Path("run/checkpoints"))
    assert found is not None and found.state["update"] == 1 and not damaged
